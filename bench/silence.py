"""A decoder and a vocoder that compute nothing, in the place of those of a repository: tensors of the right shapes.

What they take in reality is the GPU's, where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v20 as op
from spox import Tensor, Var

from chattts_serving.audio import HOP_LENGTH

MELS = 100
_PART = 64  # bands of a frame, four times over the samples of a frame


def write(repository: Path, hidden_size: int) -> None:
    """Put both into `repository`, whose hidden states have `hidden_size` channels."""
    hidden, mask = _argument("num_tokens", hidden_size), _argument("num_tokens")
    mel, mel_mask = _argument("num_frames", MELS), _argument("num_frames")
    wide = op.concat([hidden] * -(-MELS // hidden_size), axis=2)
    bands = op.slice(wide, _ints(0), _ints(MELS), _ints(2))
    twice = op.unsqueeze(mask, _ints(2))
    _write(
        repository / "dvae_decoder",
        {"hidden": hidden, "mask": mask},
        {
            "mel": op.reshape(op.concat([bands] * 2, axis=2), _ints(0, -1, MELS)),
            "mel_mask": op.reshape(op.concat([twice] * 2, axis=2), _ints(0, -1)),
        },
    )
    samples = op.slice(op.mul(mel, op.unsqueeze(mel_mask, _ints(2))), _ints(0), _ints(_PART), _ints(2))
    _write(
        repository / "vocos",
        {"mel": mel, "mel_mask": mel_mask},
        {"waveform": op.reshape(op.concat([samples] * (HOP_LENGTH // _PART), axis=2), _ints(0, -1))},
    )


def _argument(*dims: str | int) -> Var:
    return spox.argument(Tensor(np.float32, ("batch", *dims)))


def _ints(*values: int) -> Var:
    return op.const(np.array(values, np.int64))


def _write(model: Path, inputs: Mapping[str, Var], outputs: Mapping[str, Var]) -> None:
    file = model / "1" / "model.onnx"
    file.unlink(missing_ok=True)  # a link, perhaps
    onnx.save(spox.build(dict(inputs), dict(outputs)), file)
