"""Decoder, vocoder and encoder of a checkpoint as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import spox
from spox import Tensor, Var

from chattts_serving.audio import NUM_MELS
from export.checkpoint import Checkpoint, load_tensors
from export.convnext import Weights
from export.dvae import decoder_delay, dvae_decoder, dvae_encoder
from export.quantization import quantize_mlps
from export.vocos import vocos

# What layers compute in; of "int8" the two products of each ConvNeXt block alone are in 8 bits.
PRECISIONS: dict[str, type[np.floating[Any]]] = {"fp32": np.float32, "fp16": np.float16, "int8": np.float32}
MODEL_FILE = "1/model.onnx"  # in a model's folder: version 1, under the name that Triton looks for


def export_onnx_models(checkpoint: Checkpoint, out_dir: Path, precision: str = "fp32") -> None:
    """Write {dvae_decoder,vocos,dvae_encoder}/1/model.onnx below `out_dir`.

    Args:
        checkpoint: where the weights come from.
        out_dir: the model repository.
        precision: of decoder and vocoder, one of PRECISIONS. Inputs and outputs are float32 in any; the encoder always
            is, because a rounding error of its own would change codes.

    Raises:
        ConfigError: the checkpoint is unreadable.
    """
    computed_in = PRECISIONS[precision]
    decoder = Weights(load_tensors(checkpoint.decoder), computed_in)
    models = {
        "dvae_decoder": decoder_model(decoder, checkpoint.sizes.gpt.hidden),
        "vocos": vocos_model(Weights(load_tensors(checkpoint.vocos), computed_in), decoder_delay(decoder)),
        "dvae_encoder": encoder_model(Weights(load_tensors(checkpoint.dvae))),
    }
    if precision == "int8":
        for name in ("dvae_decoder", "vocos"):
            quantize_mlps(models[name])
    for name, model in models.items():
        path = out_dir / name / MODEL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, path)


def decoder_model(weights: Weights, hidden_size: int) -> onnx.ModelProto:
    """`dvae_decoder` for hidden states of `hidden_size`."""
    hidden = _tensor(np.float32, "batch", "num_tokens", hidden_size)
    mask = _tensor(np.float32, "batch", "mask_length")
    state = _tensor(np.float32, "batch", "state_length")
    mel, mel_mask, next_state = dvae_decoder(weights, hidden, mask, state)
    return _built(
        "dvae_decoder",
        {"hidden": hidden, "mask": mask, "state": state},
        {"mel": mel, "mel_mask": mel_mask, "next_state": next_state},
    )


def vocos_model(weights: Weights, delay: int) -> onnx.ModelProto:
    """`vocos`, behind a decoder whose output lies `delay` frames behind its input."""
    mel = _tensor(np.float32, "batch", "num_frames", NUM_MELS)
    mel_mask = _tensor(np.float32, "batch", "mask_length")
    state = _tensor(np.float32, "batch", "state_length")
    waveform, next_state = vocos(weights, mel, mel_mask, state, delay)
    return _built(
        "vocos", {"mel": mel, "mel_mask": mel_mask, "state": state}, {"waveform": waveform, "next_state": next_state}
    )


def encoder_model(weights: Weights) -> onnx.ModelProto:
    """`dvae_encoder`."""
    audio, num_samples = _tensor(np.float32, "batch", "num_samples"), _tensor(np.int32, "batch", 1)
    codes, num_tokens = dvae_encoder(weights, audio, num_samples)
    return _built(
        "dvae_encoder", {"audio": audio, "num_samples": num_samples}, {"codes": codes, "num_tokens": num_tokens}
    )


def _tensor(dtype: type[np.generic], *dims: str | int) -> Var:
    return spox.argument(Tensor(dtype, dims))


def _built(name: str, inputs: dict[str, Var], outputs: dict[str, Var]) -> onnx.ModelProto:
    model = spox.build(inputs, outputs)
    model.graph.name = name
    onnx.checker.check_model(model, full_check=True)
    return model
