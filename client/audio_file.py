"""Audio files by ending, written whole or not at all."""

from __future__ import annotations

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from client.errors import invalid_input

# libsndfile's Vorbis encoder crashes on one long write: it takes stack for all of it (measured: 10 s
# pass, 120 s end the process).
FRAMES_PER_WRITE = 16_384


class AudioFormat(NamedTuple):
    """A container and an encoding, by libsndfile's names."""

    container: str
    encoding: str


WAV = AudioFormat("WAV", "PCM_16")
WAV_FLOAT = AudioFormat("WAV", "FLOAT")
FORMATS = {
    ".wav": WAV,
    ".flac": AudioFormat("FLAC", "PCM_16"),
    ".ogg": AudioFormat("OGG", "VORBIS"),
    ".mp3": AudioFormat("MP3", "MPEG_LAYER_III"),
}


def audio_format(path: str | os.PathLike[str], *, floating: bool = False) -> AudioFormat:
    """The format that the ending of `path` names; `floating`: 32-bit floating point samples, WAV only.

    Raises:
        InvalidInputError: the ending is unknown, or its format has no floating point samples.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise invalid_input("output", os.fspath(path), f"a file name that ends in {', '.join(FORMATS)}")
    if not floating:
        return FORMATS[ending]
    if ending != ".wav":
        raise invalid_input("output", os.fspath(path), "a file name that ends in .wav, for floating point samples")
    return WAV_FLOAT


def encoded(audio: NDArray[np.float32], sample_rate: int, form: AudioFormat) -> bytes:
    """The file of `audio` [num_samples] at `sample_rate` Hz; 16-bit samples are clipped to -1 to 1.

    Raises:
        InvalidInputError: there is no sample; FLAC and MP3 cannot hold that.
        OSError: libsndfile cannot encode it.
    """
    if not len(audio):
        raise invalid_input("audio", [], "1 or more samples")
    buffer = io.BytesIO()
    try:
        with soundfile.SoundFile(
            buffer, "w", samplerate=sample_rate, channels=1, format=form.container, subtype=form.encoding
        ) as file:
            for start in range(0, len(audio), FRAMES_PER_WRITE):
                file.write(audio[start : start + FRAMES_PER_WRITE])
    except soundfile.LibsndfileError as error:  # a RuntimeError
        raise OSError(f"libsndfile cannot write {form.container} at {sample_rate} Hz: {error.error_string}") from error
    return buffer.getvalue()


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, replacing what is there; after an error nothing has changed.

    Raises:
        OSError: the file cannot be written.
    """
    target = Path(path).resolve()  # a symbolic link keeps pointing to its file
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def save(path: str | os.PathLike[str], audio: NDArray[Any], sample_rate: int, *, floating: bool = False) -> None:
    """Write `audio` [num_samples] at `sample_rate` Hz in the format that the ending of `path` names.

    Raises:
        InvalidInputError: as `audio_format` and `encoded`.
        OSError: the audio cannot be encoded, or the file not written.
    """
    form = audio_format(path, floating=floating)
    write_whole(path, encoded(audio, sample_rate, form))
