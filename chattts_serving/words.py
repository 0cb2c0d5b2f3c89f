"""When each word of a sentence is said, from where some attention heads look at each step.

Such a head looks at the text token that is said, or some steps ahead of it. A path through the text that never goes
back and leaves nothing out is laid where most of the looks are on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]


class WordPlace(NamedTuple):
    """A word, and its tokens: those from `first` to `end` - 1 of the sentence's."""

    text: str
    first: int
    end: int


@dataclass(frozen=True)
class SentencePlaces:
    """Where a sentence stands in the prompt that has it spoken.

    Attributes:
        first, end: its tokens, those from `first` to `end` - 1 of the prompt.
        words: in their order; tags and marks are none.
    """

    first: int
    end: int
    words: tuple[WordPlace, ...]


@dataclass(frozen=True)
class TimedWord:
    """A word that was said.

    Attributes:
        text: as it was spoken; where words have no times, the whole sentence.
        start, end: audio tokens from the start of the sentence.
        confidence: the share of looks at it, of all while it was said, 0 to 1.
    """

    text: str
    start: int
    end: int
    confidence: float


def timed_words(places: SentencePlaces, looks: Integers, leads: Sequence[int]) -> tuple[TimedWord, ...]:
    """The words of a sentence with their times.

    Args:
        places: of the words.
        looks: [steps, heads], the token of the prompt that each head looked at when each audio token was drawn.
        leads: by how many steps each head looks ahead.
    """
    num_tokens, num_steps = places.end - places.first, len(looks)
    if not num_steps:
        return ()
    votes = _votes(looks - places.first, leads, num_tokens)
    ends = path(votes)
    starts = np.concatenate([[0], ends[:-1]])
    cast = np.concatenate([[0], np.cumsum(np.arange(num_steps)[:, None] >= np.array(leads), axis=0).sum(axis=1)])
    for_it = [int(votes[token, starts[token] : ends[token]].sum()) for token in range(num_tokens)]

    def timed(word: WordPlace) -> TimedWord:
        start, end = int(starts[word.first]), int(ends[word.end - 1])
        all_votes = int(cast[end] - cast[start])
        return TimedWord(word.text, start, end, sum(for_it[word.first : word.end]) / max(1, all_votes))

    return tuple(map(timed, places.words))


def path(votes: Integers) -> Integers:
    """The step with which each token ends (exclusive), never falling; each has a step where there are enough of them.

    Args:
        votes: [tokens, steps], how many heads say that the token is said at the step.

    Returns:
        [tokens], the ends between which most votes lie; the last one is the number of steps.
    """
    num_tokens, num_steps = votes.shape
    if num_steps < num_tokens:
        return np.arange(1, num_tokens + 1) * num_steps // num_tokens
    up_to = np.concatenate([np.zeros((num_tokens, 1), np.int64), np.cumsum(votes, axis=1, dtype=np.int64)], axis=1)
    never = -votes.size * int(votes.max(initial=1)) - 1  # less than any path has
    best, begun = up_to[0].copy(), []  # the most votes of a path whose last token ends at each step
    best[0] = never
    for token in range(1, num_tokens):
        begun.append(best - up_to[token])  # and of one whose next token begins there
        before = np.maximum.accumulate(begun[-1])
        best[1:], best[0] = up_to[token, 1:] + before[:-1], never
        best[: token + 1] = never
    ends = [num_steps]
    for found in reversed(begun):
        ends.append(int(np.argmax(found[: ends[-1]])))
    return np.array(ends[::-1])


def _votes(looks: Integers, leads: Sequence[int], num_tokens: int) -> Integers:
    """[num_tokens, steps]: the heads that look at each token, each vote at the step that its head looks ahead to."""
    votes = np.zeros((num_tokens, len(looks)), np.int32)
    for head, lead in enumerate(leads):
        seen = looks[: max(0, len(looks) - lead), head]
        votes[:, lead:] += seen == np.arange(num_tokens)[:, None]
    return votes
