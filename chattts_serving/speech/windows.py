"""Which audio tokens of a sentence are rendered in one call, and which samples of that are heard.

Decoder and vocoder keep what they need of the tokens before, so a call has new tokens alone. They see CONTEXT_TOKENS
ahead: a chunk is exact once so many are rendered behind it, and where fewer are, what follows is guessed. Lengths are
few, since Triton's dynamic batcher groups equal shapes only.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import CONTEXT_TOKENS, HELD_TOKENS, HOP_LENGTH, SAMPLES_PER_TOKEN
from chattts_serving.errors import InvalidInputError
from chattts_serving.speech.spoken_words import SpokenWord

MAX_CHUNK_TOKENS = 1_024
# What has fewer tokens is rendered anew with the next chunk: a call that goes on and guesses what follows renders, in
# layers that lie behind, as much as 29 tokens take (measured at official size).
ANEW_TOKENS = 29
MAX_SENTENCES_AHEAD = 64

# 16, 20, 24, 28, 32, 40, ... 1,792: a quarter apart at most.
_BUCKETS = tuple((4 + quarter) << power for power in range(2, 9) for quarter in range(4))


@dataclass(frozen=True)
class ReadingPlan:
    """How the audio of one request is read, chunk by chunk.

    Attributes:
        least_tokens: audio tokens that the first, second, ... chunk of a sentence waits for; the last holds for all
            further ones. A sentence's end cuts a chunk short.
        most_tokens: of a chunk, where more are there already; a sentence's last one has up to its lookahead more.
        lookahead_tokens: tokens past the first, second, ... chunk of a sentence that it waits for, as `least_tokens`;
            they do not become fewer. Each 1 to CONTEXT_TOKENS, which makes a chunk exact. With
            none, a sentence's last token could be read before it is known to be the last.
        fade_tokens: of a lookahead that makes no exact chunks, how many are cross-faded with the next one.
        sentences_ahead: sentences in the engine at once, the one that is read included.
        live: whether somebody listens while it is read, so that each chunk is due at a moment (see `pacing`).

    Raises:
        InvalidInputError: a value is out of its range.
    """

    least_tokens: tuple[int, ...]
    most_tokens: int
    lookahead_tokens: tuple[int, ...] = (CONTEXT_TOKENS,)
    fade_tokens: int = 0
    sentences_ahead: int = 2
    live: bool = False

    def __post_init__(self) -> None:
        """Check every range."""
        least, most, lookahead = self.least_tokens, self.most_tokens, self.lookahead_tokens
        if not (least and lookahead) or not all(type(value) is int for value in (*least, *lookahead, *self._scalars)):
            allowed = "integers, and one or more of 'least_tokens' and 'lookahead_tokens'"
            raise InvalidInputError("reading", asdict(self), allowed)
        if not 1 <= min(least) <= max(least) <= most <= MAX_CHUNK_TOKENS:
            allowed = f"1 <= least_tokens <= most_tokens <= {MAX_CHUNK_TOKENS}"
            raise InvalidInputError("reading", asdict(self), allowed)
        is_ascending = list(lookahead) == sorted(lookahead)
        is_within = lookahead[0] >= 1 and lookahead[-1] <= CONTEXT_TOKENS
        if not (is_ascending and is_within and 0 <= self.fade_tokens <= lookahead[0]):
            allowed = f"lookahead_tokens of 1 to {CONTEXT_TOKENS}, never fewer, and fade_tokens of 0 to the first"
            raise InvalidInputError("reading", asdict(self), allowed)
        if not 1 <= self.sentences_ahead <= MAX_SENTENCES_AHEAD:
            raise InvalidInputError("reading", asdict(self), f"1 <= sentences_ahead <= {MAX_SENTENCES_AHEAD}")
        if not isinstance(self.live, bool):
            raise InvalidInputError("reading", asdict(self), "true or false for 'live'")

    @property
    def _scalars(self) -> tuple[int, ...]:
        return (self.most_tokens, self.fade_tokens, self.sentences_ahead)

    def to_json(self) -> str:
        """This plan as one JSON object."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> ReadingPlan:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: `text` is no such object.
        """
        try:
            values = json.loads(text)
            least, lookahead = tuple(values.pop("least_tokens")), tuple(values.pop("lookahead_tokens"))
            return cls(least_tokens=least, lookahead_tokens=lookahead, **values)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("reading", text, "a reading plan as JSON") from error


@dataclass(frozen=True)
class Window:
    """Tokens of one sentence: `start` to `end` are rendered, `first` to `last` are the chunk that is heard.

    Those before `start` were rendered in earlier calls. The samples of `fade_tokens` past `last` are cross-faded into
    the next chunk. `closes` says that all sound up to `end` is rendered, `ends` that nothing follows.
    """

    start: int
    first: int
    last: int
    end: int
    fade_tokens: int
    closes: bool
    ends: bool

    @property
    def keeps_state(self) -> bool:
        """Whether the sentence's next window goes on from what this one's call gives; else at its beginning."""
        return not self.ends and self.end >= ANEW_TOKENS

    @property
    def first_sample(self) -> int:
        """Of the chunk, in the call's waveform, which begins CONTEXT_TOKENS before `start`, or with the sentence."""
        return (self.first - (self.start - CONTEXT_TOKENS if self.start else 0)) * SAMPLES_PER_TOKEN

    @property
    def num_samples(self) -> int:
        """Of the chunk; a sentence's last frame adds none (see `audio.num_samples`)."""
        return (self.last - self.first) * SAMPLES_PER_TOKEN - (HOP_LENGTH if self.ends else 0)


def next_end(plan: ReadingPlan, number: int, first: int) -> int:
    """The tokens of a sentence that goes on from which on its chunk `number` is there; arguments as `next_window`."""
    return first + _of(plan.least_tokens, number) + _of(plan.lookahead_tokens, number)


def _of(sizes: tuple[int, ...], number: int) -> int:
    return sizes[min(number, len(sizes) - 1)]


def next_window(
    plan: ReadingPlan, number: int, first: int, start: int, num_tokens: int, *, ended: bool
) -> Window | None:
    """The window of a sentence's chunk `number` (0, 1, ...), or None while too few tokens are there.

    Args:
        plan: how the sentence is read.
        number: of the chunk.
        first: tokens that have been read.
        start: tokens that have been rendered.
        num_tokens: tokens that there are, more than `first` if `ended`.
        ended: whether those are all of the sentence.
    """
    lookahead = _of(plan.lookahead_tokens, number)
    if ended and num_tokens - first <= plan.most_tokens + lookahead:
        return Window(start, first, num_tokens, num_tokens, fade_tokens=0, closes=True, ends=True)
    if num_tokens < next_end(plan, number, first):
        return None
    ready = min(num_tokens - lookahead - first, plan.most_tokens)
    number_of_bucket = bisect.bisect_right(_BUCKETS, ready)
    last = first + max(_of(plan.least_tokens, number), _BUCKETS[number_of_bucket - 1] if number_of_bucket else 0)
    closes = lookahead < CONTEXT_TOKENS
    fade_tokens = plan.fade_tokens if closes else 0
    return Window(start, first, last, last + lookahead, fade_tokens, closes=closes, ends=False)


def rows_of(
    hidden: npt.NDArray[np.float32], *, closes: bool, ends: bool
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the decoder takes for the hidden states [n, hidden] of a window.

    Returns:
        The same, padded with 0 to one of few lengths if the window `ends`, or with the last one held if it `closes`
        while others follow: [T, hidden]. And the mask, float32 [T] with 0 on padding, or [T + 1] if it `closes`.
    """
    if closes and not ends:
        hidden = np.concatenate([hidden, np.repeat(hidden[-1:], HELD_TOKENS, axis=0)])
    num_tokens = len(hidden)
    length = _BUCKETS[bisect.bisect_left(_BUCKETS, num_tokens)] if ends else num_tokens
    row = np.empty((length, hidden.shape[1]), np.float32)
    row[:num_tokens], row[num_tokens:] = hidden, 0
    mask = np.zeros(length + closes, np.float32)
    mask[:num_tokens] = 1
    return row, mask


@dataclass(frozen=True)
class SpokenSentence:
    """A sentence as callers see it.

    Attributes:
        text: as it was spoken.
        start, end: seconds from the start of the request's audio.
        num_tokens: audio tokens.
        finish_reason: "stop", "length" where `max_new_tokens` cut it, or "late" where it ended long after its text can
            have been said.
        turn: which of the request's turns it belongs to, 0 or more; None where there are none.
        name: who speaks in it; "" where there are no turns.
    """

    text: str
    start: float
    end: float
    num_tokens: int
    finish_reason: str
    turn: int | None = None
    name: str = ""

    def values(self) -> dict[str, object]:
        """For JSON; what belongs to turns only where there are some."""
        mine = dict(vars(self))
        return mine if self.turn is not None else {key: mine[key] for key in mine if key not in ("turn", "name")}


@dataclass(frozen=True)
class Chunk:
    """What `gpt_decoder` says of one window.

    Attributes:
        first_sample: of the chunk in the call's waveform.
        num_samples: of the chunk.
        fade_samples: after those, to be cross-faded into the next chunk.
        pause_samples: silence that follows the chunk.
        num_tokens: audio tokens in it.
        keeps_state: as `Window`.
        texts: the sentences that begin in it.
        sentences: the sentences that end in it.
        seed: the request's.
        is_final: whether it is the request's last one.
        lead_samples: silence that goes before the chunk: that before the first sentence, or after one that ended before
            it was known what follows.
        words: of `sentences`, where they are asked for.
        warning: what is not as the request wants it, for people; "" where all is.
    """

    first_sample: int
    num_samples: int
    fade_samples: int
    pause_samples: int
    num_tokens: int
    keeps_state: bool
    texts: tuple[str, ...]
    sentences: tuple[SpokenSentence, ...]
    seed: int
    is_final: bool
    lead_samples: int = 0
    words: tuple[SpokenWord, ...] = ()
    warning: str = ""

    def to_json(self) -> str:
        """This chunk as one JSON object."""
        sentences, words = [one.values() for one in self.sentences], list(map(vars, self.words))
        values = {**vars(self), "sentences": sentences, "words": words}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Chunk:
        """Read what `to_json` wrote."""
        values: Mapping[str, Any] = json.loads(text)
        sentences = tuple(SpokenSentence(**sentence) for sentence in values["sentences"])
        words = tuple(SpokenWord(**word) for word in values["words"])
        return cls(**{**values, "texts": tuple(values["texts"]), "sentences": sentences, "words": words})


def sentences_json(sentences: tuple[SpokenSentence, ...]) -> str:
    """The output `sentences`: a JSON list."""
    return json.dumps([sentence.values() for sentence in sentences], ensure_ascii=False)
