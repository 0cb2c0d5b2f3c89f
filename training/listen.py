"""How well served speech is understood: pocketsphinx writes down what it hears, and errors are counted."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr
from pocketsphinx import Decoder

from chattts_serving.audio import SAMPLE_RATE

LISTENER_RATE = 16_000  # Hz, what pocketsphinx's English model wants
SILENCE_S = 0.3  # put around each sentence: the listener needs it to find its beginning


@dataclass(frozen=True)
class Heard:
    """One sentence: what was to be said, what was heard, and the words that are wrong, missing or too many."""

    said: str
    heard: str
    errors: int

    @property
    def words(self) -> int:
        """Of what was to be said."""
        return len(self.said.split())


class Listener:
    """An English speech recogniser with a language model of its own, which has not heard the voices before."""

    def __init__(self) -> None:
        """Load the model that pocketsphinx brings."""
        self._decoder = Decoder(samprate=LISTENER_RATE, loglevel="FATAL")

    def listen(self, audio: npt.NDArray[np.float32], said: str) -> Heard:
        """Compare `audio`, 24 kHz, with the words of `said`."""
        samples = soxr.resample(audio.astype(np.float32), SAMPLE_RATE, LISTENER_RATE)
        loudest = float(np.abs(samples).max()) or 1.0
        silence = np.zeros(round(SILENCE_S * LISTENER_RATE), np.float32)
        whole = np.concatenate([silence, samples * (0.5 / loudest), silence])
        self._decoder.start_utt()
        self._decoder.process_raw((whole * 32767).astype(np.int16).tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        heard = " ".join(words(re.sub(r"\(\d+\)", "", hypothesis.hypstr if hypothesis else "")))
        expected = words(said)
        return Heard(" ".join(expected), heard, word_errors(expected, heard.split()))


def words(text: str) -> list[str]:
    """The words of `text` in small letters."""
    return re.findall("[a-z']+", text.lower())


def word_errors(expected: list[str], heard: list[str]) -> int:
    """Least substitutions, insertions and deletions that make one of the other."""
    costs = list(range(len(heard) + 1))
    for i, word in enumerate(expected, start=1):
        diagonal, costs[0] = costs[0], i
        for j, other in enumerate(heard, start=1):
            diagonal, costs[j] = costs[j], min(diagonal + (word != other), costs[j] + 1, costs[j - 1] + 1)
    return costs[-1]


def word_error_rate(heard: Iterable[Heard]) -> float:
    """Errors by words, 0 or more."""
    heard = list(heard)
    return sum(one.errors for one in heard) / sum(one.words for one in heard)
