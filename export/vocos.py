"""Vocos: mel -> waveform, the inverse STFT included."""

from __future__ import annotations

import torch
from torch import nn

from chattts_serving.audio import HOP_LENGTH, N_FFT
from export.convnext import ConvNeXtBlock, Weights, convolve
from export.fourier import inverse_basis

MAX_MAGNITUDE = 1e2  # ISTFTHead of vocos clips here
QUARTERS = N_FFT // HOP_LENGTH  # a window covers four hops; every hop is the sum of four windows' quarters
FRAMES_BEFORE, FRAMES_AFTER = 1, 2  # the windows that reach into hop j are those of the frames j - 1 to j + 2


class OverlapAdd(nn.Module):
    """Windows -> waveform, as torch.istft(center=True) does for every run of real frames alone.

    Frame f is centred on sample f * HOP_LENGTH, so hop j lies between the frames j and j + 1 and is real where both
    are: a run of the frames [a, b) gives the samples from a * HOP_LENGTH to (b - 1) * HOP_LENGTH. All others are 0.
    """

    envelope: torch.Tensor

    def __init__(self, window: torch.Tensor) -> None:
        """Take the synthesis window, [N_FFT]."""
        super().__init__()
        self.register_buffer("envelope", window.square().reshape(QUARTERS, HOP_LENGTH))

    def forward(self, windows: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Windowed signals [B, F, N_FFT], 0 where the mask [B, F, 1] is -> [B, F * HOP_LENGTH]."""
        frames = mask.shape[1]
        around = (0, 0, FRAMES_BEFORE, FRAMES_AFTER)
        windows = nn.functional.pad(windows, around)
        mask = nn.functional.pad(mask, around)
        # The first quarter of a hop's sum comes from the latest window, that of the frame j + 2.
        at = [slice(start, start + frames) for start in range(QUARTERS - 1, -1, -1)]
        quarters = [slice(start, start + HOP_LENGTH) for start in range(0, N_FFT, HOP_LENGTH)]
        total = sum(windows[:, time, quarter] for time, quarter in zip(at, quarters, strict=True))
        weight = torch.cat([mask[:, time] for time in at], dim=2) @ self.envelope
        real = mask[:, at[1]] * mask[:, at[2]]  # the frames j + 1 and j
        # A Hann window and its neighbour weigh 0.5 together at least, so the bound holds off only divisions by 0.
        return (total * real / weight.clamp(min=0.25)).flatten(1)


class Vocos(nn.Module):
    """Backbone of ConvNeXt blocks, a head that predicts the spectrum, and the inverse STFT."""

    inverse: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        """Take the tensors of Vocos.safetensors."""
        super().__init__()
        backbone = weights.below("backbone")
        self.embed = backbone.conv("embed")
        self.norm = backbone.layer_norm("norm")
        self.blocks = nn.ModuleList(ConvNeXtBlock(part, scale="gamma") for part in backbone.parts("convnext"))
        self.final_norm = backbone.layer_norm("final_layer_norm")
        self.head = weights.linear("head.out")
        self.register_buffer("inverse", inverse_basis(weights["head.istft.window"]))
        self.overlap_add = OverlapAdd(weights["head.istft.window"])

    def half(self) -> Vocos:
        """Make everything float16 but the spectrum and its inverse transform: small errors of a phase add up there."""
        for part in (self.embed, self.norm, self.blocks, self.final_norm, self.head):
            part.half()
        return self

    def forward(self, mel: torch.Tensor, mel_mask: torch.Tensor) -> torch.Tensor:
        """Log mel [B, F, NUM_MELS], mel_mask [B, F] (1 = real) -> waveform [B, F * HOP_LENGTH], 24 kHz."""
        mask = mel_mask.unsqueeze(2)
        log_magnitude, phase = self._spectrum(mel.to(self.embed.weight.dtype), mask.to(self.embed.weight.dtype))
        magnitude = log_magnitude.exp().clamp(max=MAX_MAGNITUDE) * mask
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], dim=2)
        waveform: torch.Tensor = self.overlap_add(spectrum @ self.inverse, mask)
        return waveform

    def _spectrum(self, mel: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Log magnitude and phase of each frame, float32 [B, F, NUM_BINS]."""
        frames = self.norm(convolve(self.embed, mel, mask))
        for block in self.blocks:
            frames = block(frames, mask)
        # The mask only keeps the last block's addition and the normalisation apart. ONNX Runtime would make one
        # SkipLayerNormalization of them, which is five times as slow on a CPU.
        spectrum: torch.Tensor = self.head(self.final_norm(frames * mask))
        return spectrum.float().chunk(2, dim=2)
