"""Decoder and vocoder in PyTorch, with random weights: what `export` writes as ONNX, where no ONNX Runtime has a GPU.

Tensors have the names of ChatTTS's checkpoints (`export.layout`); sequences are [batch, channels, time].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from chattts_serving.audio import FRAMES_PER_TOKEN, HOP_LENGTH, N_FFT
from export.layout import DECODER_FILE, VOCOS_FILE, Sizes, tensor_shapes

DILATION = 2  # of the decoder's blocks
EPS = 1e-6
MAX_MAGNITUDE = 1e2

Array = npt.NDArray[np.float32]
Tensors = Mapping[str, torch.Tensor]


class Renderer:
    """Hidden states to samples, without masks: every row is whole."""

    def __init__(self, decoder: Tensors, vocoder: Tensors) -> None:
        """Take the tensors of Decoder.safetensors and Vocos.safetensors, of one device and type."""
        self._decoder, self._vocoder = decoder, vocoder
        self._window = vocoder["head.istft.window"].float()
        self._dtype = vocoder["backbone.embed.weight"].dtype

    @classmethod
    def random(cls, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Renderer:
        """With random weights of unit gain, drawn on `device`."""
        generator = torch.Generator(device).manual_seed(0)
        shapes = tensor_shapes(sizes)
        decoder, vocoder = (
            {name: _random(name, shape, generator).to(dtype) for name, shape in shapes[file].items()}
            for file in (DECODER_FILE, VOCOS_FILE)
        )
        return cls(decoder, vocoder)

    def arrays(self) -> tuple[dict[str, Array], dict[str, Array]]:
        """The tensors of decoder and vocoder, float32 on the host."""
        decoder, vocoder = (
            {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
            for tensors in (self._decoder, self._vocoder)
        )
        return decoder, vocoder

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states float32 [B, T, H] -> samples float32 [B, (2T - 1) * HOP_LENGTH]."""
        return self.samples(self.mel(hidden))

    def mel(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, T, H] -> log mel [B, NUM_MELS, 2T]; a token's first half is its earlier frame."""
        weights = self._decoder
        frames = hidden.to(self._dtype).reshape(len(hidden), FRAMES_PER_TOKEN * hidden.shape[1], -1).transpose(1, 2)
        frames = _conv(weights, "decoder.conv_in.2", F.gelu(_conv(weights, "decoder.conv_in.0", frames)))
        for block in _blocks(weights, "decoder.decoder_block"):
            frames = _convnext(weights, block, frames, "weight", DILATION)
        frames = _conv(weights, "decoder.conv_out", frames)
        return _conv(weights, "out_conv", frames) * weights["coef"]

    def samples(self, mel: torch.Tensor) -> torch.Tensor:
        """Log mel [B, NUM_MELS, F] -> samples float32 [B, (F - 1) * HOP_LENGTH]; spectra are float32."""
        weights = self._vocoder
        frames = _norm(weights, "backbone.norm", _conv(weights, "backbone.embed", mel.to(self._dtype)).transpose(1, 2))
        frames = frames.transpose(1, 2)
        for block in _blocks(weights, "backbone.convnext"):
            frames = _convnext(weights, block, frames, "gamma", 1)
        frames = _norm(weights, "backbone.final_layer_norm", frames.transpose(1, 2))
        magnitude, phase = _linear(weights, "head.out", frames).float().transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=MAX_MAGNITUDE), phase)
        windows = torch.fft.irfft(spectrum, n=N_FFT, dim=1) * self._window[:, None]
        return self._overlapped(windows)

    def _overlapped(self, windows: torch.Tensor) -> torch.Tensor:
        """Windows [B, N_FFT, F] added up, as torch.istft(center=True), which waits for the GPU and so fits no graph."""
        size = (1, (windows.shape[2] - 1) * HOP_LENGTH + N_FFT)

        def added(columns: torch.Tensor) -> torch.Tensor:
            return F.fold(columns, size, (1, N_FFT), stride=(1, HOP_LENGTH)).flatten(1)

        envelope = added(self._window.square()[None, :, None].expand(1, -1, windows.shape[2]))
        inside = slice(N_FFT // 2, -(N_FFT // 2))
        return added(windows)[:, inside] / envelope[:, inside]


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if name.endswith("window"):
        return torch.hann_window(*shape, device=generator.device)
    if name.endswith("bias"):
        return torch.zeros(shape, device=generator.device)
    if len(shape) == 1 or name == "coef":  # of a normalisation, or of a block's output
        return torch.full(shape, 1.0 if "norm" in name or name == "coef" else 0.1, device=generator.device)
    drawn = torch.randn(shape, generator=generator, device=generator.device)
    return drawn / math.sqrt(math.prod(shape[1:]))


def _blocks(weights: Tensors, prefix: str) -> list[str]:
    start = len(prefix) + 1
    count = len({name[start:].split(".")[0] for name in weights if name.startswith(f"{prefix}.")})
    return [f"{prefix}.{number}" for number in range(count)]


def _convnext(weights: Tensors, block: str, frames: torch.Tensor, scale: str, dilation: int) -> torch.Tensor:
    mixed = _norm(weights, f"{block}.norm", _conv(weights, f"{block}.dwconv", frames, dilation).transpose(1, 2))
    widened = F.gelu(_linear(weights, f"{block}.pwconv1", mixed))
    added = _linear(weights, f"{block}.pwconv2", widened) * weights[f"{block}.{scale}"]
    return frames + added.transpose(1, 2)


def _conv(weights: Tensors, name: str, frames: torch.Tensor, dilation: int = 1) -> torch.Tensor:
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    groups = frames.shape[1] // weight.shape[1]
    return F.conv1d(frames, weight, bias, padding=dilation * (weight.shape[2] // 2), dilation=dilation, groups=groups)


def _linear(weights: Tensors, name: str, values: torch.Tensor) -> torch.Tensor:
    return F.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Tensors, name: str, values: torch.Tensor) -> torch.Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.layer_norm(values, weight.shape, weight, bias, EPS)
