"""Codec and vocoder of a checkpoint, so that with voices that it has the language model alone is to be trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from export.layout import DVAE_FILE, VOCOS_FILE
from training.modules import Codec, Vocoder
from training.settings import SIZES
from training.sound import CODEC_FILE, VOCODER_FILE

Tensors = dict[str, torch.Tensor]


def take(checkpoint: Path, folder: Path) -> None:
    """Write the codec and the vocoder of `checkpoint`, of the sizes of the demo checkpoint, to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    codec, vocoder = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder), Vocoder(SIZES.vocos)
    codec.load_state_dict(codec_state(load_file(checkpoint / DVAE_FILE)))
    vocoder.load_state_dict(vocoder_state(load_file(checkpoint / VOCOS_FILE)))
    for module, name in ((codec, CODEC_FILE), (vocoder, VOCODER_FILE)):
        torch.save({"model": module.state_dict()}, folder / name)


def codec_state(tensors: Tensors) -> Tensors:
    """DVAE.safetensors as `Codec` has it."""
    named = {name.replace("vq_layer.quantizer.rvqs.", "quantizers."): tensor for name, tensor in tensors.items()}
    tail = ("coef", "decoder.", "out_conv.")
    return {
        f"tail.{name}" if name.startswith(tail) else name: tensor.float()
        for name, tensor in named.items()
        if not name.startswith("preprocessor_mel.")
    }


def vocoder_state(tensors: Tensors) -> Tensors:
    """Vocos.safetensors as `Vocoder` has it."""
    return {
        name.removeprefix("backbone.").removeprefix("head."): tensor.float()
        for name, tensor in tensors.items()
        if not name.startswith(("feature_extractor.", "head.istft."))
    }
