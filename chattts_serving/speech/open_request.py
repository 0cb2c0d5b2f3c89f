"""The state of one open request: what is to be said, what is said, and which chunk of it is next.

It knows no engine and no thread: `Synthesizer` moves its sentences through the engine and answers its reads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.engine.batch import IntArray
from chattts_serving.engine.engine import Finished
from chattts_serving.engine.sequence import FinishReason, Kind, Priority, SamplingParams, Sequence
from chattts_serving.errors import EngineError, InvalidInputError, ServingError
from chattts_serving.request import GenerationRequest
from chattts_serving.speech.windows import Chunk, ReadingPlan, SpokenSentence, Window, next_end, next_window, rows_of

MAX_DRAWS = 8  # of a sentence that ends before it can have been said, or long after
_DRAWS_APART = 2**16  # between the streams of random numbers of two draws; one draw of a request has 2 * MAX_SENTENCES
LATE = "late"  # finish_reason of a sentence that went on long after it can have been said, and ended by itself
MAX_REQUEST_TOKENS = 98_304  # audio tokens of one request, 35 min: 200 MB of samples in one answer

Hidden = npt.NDArray[np.float32]


class PromptBuilder(Protocol):
    """What is needed to speak a refined sentence; `Prompts` is one."""

    def refined_text(self, ids: tuple[int, ...]) -> str:
        """The text of refined token ids."""

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        """Token ids of the prompt that has `text` spoken."""


@dataclass(frozen=True)
class Opening:
    """What opens a request.

    Attributes:
        request: what to say.
        speaker: the voice's normalised vector, float32 [hidden].
        plan: how the audio is read.
    """

    request: GenerationRequest
    speaker: Hidden
    plan: ReadingPlan


@dataclass(frozen=True)
class Part:
    """What one read gets.

    Attributes:
        hidden: the hidden states of the chunk's window, float32 [T, hidden]; None where there is no audio.
        mask: of those, float32 [T or T + 1], as `rows_of` makes it.
        codes: the chunk's audio tokens, int32 [num_tokens, num_codebooks].
        chunk: what they are.
    """

    hidden: Hidden | None
    mask: npt.NDArray[np.float32] | None
    codes: IntArray
    chunk: Chunk


Reply = Callable[["Part | ServingError"], None]


@dataclass(eq=False)
class OpenRequest:
    """One open request.

    Its sentences wait, then run as sequences, one that is refined and one that is spoken, and are read in their order.

    Attributes:
        name: what the reader calls it.
        opening: as submitted.
        texts: the sentences as they will be spoken; refined ones replace those of the request.
        waiting: places of the sentences that have not been started.
        running: the sequences in the engine, by the place of the sentence that each belongs to.
        num_draws: how often a sentence was drawn that ended too early or too late, by place.
        spoken: the finished sentences that were not read to their end, by place.
        num_tokens: audio tokens of all finished sentences.
        place, num_read, num_rendered, num_chunks: the sentence that is read, how many of its tokens were, how many were
            given to the decoder, and in how many chunks.
        num_samples: samples read, pauses included.
        sentence_start: of `num_samples`, those before the sentence that is read.
        owes_pause: whether the pause before the sentence that is read has not been.
        reply: of the read that waits; None between two reads.
        idle_since: when the last read was answered, s (monotonic).
        error: why the request ended, for the next read.
    """

    name: str
    opening: Opening
    texts: list[str] = field(init=False)
    waiting: deque[int] = field(init=False)
    running: dict[int, Sequence] = field(default_factory=dict)
    num_draws: dict[int, int] = field(default_factory=dict)
    spoken: dict[int, Finished] = field(default_factory=dict)
    num_tokens: int = 0
    place: int = 0
    num_read: int = 0
    num_rendered: int = 0
    num_chunks: int = 0
    num_samples: int = 0
    sentence_start: int = 0
    owes_pause: bool = False
    reply: Reply | None = None
    idle_since: float = field(default_factory=time.monotonic)
    error: ServingError | None = None

    def __post_init__(self) -> None:
        """All sentences wait."""
        self.texts = list(self.request.texts)
        self.waiting = deque(range(len(self.texts)))

    @property
    def request(self) -> GenerationRequest:
        """What to say."""
        return self.opening.request

    @property
    def is_batch(self) -> bool:
        """Whether others go first."""
        return self.request.priority == "batch"

    def extend(self, more: GenerationRequest) -> None:
        """Further sentences of a text that goes on, which wait, or the word that none follows.

        Raises:
            InvalidInputError: the text has ended.
        """
        known = self.request
        if not known.goes_on:
            raise InvalidInputError("more", " ".join(more.texts), "sentences of a text that goes on")
        listed = ("prompts", "texts", "fewest_tokens", "most_tokens")
        lists: dict[str, Any] = {name: (*getattr(known, name), *getattr(more, name)) for name in listed}
        pauses = (*known.pauses[:-1], more.pause_before, *more.pauses) if known.pauses else more.pauses
        request = replace(known, **lists, pauses=pauses, goes_on=more.goes_on)
        self.opening = replace(self.opening, request=request)
        self.waiting.extend(range(len(self.texts), len(request.texts)))
        self.texts += more.texts

    @property
    def num_ahead(self) -> int:
        """Sentences that are in the engine, or spoken and not read to their end."""
        return len(self.running) + len(self.spoken)

    def start_next(self) -> tuple[int, Sequence]:
        """The place of the next sentence that waits, and its first sequence."""
        place = self.waiting.popleft()
        kind = Kind.TEXT if self.request.refine else Kind.AUDIO
        return place, self.sequence(place, kind, self.request.prompts[place])

    def sequence(self, place: int, kind: Kind, prompt: tuple[int, ...]) -> Sequence:
        """Sentence number `place` as a sequence that generates `kind`."""
        priority = Priority.BATCH if self.is_batch else Priority.INTERACTIVE
        options, seed = self.request.sampling, self.request.seed
        stream = 2 * place + (kind is Kind.AUDIO)
        if kind is Kind.TEXT:
            params = SamplingParams(
                temperature=options.refine_temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                repetition_penalty=1.0,  # ChatTTS's default, and the only value that its refining takes
                min_new_tokens=0,
                max_new_tokens=options.refine_max_new_tokens,
                seed=seed,
                stream=stream,
            )
            return Sequence(kind, prompt, params, priority=priority)
        params = SamplingParams(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=options.repetition_penalty,
            min_new_tokens=options.min_new_tokens,
            max_new_tokens=self._most_tokens(place),
            seed=seed,
            stream=stream,
        )
        return Sequence(kind, prompt, params, self.request.sample_codes, self.opening.speaker, priority)

    def take_finished(self, place: int, finished: Finished) -> Sequence | None:
        """The running sequence of sentence `place` has ended. Spoken sentences are kept until they are read.

        Returns:
            A sequence that says the sentence with other random numbers, where it ended before it can have been said, or
            did not end when it must have been and the request asks for that.

        Raises:
            EngineError: it failed, or ended too early again and again.
            InvalidInputError: the same of a cloned voice, or the request has become too long.
        """
        del self.running[place]
        if finished.sequence.finish_reason is FinishReason.FAILED:
            raise EngineError(f"sentence {place + 1} failed: the model's logits are not finite")
        if finished.sequence.kind is Kind.TEXT:
            return None
        if self._ended_too_early(place, finished.sequence) or self._may_end_sooner(place, finished.sequence):
            return self._drawn_again(place, finished.sequence)
        self.spoken[place] = finished
        self.num_tokens += finished.sequence.num_new_tokens
        if self.num_tokens > MAX_REQUEST_TOKENS:
            allowed = f"text of at most {MAX_REQUEST_TOKENS} audio tokens (35 minutes of speech): send it in parts"
            raise InvalidInputError("text", " ".join(self.request.texts), allowed)
        return None

    def _ended_too_early(self, place: int, sequence: Sequence) -> bool:
        is_end = sequence.finish_reason is FinishReason.STOP
        return is_end and sequence.num_new_tokens < self.request.fewest_tokens[place]

    def _may_end_sooner(self, place: int, sequence: Sequence) -> bool:
        is_cut = sequence.finish_reason is FinishReason.LENGTH
        return is_cut and self.request.redraw_long and self.num_draws.get(place, 1) < MAX_DRAWS

    def _most_tokens(self, place: int) -> int:
        options, most = self.request.sampling, self.request.most_tokens[place]
        if not self.request.redraw_long:
            return options.max_new_tokens
        return min(options.max_new_tokens, max(options.min_new_tokens, most))

    def _drawn_again(self, place: int, sequence: Sequence) -> Sequence:
        num_draws = self.num_draws[place] = self.num_draws.get(place, 1) + 1
        if num_draws <= MAX_DRAWS:
            params = replace(sequence.params, stream=sequence.params.stream + _DRAWS_APART)
            return replace(self.sequence(place, Kind.AUDIO, sequence.prompt_ids), params=params)
        ended = f"ended after {sequence.num_new_tokens} tokens, too early to be said"
        what = f"sentence {place + 1} {ended}, {MAX_DRAWS} times"
        if self.request.sample_codes:
            named = f"{len(self.request.sample_codes)} tokens"
            raise InvalidInputError("speaker_sample", named, f"a recording whose voice this model can speak in: {what}")
        raise EngineError(f"{what}; another seed or speaker may say it")

    def next_part(self, hidden_of: Callable[[Sequence, int, int], Hidden]) -> Part | None:
        """What the next read gets, taken as read; None while too little of it is there.

        `hidden_of` gives the hidden states of a running sequence from one of its tokens to another, [n, hidden].
        """
        if self.request.refine_only:
            return self._refined()
        if self.place == len(self.texts) and not self.request.goes_on:
            return self._without_sound(())
        finished = self.spoken.get(self.place)
        sequence = finished.sequence if finished else self.running.get(self.place)
        if sequence is None or sequence.kind is Kind.TEXT or not (finished or sequence.has_hidden):
            return None
        if self.request.redraw_long and not finished:  # nothing is heard of what may be drawn again
            return None
        window = next_window(
            self.opening.plan,
            self.num_chunks,
            self.num_read,
            self.num_rendered,
            sequence.num_new_tokens,
            ended=finished is not None,
        )
        if window is None:
            return None
        hidden = (
            finished.hidden[window.start : window.end] if finished else hidden_of(sequence, window.start, window.end)
        )
        hidden, mask = rows_of(hidden, closes=window.closes, ends=window.ends)
        return Part(hidden, mask, sequence.codes(window.first, window.last), self._take(sequence, window))

    def num_missing(self) -> int | None:
        """Tokens that must come at least for `next_part` to have one, 1 or more; None where tokens alone bring none."""
        sequence = self.running.get(self.place)
        if sequence is None or sequence.kind is Kind.TEXT or self.request.redraw_long:
            return None
        needed = next_end(self.opening.plan, self.num_chunks, self.num_read)
        return max(1, needed - sequence.num_new_tokens)

    def _refined(self) -> Part | None:
        """The answer to a request for refined text alone, once all of it is there."""
        if self.waiting or self.running or self.request.goes_on:
            return None
        return self._without_sound(tuple(self.texts))

    def _without_sound(self, texts: tuple[str, ...]) -> Part:
        """The last part where no sound is left, with `texts` that begin in it."""
        chunk = Chunk(0, 0, 0, 0, 0, texts, (), self.request.seed, is_final=True)
        return Part(None, None, np.zeros((0, 1), np.int32), chunk)

    def _take(self, sequence: Sequence, window: Window) -> Chunk:
        """The chunk of `window`, which counts as read from now on."""
        place, is_first = self.place, self.num_read == 0
        sentences: tuple[SpokenSentence, ...] = ()
        lead_samples = pause_samples = 0
        is_last = place == len(self.texts) - 1
        is_final = window.ends and is_last and not self.request.goes_on
        if self.owes_pause:
            lead_samples, self.owes_pause = self._pause_samples(place - 1), False
            self.num_samples += lead_samples
            self.sentence_start = self.num_samples
        self.num_samples += window.num_samples
        self.num_read, self.num_rendered = window.last, window.end
        self.num_chunks += 1
        if window.ends:
            sentences = (
                SpokenSentence(
                    text=self.texts[place],
                    start=self.sentence_start / SAMPLE_RATE,
                    end=self.num_samples / SAMPLE_RATE,
                    num_tokens=sequence.num_new_tokens,
                    finish_reason=self._finish_reason(sequence),
                ),
            )
            self.owes_pause = is_last and self.request.goes_on
            if not is_last:
                pause_samples = self._pause_samples(place)
            self.num_samples += pause_samples
            self.sentence_start = self.num_samples
            del self.spoken[place]
            self.place, self.num_read, self.num_rendered, self.num_chunks = place + 1, 0, 0, 0
        return Chunk(
            first_sample=window.first_sample,
            num_samples=window.num_samples,
            fade_samples=window.fade_tokens * SAMPLES_PER_TOKEN,
            pause_samples=pause_samples,
            num_tokens=window.last - window.first,
            texts=(self.texts[place],) if is_first else (),
            sentences=sentences,
            seed=self.request.seed,
            is_final=is_final,
            lead_samples=lead_samples,
        )

    def _pause_samples(self, place: int) -> int:
        """Of the silence after sentence `place`, which another one follows."""
        return self.request.pauses[place] * SAMPLES_PER_TOKEN + HOP_LENGTH

    def _finish_reason(self, sequence: Sequence) -> str:
        if (
            sequence.finish_reason is FinishReason.STOP
            and sequence.num_new_tokens > self.request.most_tokens[self.place]
        ):
            return LATE
        return sequence.finish_reason.value if sequence.finish_reason else ""
