"""Training of the codec (the DVAE) and the vocoder, both on short pieces of the corpus."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch

from chattts_serving.audio import SAMPLES_PER_TOKEN
from training.loop import train
from training.modules import Codec, LogMel, Vocoder
from training.settings import SIZES
from training.utterances import recordings

CODEC_FILE, VOCODER_FILE = "codec.pt", "vocoder.pt"
FFT_SIZES = (2048, 1024, 512, 256)  # of the vocoder's loss
BAND_SCALE_PIECES = 512  # from which the scale of each mel band is taken


class Pieces:
    """Pieces of recordings, drawn at random: float32 [B, tokens * SAMPLES_PER_TOKEN]."""

    def __init__(self, folder: Path, voices: list[str], tokens: int, seed: int) -> None:
        """Of `tokens` audio tokens each, of all `voices` alike."""
        self._files = [recordings(folder, voice) for voice in voices]
        self._samples = tokens * SAMPLES_PER_TOKEN
        self._rng = np.random.default_rng(seed)

    def draw(self, number: int) -> torch.Tensor:
        """`number` of them."""
        pieces = []
        for _ in range(number):
            file = self._files[self._rng.integers(len(self._files))]
            start = self._rng.integers(len(file) - self._samples)
            pieces.append(file[start : start + self._samples])
        return torch.from_numpy(np.stack(pieces).astype(np.float32) / 32768)


def train_codec(folder: Path, voices: list[str], minutes: float, batch: int = 32, tokens: int = 48) -> Codec:
    """Train for `minutes`, or go on where `folder` has a codec; L1 of log mel, each band by its scale."""
    pieces, log_mel = Pieces(folder, voices, tokens, int(time.time())), LogMel()
    codec = Codec(SIZES.dvae_encoder, SIZES.dvae_decoder)
    if not (folder / CODEC_FILE).exists():
        codec.tail.coef = band_scale(log_mel(pieces.draw(BAND_SCALE_PIECES)))

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        mel = log_mel(pieces.draw(batch))[..., :-1]
        difference = (codec(mel) - mel).abs()
        loss = (difference / codec.tail.coef).mean()
        return loss, {"loss": loss, "mel": difference.mean()}

    train(codec, losses, folder / CODEC_FILE, minutes, rate=2e-3)
    return codec


def train_vocoder(folder: Path, voices: list[str], minutes: float, batch: int = 16, tokens: int = 32) -> Vocoder:
    """Train for `minutes`, or go on; the loss is that of magnitudes at several resolutions (Yamamoto et al. 2020)."""
    pieces, log_mel = Pieces(folder, voices, tokens, int(time.time())), LogMel()
    vocoder = Vocoder(SIZES.vocos)

    def losses() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        audio = pieces.draw(batch)
        made = vocoder(log_mel(audio))
        loss = magnitude_loss(made, audio[:, : made.shape[1]])
        return loss, {"loss": loss}

    train(vocoder, losses, folder / VOCODER_FILE, minutes, rate=1e-3)
    return vocoder


def magnitude_loss(made: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
    """How far the magnitudes of two waveforms [B, N] are apart: of logarithms, and of the spectra as wholes."""
    total = made.new_zeros(())
    for size in FFT_SIZES:
        window = torch.hann_window(size)
        one, other = (torch.stft(x, size, size // 4, window=window, return_complex=True).abs() for x in (made, audio))
        total = total + (one.clamp(min=1e-4).log() - other.clamp(min=1e-4).log()).abs().mean()
        total = total + torch.linalg.vector_norm(one - other) / torch.linalg.vector_norm(other)
    return total / len(FFT_SIZES)


def band_scale(mel: torch.Tensor) -> torch.Tensor:
    """The standard deviation of each band of log mels [B, bands, F], at least 0.3, as `coef` [1, bands, 1]."""
    return mel.std(dim=(0, 2)).clamp(min=0.3)[None, :, None]


@torch.inference_mode()
def encode(codec: Codec, folder: Path, voice: str, chunk_tokens: int = 4096, margin: int = 64) -> None:
    """Write the codes of all recordings of `voice`, uint16 [tokens, codebooks]: `VOICE.codes.npy`."""
    samples, log_mel = recordings(folder, voice), LogMel()
    num_tokens = len(samples) // SAMPLES_PER_TOKEN
    codes = []
    for start in range(0, num_tokens, chunk_tokens):
        end = min(start + chunk_tokens, num_tokens)
        first, last = max(0, start - margin), min(num_tokens, end + margin)
        part = samples[first * SAMPLES_PER_TOKEN : last * SAMPLES_PER_TOKEN].astype(np.float32) / 32768
        found = codec.encode(log_mel(torch.from_numpy(part)[None])[..., :-1])[1][0]
        codes.append(found[start - first : end - first].numpy().astype(np.uint16))
    np.save(folder / f"{voice}.codes.npy", np.concatenate(codes))
