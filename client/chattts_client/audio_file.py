"""Audio files by ending, written whole or not at all."""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import struct
import wave
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chattts_client.errors import invalid_input

# libsndfile's Vorbis encoder crashes on one long write: it takes stack for all of it (measured: 10 s
# pass, 120 s end the process).
FRAMES_PER_WRITE = 16_384
INT16_MAX = 32_767
INT16_STEPS = 32_768  # of a sample between 0 and 1
# In every file, where players show comments. The word in brackets is IPTC's for what a trained model has made
# (https://cv.iptc.org/newscodes/digitalsourcetype).
MARK = "AI-generated speech (trainedAlgorithmicMedia), made with ChatTTS"
LIBRARY = "soundfile"  # of the extra `audio`; 16-bit WAV does without
NEEDS_LIBRARY = f"the package {LIBRARY} (pip install 'chattts-client[audio]')"


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
        InvalidInputError: the ending is unknown, its format has no floating point samples, or what writes it is not
            installed.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise invalid_input("output", os.fspath(path), f"a file name that ends in {', '.join(FORMATS)}")
    if floating and ending != ".wav":
        raise invalid_input("output", os.fspath(path), "a file name that ends in .wav, for floating point samples")
    form = WAV_FLOAT if floating else FORMATS[ending]
    if form != WAV and importlib.util.find_spec(LIBRARY) is None:
        kind = "floating point samples" if floating else "other endings"
        raise invalid_input("output", os.fspath(path), f"16-bit .wav; {kind} need {NEEDS_LIBRARY}")
    return form


def encoded(audio: NDArray[np.float32], sample_rate: int, form: AudioFormat) -> bytes:
    """The file of `audio` [num_samples] at `sample_rate` Hz; 16-bit samples are clipped to -1 to 1.

    Raises:
        InvalidInputError: there is no sample; FLAC and MP3 cannot hold that.
        OSError: libsndfile cannot encode it.
    """
    buffer = io.BytesIO()
    with Encoder(buffer, form) as encoder:
        encoder.write(audio, sample_rate)
    return buffer.getvalue()


class Encoder:
    """An audio file that is written piece by piece; the first piece's sample rate is that of all.

    Leaving the `with` block without an error raises InvalidInputError where no sample was written, since FLAC and MP3
    cannot hold that.
    """

    def __init__(self, target: Any, form: AudioFormat) -> None:
        """`target` is a path or a binary file, `form` what to write there."""
        self._target = target
        self._form = form
        self._file: Any = None
        self._wav: Any = None  # what the module wave writes to
        self._start = 0  # of the file in it

    def write(self, audio: NDArray[np.float32], sample_rate: int) -> None:
        """Append `audio` [num_samples] at `sample_rate` Hz; 16-bit samples are clipped to -1 to 1.

        Raises:
            OSError: libsndfile cannot encode or write it.
        """
        if not len(audio):
            return
        if self._form == WAV:
            if self._file is None:
                self._wav = self._target if hasattr(self._target, "write") else Path(self._target).open("wb")  # noqa: SIM115
                self._start = self._wav.tell()
                self._file = wave.open(self._wav, "wb")  # noqa: SIM115 - both are closed by __exit__
                self._file.setparams((1, 2, sample_rate, 0, "NONE", "not compressed"))
            steps = np.rint(np.clip(audio, -1, 1) * INT16_STEPS).clip(max=INT16_MAX)
            self._file.writeframes(steps.astype("<i2").tobytes())
            return
        container, encoding = self._form
        with _os_errors(f"{container} at {sample_rate} Hz"):
            if self._file is None:
                self._file = importlib.import_module(LIBRARY).SoundFile(
                    self._target, "w", samplerate=sample_rate, channels=1, format=container, subtype=encoding
                )
                self._file.comment = MARK
            for start in range(0, len(audio), FRAMES_PER_WRITE):
                self._file.write(audio[start : start + FRAMES_PER_WRITE])

    def __enter__(self) -> Encoder:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the file."""
        if self._file is not None:
            try:
                with _os_errors(self._form.container):
                    self._file.close()
                if self._wav is not None:
                    _mark_wav(self._wav, self._start)
            finally:
                if self._wav is not None and self._wav is not self._target:
                    self._wav.close()
        elif kind is None:
            raise invalid_input("audio", [], "1 or more samples")


def _mark_wav(file: Any, start: int) -> None:
    """Append MARK to the WAV file that begins at `start` of `file` and ends where that does, as RIFF INFO's comment."""
    text = MARK.encode("ascii") + b"\0"
    text += b"\0" * (len(text) % 2)
    file.write(struct.pack("<4sI4s4sI", b"LIST", 12 + len(text), b"INFO", b"ICMT", len(text)) + text)
    size = file.tell() - start - 8
    file.seek(start + 4)
    file.write(struct.pack("<I", size))
    file.seek(0, io.SEEK_END)


@contextmanager
def _os_errors(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # soundfile.LibsndfileError
        raise OSError(f"libsndfile cannot write {what}: {getattr(error, 'error_string', error)}") from error


def pcm(audio: NDArray[np.float32], *, floating: bool = False) -> bytes:
    """Samples without a header, little-endian: 16-bit integers, clipped to -1 to 1, or `floating` 32-bit floats."""
    samples = audio.astype("<f4") if floating else np.round(np.clip(audio, -1, 1) * INT16_MAX).astype("<i2")
    return bytes(samples.tobytes())


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file to write in place of `path`: it replaces it at the end of the block; after an error nothing has changed.

    Raises:
        OSError: the file cannot be put in place.
    """
    target = Path(path).resolve()  # a symbolic link keeps pointing to its file
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, replacing what is there; after an error nothing has changed.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing(path) as part:
        part.write_bytes(data)


def save(path: str | os.PathLike[str], audio: NDArray[Any], sample_rate: int, *, floating: bool = False) -> None:
    """Write `audio` [num_samples] at `sample_rate` Hz in the format that the ending of `path` names.

    Raises:
        InvalidInputError: as `audio_format` and `encoded`.
        OSError: the audio cannot be encoded, or the file not written.
    """
    form = audio_format(path, floating=floating)
    write_whole(path, encoded(audio, sample_rate, form))
