"""The audio format of ChatTTS, derived once with units."""

from __future__ import annotations

SAMPLE_RATE = 24_000  # Hz, mono
HOP_LENGTH = 256  # samples per mel frame
N_FFT = 1_024  # samples per STFT window
NUM_MELS = 100  # mel bands
FRAMES_PER_TOKEN = 2  # mel frames per audio token (the decoder unfolds a token into two frames)
# How far decoder and vocoder see to each side of a token. Decoder: three convolutions of 3 frames and 12 of 7 at
# dilation 2, 3 + 12 * 6; Vocos: 9 convolutions of 7 and the inverse STFT, 9 * 3 + 2. Together 104 frames, two a token.
# Models that see less wait as long.
CONTEXT_TOKENS = 52
# Where what follows is not known yet, the last hidden state is held for so many tokens: guesses, which are not kept.
HELD_TOKENS = 3
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * HOP_LENGTH  # 512 samples = 21.33 ms


def num_samples(num_tokens: int) -> int:
    """Samples of audio that `num_tokens` audio tokens make.

    A "center" iSTFT of F frames has (F - 1) * HOP_LENGTH samples (torch.istft), so the last frame adds none.
    """
    return max(0, (FRAMES_PER_TOKEN * num_tokens - 1) * HOP_LENGTH)
