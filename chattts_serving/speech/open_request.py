"""The state of one open request: what is to be said, what is said, and which chunk of it is next.

It knows no engine and no thread: `Synthesizer` moves its sentences through the engine and answers its reads.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from chattts_serving.audio import SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.engine.engine import Finished
from chattts_serving.engine.gpt_config import TextHead
from chattts_serving.engine.sequence import FinishReason, Kind, Priority, SamplingParams, Sequence
from chattts_serving.errors import EngineError, InvalidInputError, ServingError
from chattts_serving.request import GenerationRequest
from chattts_serving.speech.opening import Beginning, Hidden, Opening, Part, PromptBuilder, Reply
from chattts_serving.speech.spoken_words import NO_WORD_TIMES, SpokenWord, spoken_words
from chattts_serving.speech.windows import Chunk, SpokenSentence, Window, next_end, next_window, rows_of
from chattts_serving.words import SentencePlaces, TimedWord, timed_words

MAX_DRAWS = 8  # of a sentence that ends before it can have been said, or long after
_DRAWS_APART = 2**16  # between the streams of random numbers of two draws; one draw of a request has 2 * MAX_SENTENCES
LATE = "late"  # finish_reason of a sentence that went on long after it can have been said, and ended by itself
MAX_REQUEST_TOKENS = 98_304  # audio tokens of one request, 35 min: 200 MB of samples in one answer


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
        places: where the words of sentences stand in their prompts, by place; of those whose words are timed.
        leads: by how many steps each text head looks ahead.
        num_tokens: audio tokens of all finished sentences.
        place, num_read, num_rendered, num_chunks: the sentence that is read, how many of its tokens were, how many the
            state behind them has (see `Window.keeps_state`), and in how many chunks.
        num_samples: samples read, pauses included.
        sentence_start: of `num_samples`, those before the sentence that is read.
        owes_pause: whether the pause before the sentence that is read has not been.
        reply: of the read that waits; None between two reads.
        text_since: when it was opened, or when its text went on after all of it was heard, s (monotonic).
        heard_since: when the first chunk after that had been sent, s (monotonic); None before.
        heard_from: of `num_samples`, those before that chunk.
        idle_since: when the last read was answered, s (monotonic).
        rests: whether its sentences and its reads wait for others.
        rest_changed_at: when that began or ended, s (monotonic).
        came_ns: when it was opened, or its first text came after that, ns since 1970.
        error: why the request ended, for the next read.
    """

    name: str
    opening: Opening
    texts: list[str] = field(init=False)
    waiting: deque[int] = field(init=False)
    running: dict[int, Sequence] = field(default_factory=dict)
    num_draws: dict[int, int] = field(default_factory=dict)
    spoken: dict[int, Finished] = field(default_factory=dict)
    places: dict[int, SentencePlaces] = field(default_factory=dict)
    leads: tuple[int, ...] = ()
    num_tokens: int = 0
    place: int = 0
    num_read: int = 0
    num_rendered: int = 0
    num_chunks: int = 0
    num_samples: int = 0
    sentence_start: int = 0
    owes_pause: bool = True
    reply: Reply | None = None
    text_since: float = field(default_factory=time.monotonic)
    heard_since: float | None = None
    heard_from: int = 0
    idle_since: float = field(default_factory=time.monotonic)
    rests: bool = False
    rest_changed_at: float = -math.inf
    came_ns: int = field(default_factory=time.time_ns)
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
        request = replace(known, **lists, pauses=(*known.pauses[:-1], *more.pauses), goes_on=more.goes_on)
        if self.waits_for_text and self.reply is not None:
            self._listen_anew(time.monotonic())
        self.opening = replace(self.opening, request=request)
        self.waiting.extend(range(len(self.texts), len(request.texts)))
        self.texts += more.texts

    @property
    def waits_for_text(self) -> bool:
        """Whether all that has come of its text is said, and more may come."""
        return self.request.goes_on and not (self.waiting or self.running or self.spoken)

    @property
    def heard_until(self) -> float | None:
        """When who listens has heard all that was sent, s (monotonic); None while nothing was."""
        if self.heard_since is None:
            return None
        return self.heard_since + (self.num_samples - self.heard_from) / SAMPLE_RATE

    def _listen_anew(self, now: float) -> None:
        """What is said next is waited for from `now` on, if all before was heard by then."""
        if self.heard_until is None or self.heard_until < now:
            self.heard_since, self.heard_from, self.text_since = None, self.num_samples, now
        if not self.num_samples:
            self.came_ns = time.time_ns()

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

    def watch(self, place: int, sequence: Sequence, prompts: PromptBuilder, heads: tuple[TextHead, ...]) -> None:
        """Have it noted where `heads` look while `sequence` says sentence `place`; not if it has another prompt."""
        manner = self.request.manner_of(place)
        parts, has_speaker = (self.texts[place], manner.prompt, manner.sample_text), manner.has_speaker
        if prompts.code_prompt(*parts, has_speaker=has_speaker) == sequence.prompt_ids:
            places = self.places[place] = prompts.places(*parts, has_speaker=has_speaker)
            sequence.watched = places.first, places.end
            self.leads = tuple(head.lead for head in heads)

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
        if self.place == len(self.texts) and not self.request.goes_on:
            return self._without_speech(pause_samples=self._take_pause())
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
        if self.waiting or self.running or self.request.goes_on:
            return None
        return self._without_speech(tuple(self.texts))

    def _without_speech(self, texts: tuple[str, ...] = (), pause_samples: int = 0) -> Part:
        """The last part where no speech is left, with `texts` that begin in it."""
        chunk = Chunk(0, 0, 0, pause_samples, 0, False, texts, (), self.request.seed, is_final=True)
        return Part(None, None, np.zeros((0, 1), np.int32), chunk)

    def _take(self, sequence: Sequence, window: Window) -> Chunk:
        """The chunk of `window`, which counts as read from now on."""
        place, is_first = self.place, self.num_read == 0
        sentences: tuple[SpokenSentence, ...] = ()
        words: tuple[SpokenWord, ...] = ()
        pause_samples, lead_samples = 0, self._take_pause()
        is_last = place == len(self.texts) - 1
        is_final = window.ends and is_last and not self.request.goes_on
        self.num_samples += window.num_samples
        self.num_read, self.num_rendered = window.last, window.end if window.keeps_state else 0
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
            if self.request.word_times:
                words = self._words(place)
            del self.spoken[place]
            self.place, self.num_read, self.num_rendered, self.num_chunks = place + 1, 0, 0, 0
            self.owes_pause = True
            if not (is_last and self.request.goes_on):
                pause_samples = self._take_pause()
        return Chunk(
            first_sample=window.first_sample,
            num_samples=window.num_samples,
            fade_samples=window.fade_tokens * SAMPLES_PER_TOKEN,
            pause_samples=pause_samples,
            num_tokens=window.last - window.first,
            keeps_state=window.keeps_state,
            texts=(self.texts[place],) if is_first else (),
            sentences=sentences,
            seed=self.request.seed,
            is_final=is_final,
            lead_samples=lead_samples,
            words=words,
            warning=NO_WORD_TIMES if words and place not in self.places else "",
        )

    def _words(self, place: int) -> tuple[SpokenWord, ...]:
        """The words of the sentence that was just read, or the sentence where they cannot be timed."""
        finished = self.spoken[place]
        words: tuple[TimedWord, ...] = (TimedWord(self.texts[place], 0, finished.sequence.num_new_tokens, 0.0),)
        if place in self.places and finished.looks is not None:
            words = timed_words(self.places[place], finished.looks, self.leads)
        return spoken_words(words, place, self.sentence_start, self.num_samples)

    def _take_pause(self) -> int:
        """The samples of silence before the sentence that is read next, which count as read; 0 where they were."""
        if not self.owes_pause:
            return 0
        samples, self.owes_pause = self.request.pauses[self.place], False
        self.num_samples += samples
        self.sentence_start = self.num_samples
        return samples

    def _finish_reason(self, sequence: Sequence) -> str:
        if (
            sequence.finish_reason is FinishReason.STOP
            and sequence.num_new_tokens > self.request.most_tokens[self.place]
        ):
            return LATE
        return sequence.finish_reason.value if sequence.finish_reason else ""
