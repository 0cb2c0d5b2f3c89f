"""Decoder, vocoder and encoder as ONNX files, each checked against the ChatTTS or vocos module that it replaces."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn
from torch.export import Dim

from chattts_serving.audio import NUM_MELS
from export.chattts_package import load_chat
from export.checkpoint import Checkpoint, load_tensors
from export.convnext import Weights
from export.dvae import MIN_ENCODER_SAMPLES, DvaeDecoder, DvaeEncoder
from export.onnx_parity import ALLOWED_DIFFERENCE, check_decoder, check_encoder, check_vocos
from export.parity import ParityResult
from export.vocos import Vocos

OPSET = 20  # the first with a Gelu operator; ONNX Runtime 1.20 and later run the files
PRECISIONS = tuple(ALLOWED_DIFFERENCE)  # "fp32", "fp16"
MODEL_FILE = "1/model.onnx"  # in a model's folder: version 1, under the name that Triton looks for


@dataclass(frozen=True)
class _Exported:
    """What torch.onnx.export has to know of one model.

    Attributes:
        module: the module with its weights.
        examples: one tensor per input, by the input's name; batch 2 and a length that no constant has.
        lengths: names of the axes of each input after the batch's; None for an axis of fixed size.
        outputs: output names.
    """

    module: nn.Module
    examples: dict[str, torch.Tensor]
    lengths: tuple[tuple[str | None, ...], ...]
    outputs: tuple[str, ...]


def export_onnx_models(checkpoint: Checkpoint, out_dir: Path, precision: str = "fp32") -> list[ParityResult]:
    """Write {dvae_decoder,vocos,dvae_encoder}/1/model.onnx below `out_dir` and compare each with its source.

    Args:
        checkpoint: where the weights come from.
        out_dir: the model repository.
        precision: of decoder and vocoder, one of PRECISIONS. Inputs and outputs are float32 in any; the encoder always
            is, because a rounding error of its own would change codes.

    Raises:
        ConfigError: the checkpoint is unreadable. A model that differs too much is not refused here but by
            `ParityResult.check`.
    """
    for name, exported in _models(checkpoint).items():
        if precision == "fp16" and name in ("dvae_decoder", "vocos"):
            exported.module.half()
        path = out_dir / name / MODEL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_onnx(name, exported, path)
    chat = load_chat(checkpoint.directory)
    return [
        check_decoder(chat.decoder, out_dir / "dvae_decoder" / MODEL_FILE, precision),
        check_vocos(chat.vocos, out_dir / "vocos" / MODEL_FILE, precision),
        check_encoder(chat.dvae, out_dir / "dvae_encoder" / MODEL_FILE),
    ]


def _models(checkpoint: Checkpoint) -> dict[str, _Exported]:
    decoder, vocos, dvae = (
        Weights(load_tensors(path)) for path in (checkpoint.decoder, checkpoint.vocos, checkpoint.dvae)
    )
    tokens, frames, samples = 13, 17, MIN_ENCODER_SAMPLES + 1_001
    return {
        "dvae_decoder": _Exported(
            DvaeDecoder(decoder),
            {"hidden": torch.zeros(2, tokens, checkpoint.sizes.gpt.hidden), "mask": torch.ones(2, tokens)},
            (("num_tokens", None), ("num_tokens",)),
            ("mel", "mel_mask"),
        ),
        "vocos": _Exported(
            Vocos(vocos),
            {"mel": torch.zeros(2, frames, NUM_MELS), "mel_mask": torch.ones(2, frames)},
            (("num_frames", None), ("num_frames",)),
            ("waveform",),
        ),
        "dvae_encoder": _Exported(
            DvaeEncoder(dvae),
            {"audio": torch.zeros(2, samples), "num_samples": torch.full((2, 1), samples, dtype=torch.int32)},
            (("num_samples",), (None,)),
            ("codes", "num_tokens"),
        ),
    }


def _write_onnx(name: str, exported: _Exported, path: Path) -> None:
    with _quiet():
        program = torch.onnx.export(
            exported.module.eval(),
            tuple(exported.examples.values()),
            input_names=list(exported.examples),
            output_names=list(exported.outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=[_dynamic_axes(axes) for axes in exported.lengths],
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"torch.onnx.export made nothing of {name}")
    model = program.model_proto
    _tidy(model, name)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _dynamic_axes(lengths: Sequence[str | None]) -> dict[int, Dim]:
    return {0: Dim("batch"), **{axis: Dim(name) for axis, name in enumerate(lengths, 1) if name}}


def _tidy(model: onnx.ModelProto, name: str) -> None:
    """Leave out what the exporter notes about this machine: paths and lines of the sources, once per node."""
    model.graph.name = name
    del model.metadata_props[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its warnings about its own insides off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
