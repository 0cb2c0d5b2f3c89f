"""One sentence on its way through the GPT, as plain Python values: no tensors, no cache, no thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.batch import IntArray, Stay
from chattts_serving.engine.kv_slots import Slot

NO_TOKEN = -1  # in place of a token that could not be drawn, as the logits are no finite numbers
_NONE: IntArray = np.zeros((0, 1), np.int32)


class Kind(Enum):
    """What a sequence generates."""

    TEXT = "text"  # refined text, one token id a step
    AUDIO = "audio"  # audio codes, one per codebook a step


class Priority(IntEnum):
    """Who goes first; the lowest number."""

    INTERACTIVE = 0
    BATCH = 1


class Input(Enum):
    """What one token that a sequence holds is."""

    TEXT = "text"  # a text token id
    AUDIO = "audio"  # audio codes, one per codebook
    SPEAKER = "speaker"  # the speaker's vector in place of a text token


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"  # the end token was drawn
    LENGTH = "length"  # max_new_tokens was reached
    FAILED = "failed"  # its logits are no finite numbers


@dataclass(frozen=True)
class SamplingParams:
    """How the tokens of one sequence are drawn (see `Sampler`)."""

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    min_new_tokens: int
    max_new_tokens: int
    seed: int
    stream: int  # tells apart the random numbers of sequences that share a seed, 0 to 2**32 - 1

    @property
    def first_end(self) -> int:
        """The first draw that may be the end token.

        Not the very first: the same distribution as ChatTTS, which starts over when the first token is the end.
        """
        return max(1, self.min_new_tokens)


@dataclass(eq=False)
class Sequence:
    """State of one sequence.

    Attributes:
        kind: what it generates.
        prompt_ids: text tokens of the prompt.
        prompt_codes: audio tokens that follow them (a reference recording), [n][num_codebooks].
        speaker: vector that replaces the embedding of the speaker token, float32 [hidden], or None.
        priority: whether it goes before others, and may take their place.
        watched: from and to which token of the prompt it is noted where text heads look; None for nowhere.
        params: how its tokens are drawn.
        earlier: tokens that it had when it joined the batch, all of them once it has ended: int32
            [n, num_codebooks], of text the first column counts.
        earlier_looks: where text heads looked when those were drawn, int32 [n, heads]; of one that is watched.
        slot: where its cache lies; None while it waits.
        num_kept: tokens whose keys and values its slot had when it last went to rest.
        stay: its time in the batch; None while it waits or rests, and once it has ended.
        finish_reason: why it ended; None while it has not.
        begun_ns: when the step of its first token was launched and when that token was there, ns since 1970; None until
            a stay with a token has ended.
    """

    kind: Kind
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    prompt_codes: tuple[tuple[int, ...], ...] = ()
    speaker: npt.NDArray[np.float32] | None = None
    priority: Priority = Priority.INTERACTIVE
    watched: tuple[int, int] | None = None
    earlier: IntArray = field(default_factory=lambda: _NONE)
    earlier_looks: IntArray = field(default_factory=lambda: _NONE)
    slot: Slot | None = None
    num_kept: int = 0
    stay: Stay | None = None
    finish_reason: FinishReason | None = None
    begun_ns: tuple[int, int] | None = None

    @property
    def draws_text(self) -> bool:
        """Whether it generates text."""
        return self.kind is Kind.TEXT

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that it starts from."""
        return len(self.prompt_ids) + len(self.prompt_codes)

    @property
    def cache_start(self) -> int:
        """Where its slot of the cache begins; only sequences that are scheduled have one."""
        if self.slot is None:
            raise RuntimeError("the sequence has no slot in the cache; only scheduled sequences can run")
        return self.slot.start

    @property
    def num_tokens(self) -> int:
        """Tokens that it holds: prompt, generated, and in flight."""
        return self.num_prompt_tokens + self.num_generated_tokens

    @property
    def num_generated_tokens(self) -> int:
        """Tokens drawn, in flight or read: the number of the next draw."""
        return len(self.earlier) + (0 if self.stay is None else self.stay.num_launched)

    @property
    def num_new_tokens(self) -> int:
        """Tokens generated so far, those in flight and the end token excluded."""
        return len(self.earlier) + (0 if self.stay is None else self.stay.num_read)

    @property
    def max_num_tokens(self) -> int:
        """The most tokens that its cache can come to hold (the last token drawn is never fed back)."""
        return self.num_prompt_tokens + self.params.max_new_tokens - 1

    @property
    def num_cached_tokens(self) -> int:
        """Leading tokens whose keys and values are in the cache once every launched step is done."""
        return self.num_tokens - 1 if self.stay is not None and self.stay.num_launched else self.num_kept

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens that the next step has to compute: the whole prompt at first, then one."""
        return self.num_tokens - self.num_cached_tokens

    @property
    def has_hidden(self) -> bool:
        """Whether the hidden states of its tokens are in the cache: not from preemption to the next token read."""
        return self.num_kept > 0 or (self.stay is not None and self.stay.num_read > 0)

    @property
    def first_token_ns(self) -> tuple[int, int] | None:
        """`begun_ns`, also while it is in the batch; None while it has no token."""
        if self.begun_ns is not None or self.stay is None or not self.stay.num_read:
            return self.begun_ns
        return self.stay.log.times_ns(self.stay.first)

    @property
    def needs_step(self) -> bool:
        """Whether its tokens, those in flight included, leave room for one more."""
        return self.num_generated_tokens < self.params.max_new_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """The tokens generated so far; each has num_codebooks entries (AUDIO) or one (TEXT). See `codes`."""
        return list(map(tuple, self.codes(0, self.num_new_tokens).tolist()))

    def codes(self, first: int, last: int) -> IntArray:
        """The tokens `first` to `last` - 1 of those generated so far, [last - first, num_codebooks]; text has one."""
        num_earlier = len(self.earlier)
        if self.stay is None or last <= num_earlier:
            return self.earlier[first:last]
        offset = self.stay.first - num_earlier
        found = self.stay.log.tokens(self.stay.row, offset + max(first, num_earlier), offset + last)
        if self.draws_text:
            found = found[:, :1]
        return np.concatenate([self.earlier[first:], found]) if first < num_earlier else found

    def looks(self, num_tokens: int) -> IntArray:
        """Where text heads looked when the first `num_tokens` were drawn, [num_tokens, heads]; it is watched."""
        num_earlier = len(self.earlier_looks)
        if self.stay is None or num_tokens <= num_earlier:
            return self.earlier_looks[:num_tokens]
        first = self.stay.first
        found = self.stay.log.looks(self.stay.row, first, first + num_tokens - num_earlier)
        return np.concatenate([self.earlier_looks, found]) if num_earlier else found

    def token_at(self, position: int, spk_emb_id: int) -> tuple[Input, tuple[int, ...]]:
        """What the token at `position` is, and its ids; `spk_emb_id` is the text token that a speaker replaces."""
        if position < len(self.prompt_ids):
            token_id = self.prompt_ids[position]
            is_speaker = self.speaker is not None and token_id == spk_emb_id
            return Input.SPEAKER if is_speaker else Input.TEXT, (token_id,)
        if position < self.num_prompt_tokens:
            return Input.AUDIO, self.prompt_codes[position - len(self.prompt_ids)]
        kind = Input.TEXT if self.draws_text else Input.AUDIO
        number = position - self.num_prompt_tokens
        (token,) = self.codes(number, number + 1).tolist()
        return kind, tuple(token)

    def end_stay(self, num_new_tokens: int | None = None) -> None:
        """Leave the batch with the first `num_new_tokens` of its tokens, all that were read if that is None."""
        if self.stay is not None:
            self.begun_ns = self.first_token_ns
            num_tokens = self.num_new_tokens if num_new_tokens is None else num_new_tokens
            if self.watched is not None:
                self.earlier_looks = self.looks(num_tokens)
            self.earlier = self.codes(0, num_tokens)
            self.stay.end()
            self.stay = None

    def rest(self) -> None:
        """Leave the batch with the tokens read so far, and keep the cache."""
        was_computed = self.stay is not None and self.stay.num_launched > 0
        self.end_stay()
        if was_computed:
            self.num_kept = self.num_tokens - 1  # the last one, as ever, is computed by the step that draws the next

    def lose_cache(self) -> None:
        """Go back to before the first step, tokens read so far excepted."""
        self.end_stay()
        self.slot, self.num_kept = None, 0
