"""What lies in a corpus: recordings of sentences, and when their words are said."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

VOICES = ("slt", "rms", "awb", "kal16")  # flite's
PIECE = re.compile("[a-z]+|[.,]")  # of a sentence as the model reads it


@dataclass(frozen=True)
class Utterance:
    """One recording.

    Attributes:
        text: as the model reads it: small letters, blanks, commas and, but after questions, a full stop.
        ends: for each word, comma and full stop, the audio token with which it ends (exclusive).
        sounds: for each word, the audio tokens at which its phones begin, as many as the dictionary has.
        start, tokens: of the recording, in audio tokens from the beginning of the voice's file.
    """

    text: str
    ends: list[int]
    sounds: list[list[int]]
    start: int
    tokens: int


def read_text(sentence: str) -> str:
    """`sentence` as the server's normaliser hands it to the model, without "?" and "'", and in small letters."""
    return re.sub("[?']", "", sentence).replace("!", ".").lower()


def utterances(folder: Path, voice: str) -> list[Utterance]:
    """The recordings of `voice`, in the order of their places."""
    return [Utterance(**json.loads(line)) for line in (folder / f"{voice}.jsonl").read_text().splitlines()]


def recordings(folder: Path, voice: str) -> npt.NDArray[np.int16]:
    """All samples of `voice`, mapped into memory, read-only."""
    return np.memmap(folder / f"{voice}.i16", np.int16, "r")
