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

from chattts_serving.audio import FRAMES_PER_TOKEN, HELD_TOKENS, HOP_LENGTH, NUM_MELS
from export.convnext import time_slice
from export.dvae import mask_of_frames
from export.timeline import Timeline

DECODER_DELAY, VOCODER_DELAY = 75, 29  # frames, of the official models
KEPT = 10  # times the bands of a frame, for as much state as the official models have
_PART = 64  # bands of a frame, four times over the samples of a frame


def write(repository: Path, hidden_size: int) -> None:
    """Put both into `repository`, whose hidden states have `hidden_size` channels."""
    hidden, mask, state = _argument("num_tokens", hidden_size), _argument("mask_length"), _argument("state_length")
    wide = op.concat([hidden] * -(-NUM_MELS // hidden_size), axis=2)
    bands = op.slice(wide, _ints(0), _ints(NUM_MELS), _ints(2))
    frames = op.reshape(op.concat([bands] * FRAMES_PER_TOKEN, axis=2), _ints(0, -1, NUM_MELS))
    timeline = Timeline(
        state,
        mask_of_frames(mask, op.shape(hidden, start=1, end=2)),
        op.shape(frames, start=1, end=2),
        most_past=DECODER_DELAY,
        num_guessed=HELD_TOKENS * FRAMES_PER_TOKEN,
    )
    _write(
        repository / "dvae_decoder",
        {"hidden": hidden, "mask": mask, "state": state},
        {
            "mel": _late(timeline, frames, DECODER_DELAY),
            "mel_mask": timeline.mask_for_the_next_model(),
            "next_state": timeline.next_state(),
        },
    )
    mel, mel_mask = _argument("num_frames", NUM_MELS), _argument("mask_length")
    timeline = Timeline(
        state,
        mel_mask,
        op.shape(mel, start=1, end=2),
        most_past=VOCODER_DELAY,
        num_guessed=DECODER_DELAY + HELD_TOKENS * FRAMES_PER_TOKEN,
    )
    late = _late(timeline, mel, VOCODER_DELAY)
    samples = op.slice(op.mul(late, timeline.mask()), _ints(0), _ints(_PART), _ints(2))
    _write(
        repository / "vocos",
        {"mel": mel, "mel_mask": mel_mask, "state": state},
        {
            "waveform": op.reshape(op.concat([samples] * (HOP_LENGTH // _PART), axis=2), _ints(0, -1)),
            "next_state": timeline.next_state(),
        },
    )


def _late(timeline: Timeline, frames: Var, delay: int) -> Var:
    """`frames` [B, F, NUM_MELS] `delay` frames later, kept KEPT times over."""
    kept = timeline.around(op.concat([frames] * KEPT, axis=2), 0, delay)
    return time_slice(kept, 0, delay, slice(0, NUM_MELS))


def _argument(*dims: str | int) -> Var:
    return spox.argument(Tensor(np.float32, ("batch", *dims)))


def _ints(*values: int) -> Var:
    return op.const(np.array(values, np.int64))


def _write(model: Path, inputs: Mapping[str, Var], outputs: Mapping[str, Var]) -> None:
    file = model / "1" / "model.onnx"
    file.unlink(missing_ok=True)  # a link, perhaps
    onnx.save(spox.build(dict(inputs), dict(outputs)), file)
