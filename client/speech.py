"""The answer to a synthesis."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client import audio_file
from client.errors import ServerError


@dataclass(frozen=True, eq=False)  # comparing arrays gives an array
class Speech:
    """What the server said.

    Attributes:
        audio: FP32 [num_samples], mono, within about -1 to 1.
        sample_rate: samples per second, 24,000.
        seed: the seed that made it, to make it again.
        refined_text: the text as it was spoken, control tags included.
        num_tokens: audio tokens, 512 samples each.
    """

    audio: NDArray[np.float32]
    sample_rate: int
    seed: int
    refined_text: str
    num_tokens: int

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / self.sample_rate

    def save(self, path: str | os.PathLike[str], *, floating: bool = False) -> None:
        """Write an audio file by the ending of `path`: .wav (16-bit; `floating`: 32-bit float), .flac, .ogg, .mp3.

        A file of that name is replaced; after an error no partial file stays.

        Raises:
            InvalidInputError: the ending is unknown, `floating` with another than .wav, or no audio to write.
            OSError: the audio cannot be encoded, or the file not written.
        """
        audio_file.save(path, self.audio, self.sample_rate, floating=floating)


def speech_from(output: Callable[[str], NDArray[Any] | None]) -> Speech:
    """The `Speech` in an answer; `output` gives the array of an output by name, None where there is none.

    Raises:
        ServerError: an output of the contract is missing.
    """

    def values(name: str) -> NDArray[Any]:
        array = output(name)
        if array is None:
            raise ServerError(f"the answer has no output '{name}'", "INTERNAL")
        return array.reshape(-1)  # without the batch of one

    return Speech(
        audio=np.array(values("audio"), dtype=np.float32),  # a copy: the answer's buffer is read-only
        sample_rate=int(values("sample_rate")[0]),
        seed=int(values("used_seed")[0]),
        refined_text=values("refined_text")[0].decode("utf-8"),
        num_tokens=int(values("num_tokens")[0]),
    )
