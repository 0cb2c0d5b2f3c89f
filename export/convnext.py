"""Masked ConvNeXt blocks in ONNX operators: the one building block of decoder, encoder and vocoder.

Sequences are [batch, time, channels] and masks [batch, time, 1], 1 where a frame is real. Frames that are not real are
set to 0 before every convolution that looks at neighbours, which is what the zero padding of an unbatched run would be:
a padded batch equals each of its sequences alone.

Layout: a block is two large matrix products and one cheap depthwise convolution. Time-major keeps the products free of
transposes. Convolutions are 2-D, over images of height 1: ONNX Runtime's CPU kernel for those works in blocks of
channels and takes both transposes into its copies to and from them. 1-D ones with their transposes took three times as
long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import spox.opset.ai.onnx.v20 as op  # the first with a Gelu operator; ONNX Runtime 1.20 and later run it
from spox import Var

Array = npt.NDArray[Any]

LAYER_NORM_EPS = 1e-6  # of every normalisation in ChatTTS and vocos


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint file below `prefix`, float32, and the layers that they make.

    Attributes:
        tensors: all of the file's.
        precision: what the layers compute in, float32, or float16 for GPUs.
        prefix: of the names that are asked for.
    """

    tensors: Mapping[str, Array]
    precision: type[np.floating[Any]] = np.float32
    prefix: str = ""

    def __getitem__(self, name: str) -> Array:
        """The tensor `name`."""
        return self.tensors[self.prefix + name]

    def below(self, name: str) -> Weights:
        """The tensors of the part `name`, e.g. "decoder" or "convnext.3"."""
        return replace(self, prefix=f"{self.prefix}{name}.")

    def parts(self, name: str) -> list[Weights]:
        """The parts "name.0", "name.1", ... in order."""
        start = len(f"{self.prefix}{name}.")
        below = (key[start:] for key in self.tensors if key.startswith(f"{self.prefix}{name}."))
        count = len({key.split(".")[0] for key in below})
        return [self.below(f"{name}.{number}") for number in range(count)]

    def const(self, array: Array) -> Var:
        """`array` in `precision`, as a constant of the graph."""
        return op.const(array.astype(self.precision))

    def linear(self, name: str, values: Var, scale: Array | None = None) -> Var:
        """The linear layer `name`, its outputs times `scale`: [.., inputs] -> [.., outputs]."""
        weight, bias = self[f"{name}.weight"], self[f"{name}.bias"]
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        return op.add(op.matmul(values, self.const(weight.T)), self.const(bias))

    def layer_norm(self, name: str, frames: Var) -> Var:
        """The normalisation `name` over channels."""
        weight, bias = self.const(self[f"{name}.weight"]), self.const(self[f"{name}.bias"])
        return op.layer_normalization(frames, weight, bias, axis=-1, epsilon=LAYER_NORM_EPS)[0]

    def conv(self, name: str, frames: Var, *, scale: Array | None = None, stride: int = 1, dilation: int = 1) -> Var:
        """The convolution `name` without padding: [B, F, inputs] -> [B, .., outputs].

        One input channel per group makes it depthwise; outputs are times `scale`.
        """
        weight, bias = self[f"{name}.weight"], self.tensors.get(f"{self.prefix}{name}.bias")
        outputs, inputs, kernel = weight.shape
        if scale is not None:
            weight = weight * scale[:, None, None]
        image = op.unsqueeze(frames, op.const([1]))  # [B, height 1, F, inputs]
        output = op.conv(
            op.transpose(image, perm=[0, 3, 1, 2]),
            self.const(weight[:, :, None]),
            None if bias is None else self.const(bias),
            kernel_shape=[1, kernel],
            strides=[1, stride],
            pads=[0, 0, 0, 0],
            dilations=[1, dilation],
            group=outputs if inputs == 1 else 1,
        )
        return op.squeeze(op.transpose(output, perm=[0, 2, 3, 1]), op.const([1]))


class Surroundings:
    """What lies before and after the frames of a row."""

    def around(self, frames: Var, before: int, after: int) -> Var:
        """`frames` with those around them that a kernel over `before` + 1 + `after` frames needs, masked."""
        raise NotImplementedError


class Alone(Surroundings):
    """Nothing does: frames are rendered in one call, and 0 is around those that the mask [B, F, 1] calls real."""

    def __init__(self, mask: Var) -> None:
        """`mask` is 1 on real frames."""
        self._mask = mask

    def around(self, frames: Var, before: int, after: int) -> Var:
        """As `Surroundings`."""
        return op.pad(op.mul(frames, self._mask), op.const(np.array([0, before, 0, 0, after, 0], np.int64)))


def same_conv(
    weights: Weights, name: str, frames: Var, surroundings: Surroundings, *, scale: Array | None = None
) -> Var:
    """The convolution `name`, as many frames as there are known: [B, F, inputs] -> [B, .., outputs]."""
    reach = weights[f"{name}.weight"].shape[2] // 2
    return weights.conv(name, surroundings.around(frames, reach, reach), scale=scale)


def convnext_block(weights: Weights, frames: Var, surroundings: Surroundings, *, scale: str, dilation: int = 1) -> Var:
    """Depthwise convolution, normalisation, and an MLP onto the residual stream: [B, F, C] -> [B, .., C].

    `scale` names the per-channel scale of the MLP's output; it is folded into the MLP's last layer.
    """
    reach = dilation * (weights["dwconv.weight"].shape[2] // 2)
    around = surroundings.around(frames, reach, reach)
    frames = time_slice(around, reach, reach)
    mixed = weights.layer_norm("norm", weights.conv("dwconv", around, dilation=dilation))
    bias = weights["pwconv1.bias"]
    if weights.precision is np.float32:
        # ONNX Runtime makes one BiasGelu of a bias [channels] and a GELU, which saves a GPU a pass over memory. On a
        # CPU that operator takes longer than the two that are left of a bias [1, channels].
        bias = bias[None]
    widened = op.add(op.matmul(mixed, weights.const(weights["pwconv1.weight"].T)), weights.const(bias))
    return op.add(frames, weights.linear("pwconv2", op.gelu(widened), weights[scale]))


def cast(values: Var, precision: type[np.floating[Any]]) -> Var:
    """`values` in `precision`."""
    return values if values.unwrap_tensor().dtype == precision else op.cast(values, to=precision)


def time_slice(frames: Var, start: int, behind: int, channels: slice | None = None) -> Var:
    """`frames[:, start : F - behind]` of [B, F, ..], and of those the `channels` where they are given."""
    starts, ends, axes = [start], [-behind if behind else np.iinfo(np.int64).max], [1]
    if channels is not None:
        starts, ends, axes = [*starts, channels.start], [*ends, channels.stop], [*axes, 2]
    return op.slice(frames, _int64(starts), _int64(ends), _int64(axes))


def _int64(values: Sequence[int]) -> Var:
    return op.const(np.array(values, np.int64))
