"""Reference recordings: what the model `voice_encoder` takes, checked as far as that is possible here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chattts_client.audio_file import LIBRARY, NEEDS_LIBRARY
from chattts_client.errors import invalid_input
from chattts_client.options import InputTensor

MODEL = "voice_encoder"
MAX_SECONDS = 30  # the server's limit
INT32_MAX = 2**31 - 1


def read_recording(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """Samples [num_samples] and sample rate of an audio file in any format that libsndfile knows, MP3 included.

    Raises:
        InvalidInputError: it is no audio file, `recording_tensors` would not take it, or nothing that reads it is
            installed.
        OSError: it cannot be read.
    """
    with opened(path) as sound:
        if sound.channels != 1:
            allowed = f"an audio file of one channel; it has {sound.channels}"
            raise invalid_input("recording", Path(path).name, allowed)
        most = MAX_SECONDS * sound.samplerate
        audio: NDArray[np.float32] = sound.read(most + 1, dtype="float32")
        sample_rate: int = sound.samplerate
    recording_tensors(audio, sample_rate)
    return audio, sample_rate


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """An audio file as a `soundfile.SoundFile`, for the length of a block that reads it.

    Raises:
        InvalidInputError: it is no audio file, or nothing that reads it is installed.
        OSError: it cannot be read.
    """
    shown = Path(path).name
    try:
        soundfile = importlib.import_module(LIBRARY)
    except ImportError as error:
        raise invalid_input("recording", shown, f"no file: reading one needs {NEEDS_LIBRARY}") from error
    try:
        with Path(path).open("rb") as file, soundfile.SoundFile(file) as sound:
            yield sound
    except soundfile.LibsndfileError as error:  # a RuntimeError
        reason = error.error_string.rstrip(".")
        raise invalid_input("recording", shown, f"an audio file; libsndfile says: {reason}") from error


def recording_tensors(audio: NDArray[Any], sample_rate: int) -> list[InputTensor]:
    """The inputs of `voice_encoder`: `audio` is floating point [num_samples], -1 to 1, at `sample_rate` Hz.

    Raises:
        InvalidInputError: a value is none of these, there is no sample, or more than MAX_SECONDS of them.
    """
    if isinstance(sample_rate, bool) or not isinstance(sample_rate, (int, np.integer)):
        raise invalid_input("sample_rate", sample_rate, "an integer")
    if not 0 < sample_rate <= INT32_MAX:
        raise invalid_input("sample_rate", sample_rate, f"1 to {INT32_MAX} Hz")
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise invalid_input("audio", f"{audio.dtype} {list(audio.shape)}", "floating point samples of one channel, [n]")
    if not 0 < len(audio) <= MAX_SECONDS * sample_rate:
        raise invalid_input("audio", f"{len(audio)} samples", f"above 0 to {MAX_SECONDS} s of samples")
    with np.errstate(over="ignore"):  # what overflows is refused as infinite
        samples = audio.astype(np.float32)
    if not np.isfinite(samples).all():
        raise invalid_input("audio", samples[~np.isfinite(samples)][0], "samples that are finite numbers")
    return [
        InputTensor("audio", "FP32", samples[None]),  # [1, n]
        InputTensor("sample_rate", "INT32", np.array([[sample_rate]], np.int32)),
    ]
