"""One sentence on its way through the GPT, as plain Python values: no tensors, no cache, no thread."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.kv_slots import Slot

NO_TOKEN = -1  # in place of a token that could not be drawn, as the logits are no finite numbers


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
        params: how its tokens are drawn.
        tokens: generated so far, the end token excluded; each has num_codebooks entries (AUDIO) or one (TEXT).
        slot: where its cache lies; None while it waits.
        num_in_flight: tokens that a launched step draws and that were not read yet, 0 or 1.
        num_cached_tokens: leading tokens whose keys and values are in the cache once every launched step is done.
        cache_epoch: how often it has lost its cache; what was launched in an earlier epoch is void.
        has_hidden: whether the hidden states of `tokens` are in the cache: not from preemption to the next token read.
        finish_reason: why it ended; None while it has not.
    """

    kind: Kind
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    prompt_codes: tuple[tuple[int, ...], ...] = ()
    speaker: npt.NDArray[np.float32] | None = None
    priority: Priority = Priority.INTERACTIVE
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    slot: Slot | None = None
    num_in_flight: int = 0
    num_cached_tokens: int = 0
    cache_epoch: int = 0
    has_hidden: bool = False
    finish_reason: FinishReason | None = None

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
        return len(self.tokens) + self.num_in_flight

    @property
    def max_num_tokens(self) -> int:
        """The most tokens that its cache can come to hold (the last token drawn is never fed back)."""
        return self.num_prompt_tokens + self.params.max_new_tokens - 1

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens that the next step has to compute: the whole prompt at first, then one."""
        return self.num_tokens - self.num_cached_tokens

    @property
    def needs_step(self) -> bool:
        """Whether its tokens, those in flight included, leave room for one more."""
        return self.num_generated_tokens < self.params.max_new_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None

    def token_at(self, position: int, spk_emb_id: int) -> tuple[Input, tuple[int, ...]]:
        """What the token at `position` is, and its ids; `spk_emb_id` is the text token that a speaker replaces."""
        if position < len(self.prompt_ids):
            token_id = self.prompt_ids[position]
            is_speaker = self.speaker is not None and token_id == spk_emb_id
            return Input.SPEAKER if is_speaker else Input.TEXT, (token_id,)
        if position < self.num_prompt_tokens:
            return Input.AUDIO, self.prompt_codes[position - len(self.prompt_ids)]
        kind = Input.TEXT if self.kind is Kind.TEXT else Input.AUDIO
        return kind, self.tokens[position - self.num_prompt_tokens]

    def mark_launched(self) -> None:
        """A step that computes every uncached token and draws the next one is on its way."""
        self.num_cached_tokens = self.num_tokens
        self.num_in_flight += 1

    def lose_cache(self) -> None:
        """Go back to before the first step, tokens read so far excepted."""
        self.slot = None
        self.num_cached_tokens = self.num_in_flight = 0
        self.has_hidden = False
        self.cache_epoch += 1

    def append(self, token: tuple[int, ...], end_token: int) -> None:
        """Take the token of the oldest launched step; `end_token` or NO_TOKEN in any place of it ends it, unkept."""
        self.num_in_flight -= 1
        self.has_hidden = True
        if NO_TOKEN in token:
            self.finish_reason = FinishReason.FAILED
            return
        if end_token in token:
            self.finish_reason = FinishReason.STOP
            return
        self.tokens.append(token)
        if len(self.tokens) >= self.params.max_new_tokens:
            self.finish_reason = FinishReason.LENGTH
