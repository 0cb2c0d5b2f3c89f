"""Words as callers see them: those that were timed, or the sentence where none were."""

from __future__ import annotations

import json
from dataclasses import dataclass

from chattts_serving.audio import SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.words import TimedWord

NO_WORD_TIMES = "this server cannot tell when each word is said: 'words' has sentences"


@dataclass(frozen=True)
class SpokenWord:
    """A word, or a whole sentence whose words have no times.

    Attributes:
        text: as it was spoken.
        start, end: seconds from the start of the request's audio.
        sentence: which of the request's sentences it belongs to, 0 or more.
        confidence: how far the attention heads agree, 0 to 1; 0 of a sentence.
    """

    text: str
    start: float
    end: float
    sentence: int
    confidence: float


def spoken_words(words: tuple[TimedWord, ...], sentence: int, start: int, end: int) -> tuple[SpokenWord, ...]:
    """The words of sentence number `sentence`, which is the samples `start` to `end` - 1 of the request's audio."""

    def seconds(token: int) -> float:
        return min(end, start + token * SAMPLES_PER_TOKEN) / SAMPLE_RATE

    return tuple(
        SpokenWord(word.text, seconds(word.start), seconds(word.end), sentence, round(word.confidence, 3))
        for word in words
    )


def words_json(words: tuple[SpokenWord, ...]) -> str:
    """The output `words`: a JSON list."""
    return json.dumps([vars(word) for word in words], ensure_ascii=False)
