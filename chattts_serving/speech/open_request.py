"""The state of one open request: what is to be said, what is said, and which chunk of it is next.

It knows no engine and no thread: `Synthesizer` moves its sentences through the engine and answers its reads.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import SAMPLE_RATE, SAMPLES_PER_TOKEN
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
        speaker: the voices' normalised vectors, one after the other, float32 [request.num_voices * hidden].
        plan: how the audio is read.
        traceparent: W3C's, of what waits for the first chunk; "" where nobody traces it.
    """

    request: GenerationRequest
    speaker: Hidden
    plan: ReadingPlan
    traceparent: str = ""

    def speaker_of(self, voice: int) -> Hidden:
        """The vector of one voice, float32 [hidden]."""
        speaker: Hidden = self.speaker.reshape(self.request.num_voices, -1)[voice]
        return speaker


@dataclass(frozen=True)
class Beginning:
    """How the first chunk of a traced request came to be; times are ns since 1970.

    Attributes:
        traceparent: of its `Opening`.
        came_ns: it was opened.
        launched_ns: the step that computes its prompt was launched.
        drawn_ns: the first token was there.
        ready_ns: all tokens of the chunk were.
    """

    traceparent: str
    came_ns: int
    launched_ns: int
    drawn_ns: int
    ready_ns: int


@dataclass(frozen=True)
class Part:
    """What one read gets.

    Attributes:
        hidden: the hidden states of the chunk's window, float32 [T, hidden]; None where there is no audio.
        mask: of those, float32 [T or T + 1], as `rows_of` makes it.
        codes: the chunk's audio tokens, int32 [num_tokens, num_codebooks].
        chunk: what they are.
        beginning: of the request, with its first chunk, where it is traced.
    """

    hidden: Hidden | None
    mask: npt.NDArray[np.float32] | None
    codes: IntArray
    chunk: Chunk
    beginning: Beginning | None = None


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
        reply: of the read that waits; None between two reads.
        opened_at: s (monotonic).
        heard_since: when its first chunk had been sent, s (monotonic); None before.
        idle_since: when the last read was answered, s (monotonic).
        rests: whether its sentences and its reads wait for others.
        rest_changed_at: when that began or ended, s (monotonic).
        came_ns: when it was opened, ns since 1970.
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
    reply: Reply | None = None
    opened_at: float = field(default_factory=time.monotonic)
    heard_since: float | None = None
    idle_since: float = field(default_factory=time.monotonic)
    rests: bool = False
    rest_changed_at: float = -math.inf
    came_ns: int = field(default_factory=time.time_ns)
    error: ServingError | None = None

    def __post_init__(self) -> None:
        """All sentences wait."""
        self.texts = list(self.request.texts)
        self.waiting = deque(range(len(self.texts)))
        self.num_samples = self.sentence_start = self.request.pauses[0]

    @property
    def request(self) -> GenerationRequest:
        """What to say."""
        return self.opening.request

    @property
    def is_batch(self) -> bool:
        """Whether others go first."""
        return self.request.priority == "batch"

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
        manner, seed = self.request.manner_of(place), self.request.seed
        options = manner.sampling
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
        speaker = self.opening.speaker_of(manner.voice)
        return Sequence(kind, prompt, params, manner.sample_codes, speaker, priority)

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
        options, most = self.request.manner_of(place).sampling, self.request.most_tokens[place]
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
        sample_codes = self.request.manner_of(place).sample_codes
        if sample_codes:
            named = f"{len(sample_codes)} tokens"
            raise InvalidInputError("speaker_sample", named, f"a recording whose voice this model can speak in: {what}")
        raise EngineError(f"{what}; another seed or speaker may say it")

    def next_part(self, hidden_of: Callable[[Sequence, int, int], Hidden]) -> Part | None:
        """What the next read gets, taken as read; None while too little of it is there.

        `hidden_of` gives the hidden states of a running sequence from one of its tokens to another, [n, hidden].
        """
        if self.request.refine_only:
            return self._refined()
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
        beginning = self._beginning(sequence)
        codes = sequence.codes(window.first, window.last)
        return Part(hidden, mask, codes, self._take(sequence, window), beginning)

    def num_missing(self) -> int | None:
        """Tokens that must come at least for `next_part` to have one, 1 or more; None where tokens alone bring none."""
        sequence = self.running.get(self.place)
        if sequence is None or sequence.kind is Kind.TEXT or self.request.redraw_long:
            return None
        return max(1, self.num_missing_steps())

    def num_missing_steps(self) -> int:
        """Steps of the engine until the next chunk is there, 0 or more, if its sentence does not end before."""
        if self.place in self.spoken:
            return 0
        sequence = self.running.get(self.place)
        num_there = 0 if sequence is None or sequence.kind is Kind.TEXT else sequence.num_new_tokens
        return max(0, next_end(self.opening.plan, self.num_chunks, self.num_read) - num_there)

    def _beginning(self, sequence: Sequence) -> Beginning | None:
        traceparent, times_ns = self.opening.traceparent, sequence.first_token_ns
        if not traceparent or times_ns is None or self.num_samples:
            return None
        return Beginning(traceparent, self.came_ns, *times_ns, time.time_ns())

    def _refined(self) -> Part | None:
        """The answer to a request for refined text alone, once all of it is there."""
        if self.waiting or self.running:
            return None
        return Part(
            None,
            None,
            np.zeros((0, 1), np.int32),
            Chunk(0, 0, 0, 0, 0, tuple(self.texts), (), self.request.seed, is_final=True),
        )

    def _take(self, sequence: Sequence, window: Window) -> Chunk:
        """The chunk of `window`, which counts as read from now on."""
        place, is_first = self.place, self.num_read == 0
        sentences: tuple[SpokenSentence, ...] = ()
        pause_samples = 0
        lead_samples = self.request.pauses[0] if is_first and place == 0 else 0
        is_final = window.ends and place == len(self.texts) - 1
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
                    turn=self.request.turns[place] if self.request.turns else None,
                    name=self.request.manner_of(place).name,
                ),
            )
            pause_samples = self.request.pauses[place + 1]
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

    def _finish_reason(self, sequence: Sequence) -> str:
        if (
            sequence.finish_reason is FinishReason.STOP
            and sequence.num_new_tokens > self.request.most_tokens[self.place]
        ):
            return LATE
        return sequence.finish_reason.value if sequence.finish_reason else ""
