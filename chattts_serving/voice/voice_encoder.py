"""From a reference recording to the `speaker_sample` string that clones its voice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError
from chattts_serving.voice.speaker import encode_sample

MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 16_000, 192_000  # Hz
MIN_SECONDS, MAX_SECONDS = 1, 30  # 46 to 1,406 audio tokens of the prompt
MAX_PEAK = 2.0  # full scale is 1; conversions overshoot a little, 16-bit integers sent as floats by far
MIN_RMS = 1e-3  # about the mean; -60 dB of full scale, below the noise of a quiet room

Samples = npt.NDArray[np.float32]
Codes = npt.NDArray[np.integer[Any]]


def speaker_sample(audio: Samples, sample_rate: int, encode: Callable[[Samples], Codes]) -> tuple[str, int]:
    """The `spk_smp` string of a recording and its number of audio tokens.

    Args:
        audio: mono samples, about -1 to 1, float32 [N] of MIN_SECONDS to MAX_SECONDS.
        sample_rate: of `audio`, MIN_SAMPLE_RATE to MAX_SAMPLE_RATE.
        encode: samples at 24 kHz, float32 [N] -> codes [num_tokens, 4].

    Raises:
        InvalidInputError: no voice can be taken from the recording.
    """
    check_recording(audio, sample_rate)
    codes = encode(resample(audio, sample_rate))
    return encode_sample(codes), len(codes)


def resample(audio: Samples, sample_rate: int) -> Samples:
    """`audio`, float32 [N], at 24 kHz; unchanged where it is."""
    if sample_rate == SAMPLE_RATE:
        return audio
    resampled: Samples = soxr.resample(audio, sample_rate, SAMPLE_RATE)
    return resampled


def check_recording(audio: Samples, sample_rate: int) -> None:
    """Refuse a recording that no voice can be taken from.

    Raises:
        InvalidInputError: says which of `audio` and `sample_rate` is wrong, and why.
    """
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        why = "; less holds too little of the 12 kHz that the encoder hears" if sample_rate < MIN_SAMPLE_RATE else ""
        raise InvalidInputError("sample_rate", sample_rate, f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz{why}")
    if audio.ndim != 1:
        raise InvalidInputError("audio", f"of shape {list(audio.shape)}", "one channel of samples")
    if not MIN_SECONDS * sample_rate <= len(audio) <= MAX_SECONDS * sample_rate:
        seconds = f"{len(audio)} samples, {len(audio) / sample_rate:.2f} s at {sample_rate} Hz"
        raise InvalidInputError("audio", seconds, f"{MIN_SECONDS} to {MAX_SECONDS} s")
    if not np.isfinite(audio).all():
        raise InvalidInputError("audio", f"not finite from sample {np.isfinite(audio).argmin()} on", "finite samples")
    peak = float(np.abs(audio).max())
    if peak > MAX_PEAK:
        allowed = f"samples of about -1 to 1, at most {MAX_PEAK:g}; divide 16-bit integers by 32768"
        raise InvalidInputError("audio", f"up to {peak:g}", allowed)
    rms = float(audio.std(dtype=np.float64))
    if rms < MIN_RMS:
        raise InvalidInputError("audio", f"silent: {rms:.2g} RMS about its mean", f"speech of {MIN_RMS:g} RMS or more")
