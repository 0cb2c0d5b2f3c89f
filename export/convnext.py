"""Masked ConvNeXt blocks: the one building block of decoder, encoder and vocoder.

Sequences are [batch, time, channels] and masks [batch, time, 1], 1 where a frame is real. Frames that are not real are
set to 0 before every convolution that looks at neighbours, which is what the zero padding of an unbatched run would be:
a padded batch equals each of its sequences alone.

Layout: a block is two large matrix products and one cheap depthwise convolution. Time-major keeps the products free of
transposes. Convolutions are 2-D, over images of height 1: ONNX Runtime's CPU kernel for those works in blocks of
channels and takes both transposes into its copies to and from them. 1-D ones with their transposes took three times as
long.

Modules run in the precision of their weights: float32, or float16 for GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)

LAYER_NORM_EPS = 1e-6  # of every normalisation in ChatTTS and vocos


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint file below `prefix`, and the layers that they make."""

    tensors: Mapping[str, torch.Tensor]
    prefix: str = ""

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor `name`."""
        return self.tensors[self.prefix + name]

    def below(self, name: str) -> Weights:
        """The tensors of the part `name`, e.g. "decoder" or "convnext.3"."""
        return Weights(self.tensors, f"{self.prefix}{name}.")

    def parts(self, name: str) -> list[Weights]:
        """The parts "name.0", "name.1", ... in order."""
        start = len(f"{self.prefix}{name}.")
        below = (key[start:] for key in self.tensors if key.startswith(f"{self.prefix}{name}."))
        count = len({key.split(".")[0] for key in below})
        return [self.below(f"{name}.{number}") for number in range(count)]

    def linear(self, name: str) -> nn.Linear:
        """The linear layer `name`."""
        weight = self[f"{name}.weight"]
        return _filled(nn.Linear(weight.shape[1], weight.shape[0]), weight, self[f"{name}.bias"])

    def layer_norm(self, name: str) -> nn.LayerNorm:
        """The normalisation `name` over channels."""
        weight = self[f"{name}.weight"]
        return _filled(nn.LayerNorm(len(weight), eps=LAYER_NORM_EPS), weight, self[f"{name}.bias"])

    def conv(self, name: str, *, stride: int = 1, padding: int | None = None, dilation: int = 1) -> nn.Conv2d:
        """The convolution `name`; one input channel per group makes it depthwise. Keeps the length unless told."""
        weight = self[f"{name}.weight"]
        outputs, inputs, kernel = weight.shape
        bias = self.tensors.get(f"{self.prefix}{name}.bias")
        groups = outputs if inputs == 1 else 1
        layer = nn.Conv2d(
            inputs * groups,
            outputs,
            (1, kernel),
            stride=(1, stride),
            padding=(0, dilation * (kernel // 2) if padding is None else padding),
            dilation=(1, dilation),
            groups=groups,
            bias=bias is not None,
        )
        return _filled(layer, weight.unsqueeze(2), bias)


def convolve(conv: nn.Conv2d, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`conv` over the real frames: [B, F, inputs], mask [B, F, 1] -> [B, F / stride, outputs]."""
    image = (frames * mask).unsqueeze(1)  # [B, height 1, F, inputs]
    output: torch.Tensor = conv(image.permute(0, 3, 1, 2))
    return output.permute(0, 2, 3, 1).squeeze(1)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, normalisation, and an MLP onto the residual stream: [B, F, C] -> [B, F, C].

    `scale` names the per-channel scale of the MLP's output; it is folded into the MLP's last layer.
    """

    def __init__(self, weights: Weights, *, scale: str, dilation: int = 1) -> None:
        """Take the block's tensors: dwconv, norm, pwconv1, pwconv2 and `scale`."""
        super().__init__()
        self.depthwise = weights.conv("dwconv", dilation=dilation)
        self.norm = weights.layer_norm("norm")
        self.expand = weights.linear("pwconv1")
        self.contract = weights.linear("pwconv2")
        with torch.no_grad():
            self.contract.weight.mul_(weights[scale][:, None])
            self.contract.bias.mul_(weights[scale])

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """One step of the residual stream."""
        mixed = self.norm(convolve(self.depthwise, frames, mask))
        bias: torch.Tensor = self.expand.bias
        if bias.dtype == torch.float32:
            # ONNX Runtime makes one BiasGelu of a bias [channels] and a GELU, which saves a GPU a pass over memory. On
            # a CPU that operator takes longer than the two that are left of a bias [1, channels].
            bias = bias.unsqueeze(0)
        change: torch.Tensor = self.contract(nn.functional.gelu(mixed @ self.expand.weight.T + bias))
        return frames + change


def _filled(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None) -> Layer:
    state = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    layer.load_state_dict(state)
    return layer
