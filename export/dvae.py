"""The two halves of ChatTTS's DVAE that are served: hidden states -> mel, and waveform -> audio codes."""

from __future__ import annotations

import torch
from torch import nn

from chattts_serving.audio import FRAMES_PER_TOKEN, HOP_LENGTH, N_FFT
from export.convnext import ConvNeXtBlock, Weights, convolve
from export.fourier import forward_basis

DILATION = 2  # of every ConvNeXt block here; DVAEDecoder's default, which no configuration changes
MIN_MEL = 1e-5  # mel magnitudes are clipped here before the logarithm
LEVELS = 5  # values of one quantized dimension
MAX_INPUT = 1 + 1 / (LEVELS - 1)  # the quantizer bends its input softly into [-1.25, 1.25]
NUM_RESIDUALS = 2  # quantizers of a group; each quantizes what the one before it left over
MIN_ENCODER_SAMPLES = N_FFT // 2 + 1  # the reflection at both ends needs one sample more than it mirrors


class ConvNeXtStack(nn.Module):
    """`DVAEDecoder` of ChatTTS: [B, F, inputs], mask [B, F, 1] -> [B, F, outputs]."""

    def __init__(self, weights: Weights) -> None:
        """Take the tensors of one stack: conv_in, decoder_block and conv_out."""
        super().__init__()
        self.narrow = weights.conv("conv_in.0")
        self.widen = weights.conv("conv_in.2")
        parts = weights.parts("decoder_block")
        self.blocks = nn.ModuleList(ConvNeXtBlock(part, scale="weight", dilation=DILATION) for part in parts)
        self.out = weights.conv("conv_out")

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Run the stack."""
        frames = nn.functional.gelu(convolve(self.narrow, frames, mask))
        frames = convolve(self.widen, frames, mask)
        for block in self.blocks:
            frames = block(frames, mask)
        return convolve(self.out, frames, mask)


class DvaeDecoder(nn.Module):
    """Hidden states of the language model -> log mel: `DVAE.forward` of ChatTTS without a quantizer."""

    def __init__(self, weights: Weights) -> None:
        """Take the tensors of Decoder.safetensors; the mel scale `coef` is folded into the last convolution."""
        super().__init__()
        self.decoder = ConvNeXtStack(weights.below("decoder"))
        self.out = weights.conv("out_conv")
        with torch.no_grad():
            self.out.weight.mul_(weights["coef"].reshape(-1, 1, 1, 1))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden [B, T, H], mask [B, T] (1 = real) -> mel [B, 2T, NUM_MELS], 0 where mel_mask [B, 2T] is."""
        # The first half of a hidden state is the earlier of its token's two frames.
        frames = hidden.reshape(hidden.shape[0], -1, hidden.shape[2] // FRAMES_PER_TOKEN)
        mel_mask = torch.stack([mask] * FRAMES_PER_TOKEN, dim=2).flatten(1)
        dtype = self.out.weight.dtype
        frame_mask = mel_mask.unsqueeze(2).to(dtype)
        mel = convolve(self.out, self.decoder(frames.to(dtype), frame_mask), frame_mask)
        return (mel * frame_mask).float(), mel_mask


class LogMel(nn.Module):
    """Waveform -> log mel, as torchaudio's MelSpectrogram(power=1, center=True) and a clipped logarithm."""

    basis: torch.Tensor
    mel_filters: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        """Take the analysis window [N_FFT] and the mel filters [N_FFT / 2 + 1, NUM_MELS]."""
        super().__init__()
        self.register_buffer("basis", forward_basis(weights["mel_spec.spectrogram.window"]))
        self.register_buffer("mel_filters", weights["mel_spec.mel_scale.fb"])

    def forward(self, audio: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        """Audio [B, N], lengths int64 [B, 1] -> [B, 1 + N // HOP_LENGTH, NUM_MELS], undefined past a row's length."""
        num_hops = audio.shape[1] // HOP_LENGTH
        hops = self._reflected(audio, num_samples, num_hops + N_FFT // HOP_LENGTH)
        hops = hops.reshape(audio.shape[0], -1, HOP_LENGTH)
        windows = torch.cat([hops[:, start : start + num_hops + 1] for start in range(N_FFT // HOP_LENGTH)], dim=2)
        # In float64: a sum of 1,024 float32 terms leaves more noise than an FFT in the quiet bands beside a loud one.
        real, imaginary = (windows.double() @ self.basis).chunk(2, dim=2)
        mel = (real.square() + imaginary.square()).sqrt().float() @ self.mel_filters
        return mel.clamp(min=MIN_MEL).log()

    @staticmethod
    def _reflected(audio: torch.Tensor, num_samples: torch.Tensor, num_hops: int) -> torch.Tensor:
        """[B, num_hops * HOP_LENGTH]: each row with half a window in front and behind, mirrored at its own ends."""
        position = (torch.arange(num_hops * HOP_LENGTH, device=audio.device) - N_FFT // 2).abs().unsqueeze(0)
        last = num_samples - 1
        source = last - (last - position).abs()
        return audio.gather(1, source.clamp(min=0))


class Quantizer(nn.Module):
    """Finite scalar quantization in groups, with residuals: `GroupedResidualFSQ` of vector_quantize_pytorch 1.32.

    Every dimension takes one of LEVELS values; the levels of a group's dimensions are the digits of its code.
    """

    digits: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        """Take each group's projection to the quantized dimensions."""
        super().__init__()
        self.project = nn.ModuleList(part.linear("project_in") for part in weights.parts("rvqs"))
        num_dimensions = weights["rvqs.0.project_in.weight"].shape[0]
        self.register_buffer("digits", LEVELS ** torch.arange(num_dimensions, dtype=torch.float32))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, T, C] -> codes int32 [B, T, groups * NUM_RESIDUALS], a group's residuals side by side."""
        groups = features.chunk(len(self.project), dim=2)
        codes = [self._quantize(project(group)) for project, group in zip(self.project, groups, strict=True)]
        return torch.cat(codes, dim=2).int()

    def _quantize(self, values: torch.Tensor) -> torch.Tensor:
        """[B, T, dimensions] -> float codes [B, T, NUM_RESIDUALS]."""
        left = (values / MAX_INPUT).tanh() * MAX_INPUT
        codes = []
        for residual in range(NUM_RESIDUALS):
            scale = LEVELS**-residual
            level = ((LEVELS - 1) * ((left / scale).clamp(-1, 1) + 1) / 2 + 0.5).floor()
            left = left - (level * (2 / (LEVELS - 1)) - 1) * scale
            codes.append((level * self.digits).sum(dim=2))
        return torch.stack(codes, dim=2)


class DvaeEncoder(nn.Module):
    """Waveform -> audio codes: `DVAE.sample_audio` of ChatTTS."""

    coef: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        """Take the tensors of DVAE.safetensors."""
        super().__init__()
        self.log_mel = LogMel(weights.below("preprocessor_mel"))
        self.register_buffer("coef", weights["coef"].reshape(-1))
        self.widen = weights.conv("downsample_conv.0")
        self.halve = weights.conv("downsample_conv.2", stride=FRAMES_PER_TOKEN, padding=1)
        self.encoder = ConvNeXtStack(weights.below("encoder"))
        self.quantizer = Quantizer(weights.below("vq_layer.quantizer"))

    def forward(self, audio: torch.Tensor, num_samples: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode rows of different lengths.

        Args:
            audio: [B, N] at 24 kHz.
            num_samples: int32 [B, 1], the true length of each row, MIN_ENCODER_SAMPLES to N.

        Returns:
            Codes int32 [B, T, 4] and num_tokens int32 [B, 1]; codes past a row's tokens are 0.
        """
        lengths = num_samples.long()
        num_frames = 1 + lengths // HOP_LENGTH
        num_tokens = num_frames // FRAMES_PER_TOKEN
        mel = self.log_mel(audio, lengths) / self.coef
        frame_mask = _length_mask(num_frames, mel)
        frames = nn.functional.gelu(convolve(self.widen, mel, frame_mask))
        tokens = nn.functional.gelu(convolve(self.halve, frames, frame_mask))
        token_mask = _length_mask(num_tokens, tokens)
        codes = self.quantizer(self.encoder(tokens, token_mask))
        return codes * token_mask.int(), num_tokens.int()


def _length_mask(lengths: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """float32 [B, F, 1]: 1 on the first `lengths` [B, 1] of the F `frames`."""
    return (torch.arange(frames.shape[1], device=frames.device) < lengths).unsqueeze(2).float()
