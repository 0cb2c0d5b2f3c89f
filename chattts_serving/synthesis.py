"""Requests on their way through the engine: sentences refined, then spoken, and read chunk by chunk.

A request is opened under a name of the reader's choice and read until its last chunk. A thread of its own owns the
engine and everything here but the queue of arrivals; every reply leaves from it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.admission import Room, RoomSign, check_not_drained, drained_until
from chattts_serving.audio import HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.engine.engine import Engine, Finished
from chattts_serving.engine.sequence import FinishReason, Kind, Priority, SamplingParams, Sequence
from chattts_serving.errors import (
    CancelledError,
    DeadlineExceededError,
    EngineError,
    InvalidInputError,
    ServingError,
    ShuttingDownError,
)
from chattts_serving.request import GenerationRequest
from chattts_serving.windows import Chunk, ReadingPlan, SpokenSentence, Window, next_window

logger = logging.getLogger(__name__)

MAX_REQUEST_TOKENS = 98_304  # audio tokens of one request, 35 min: 200 MB of samples in one answer
LOOK_S = 0.02  # between two looks at deadlines, leases and load
MAX_FAILED_STEPS = 3  # in a row; a GPU that has failed does not recover within a process
LAST_WORDS_S = 1.0  # for the answers of a process that ends itself


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
    speaker: npt.NDArray[np.float32]
    plan: ReadingPlan


@dataclass(frozen=True)
class Part:
    """What one read gets.

    Attributes:
        hidden: the hidden states of the chunk's window, float32 [n, hidden]; None where there is no audio.
        codes: the chunk's audio tokens, [num_tokens][num_codebooks].
        chunk: what they are.
    """

    hidden: npt.NDArray[np.float32] | None
    codes: list[tuple[int, ...]]
    chunk: Chunk


@dataclass(frozen=True)
class Load:
    """How busy the engine is.

    Attributes:
        requests_open: requests that were taken and have not ended.
        sequences_running: sequences in the batch.
        sequences_waiting: sequences that wait for room in the batch or the cache.
        cache_tokens_used: tokens of the key-value cache that are in use.
        cache_tokens: that it holds.
    """

    requests_open: int = 0
    sequences_running: int = 0
    sequences_waiting: int = 0
    cache_tokens_used: int = 0
    cache_tokens: int = 0


@dataclass(frozen=True)
class Step:
    """One step of the engine.

    Attributes:
        seconds: that it took.
        num_sequences: in the batch.
        num_generated: tokens that it added to the sequences, by kind.
    """

    seconds: float
    num_sequences: int
    num_generated: Mapping[Kind, int]


class Observer(Protocol):
    """Is told what the engine does, from its thread; must not keep it waiting."""

    def load(self, load: Load) -> None:
        """How busy the engine is: whenever that has changed, but not more often than every LOOK_S."""

    def step(self, step: Step) -> None:
        """A step is done."""


Reply = Callable[["Part | ServingError"], None]


@dataclass(eq=False)
class _Job:
    """One open request.

    Attributes:
        name: what the reader calls it.
        opening: as submitted.
        texts: the sentences as they will be spoken; refined ones replace those of the request.
        waiting: places of the sentences that have not been started.
        running: the sequences in the engine, by the place of the sentence that each belongs to.
        spoken: the finished sentences that were not read to their end, by place.
        num_tokens: audio tokens of all finished sentences.
        place, num_read, num_chunks: the sentence that is read, and how many of its tokens and chunks were.
        num_samples: samples read, pauses included.
        sentence_start: of `num_samples`, those before the sentence that is read.
        reply: of the read that waits; None between two reads.
        idle_since: when the last read was answered, s (monotonic).
        error: why the request ended, for the next read.
    """

    name: str
    opening: Opening
    texts: list[str]
    waiting: deque[int]
    running: dict[int, Sequence] = field(default_factory=dict)
    spoken: dict[int, Finished] = field(default_factory=dict)
    num_tokens: int = 0
    place: int = 0
    num_read: int = 0
    num_chunks: int = 0
    num_samples: int = 0
    sentence_start: int = 0
    reply: Reply | None = None
    idle_since: float = field(default_factory=time.monotonic)
    error: ServingError | None = None

    @property
    def request(self) -> GenerationRequest:
        """What to say."""
        return self.opening.request

    @property
    def is_batch(self) -> bool:
        """Whether others go first."""
        return self.request.priority == "batch"


class Synthesizer:
    """Runs requests through an engine, many at a time, and answers each read exactly once."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        prompts: PromptBuilder,
        *,
        max_requests: int,
        max_batch_requests: int,
        max_sentences_at_once: int,
        max_sequences: int,
        lease_s: float,
        observer: Observer | None = None,
        abandon: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        """Start the thread and wait until its engine is made.

        Args:
            make_engine: called on the thread, which then owns the engine: PyTorch's current GPU and stream belong to a
                thread.
            prompts: makes the prompts of the second pass.
            max_requests: requests at once; one more is refused.
            max_batch_requests: of those, the most of priority `BATCH`.
            max_sentences_at_once: sentences of one request in the engine, so that a long text leaves room for others.
            max_sequences: that the engine runs at once; open requests share them.
            lease_s: seconds between two reads after which a request is given up.
            observer: told what the engine does.
            abandon: ends the process, for another one to take over, when MAX_FAILED_STEPS steps in a row have failed.

        Raises:
            Exception: whatever `make_engine` raises.
        """
        self._prompts = prompts
        self._max_sentences_at_once = max_sentences_at_once
        self._max_sequences = max_sequences
        self._lease_s = lease_s
        self._room = Room(0, 0, max_requests, max_batch_requests)  # guarded by _lock
        self._sign = RoomSign()
        self._sign.write(self._room)
        self._lock = threading.Lock()
        self._closing = False
        self._arrivals: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()  # None: close
        self._jobs: dict[str, _Job] = {}  # the open requests by name
        self._reading: dict[_Job, None] = {}  # those with a read that waits, longest first
        self._owners: dict[Sequence, tuple[_Job, int]] = {}  # the request, and the place of the sentence
        self._next_look = 0.0
        self._observer = observer
        self._observed = Load()
        self._abandon = abandon
        self._num_failed_steps = 0  # in a row
        self._made: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(make_engine,), name="engine", daemon=True)
        self._thread.start()
        self._made.result()

    def open(self, name: str, opening: Opening, reply: Reply) -> None:
        """Queue a request, and read its first chunk.

        Args:
            name: of the request, which no other one has.
            opening: what to say, and how it is read.
            reply: called once, from the engine's thread, with the first chunk or the error.

        Raises:
            OverloadedError: as many requests as allowed are open; `reply` will not be called.
            ShuttingDownError: the synthesizer is closed, or the server is about to end; `reply` will not be called.
        """
        texts = opening.request.texts
        job = _Job(name, opening, list(texts), deque(range(len(texts))))
        check_not_drained()
        with self._lock:
            self._check_open()
            self._room = replace(self._room, num_arrived=self._room.num_arrived + 1)
            self._sign.write(self._room)
            self._room.check(is_batch=job.is_batch)
            self._count(job, 1)
            self._arrivals.put(lambda: self._open(job, reply))

    def read(self, name: str, reply: Reply) -> None:
        """Read the next chunk of the request `name`; `reply` as for `open`.

        Raises:
            ShuttingDownError: the synthesizer is closed; `reply` will not be called.
        """
        with self._lock:
            self._check_open()
            self._arrivals.put(lambda: self._read(name, reply))

    def cancel(self, name: str, done: Callable[[], None]) -> None:
        """Give the request `name` up, if it is open: nobody will read it any more. A read that waits is answered.

        `done` is called afterwards, from the engine's thread.

        Raises:
            ShuttingDownError: the synthesizer is closed; `done` will not be called.
        """
        with self._lock:
            self._check_open()
            self._arrivals.put(lambda: self._cancel(name, done))

    def close(self) -> None:
        """Answer every read that waits with ShuttingDownError and end the thread."""
        with self._lock:
            self._closing = True
        self._arrivals.put(None)
        self._thread.join()

    def _check_open(self) -> None:
        if self._closing:
            raise _shutting_down()

    def _count(self, job: _Job, change: int) -> None:
        """Count `job` in (1) or out (-1); the caller holds the lock."""
        room = self._room
        self._room = replace(
            room, num_open=room.num_open + change, num_batch=room.num_batch + (change if job.is_batch else 0)
        )
        self._sign.write(self._room)

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        try:
            self._engine = make_engine()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        while self._take_arrivals():
            self._look_around()
            for one in [] if self._engine.is_idle else self._step():
                self._advance(one)
            self._answer_reads()
        with suppress(queue.Empty):
            while True:
                arrival = self._arrivals.get_nowait()
                if arrival is not None:
                    arrival()
        self._end_all(_shutting_down())

    def _step(self) -> list[Finished]:
        """One step of the engine; one that fails ends every open request."""
        started = time.perf_counter()
        try:
            finished = self._engine.step()
        except Exception:
            logger.exception("a step of the engine failed")
            self._end_all(EngineError("a step of the engine failed; the server's log has the cause"))
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                logger.critical("%d steps in a row have failed: this process ends", MAX_FAILED_STEPS)
                time.sleep(LAST_WORDS_S)
                self._abandon()
            return []
        self._num_failed_steps = 0
        seconds = time.perf_counter() - started
        self._tell(lambda observer: observer.step(Step(seconds, self._engine.batch_size, self._engine.num_generated)))
        return finished

    def _take_arrivals(self) -> bool:
        """Do what has arrived, waiting for it when there is nothing else to do; False once closed."""
        with suppress(queue.Empty):
            while True:
                timeout = LOOK_S if self._jobs else None
                if timeout is None:
                    self._report_load()
                arrival = self._arrivals.get(block=self._engine.is_idle, timeout=timeout)
                if arrival is None:
                    return False
                arrival()
        return True

    def _open(self, job: _Job, reply: Reply) -> None:
        if job.name in self._jobs:
            with self._lock:
                self._count(job, -1)
            _send(reply, InvalidInputError("stream_id", job.name, "the id of no open stream, with 'generation'"))
            return
        self._jobs[job.name] = job
        self._wait_for(job, reply)
        with self._answers_for(job):
            self._start_waiting(job)

    def _read(self, name: str, reply: Reply) -> None:
        job = self._jobs.get(name)
        if job is None or job.reply is not None:
            allowed = "the id of an open stream that is not being read (an idle one is given up after its lease)"
            _send(reply, InvalidInputError("stream_id", name, allowed))
            return
        self._wait_for(job, reply)
        if job.error is not None:
            self._end(job, job.error)
            return
        self._answer_read(job)

    def _cancel(self, name: str, done: Callable[[], None]) -> None:
        if name in self._jobs:
            self._end(self._jobs[name], CancelledError("the request was cancelled"))
        try:
            done()
        except Exception:
            logger.exception("a reply could not be sent")

    def _wait_for(self, job: _Job, reply: Reply) -> None:
        job.reply = reply
        self._reading[job] = None

    def _advance(self, finished: Finished) -> None:
        """Take a sequence that ended: speak what was refined, or keep what was spoken."""
        owner = self._owners.pop(finished.sequence, None)
        if owner is None:  # another sentence of its request failed in the same step
            return
        job, place = owner
        with self._answers_for(job):
            del job.running[place]
            if finished.sequence.finish_reason is FinishReason.FAILED:
                raise EngineError(f"sentence {place + 1} failed: the model's logits are not finite")
            if finished.sequence.kind is Kind.TEXT:
                self._take_refined(job, place, finished.sequence)
            else:
                self._keep_spoken(job, place, finished)

    def _take_refined(self, job: _Job, place: int, sequence: Sequence) -> None:
        refined = self._prompts.refined_text(tuple(token for (token,) in sequence.tokens))
        job.texts[place] = refined or job.texts[place]  # style tags alone say nothing: keep the text
        request = job.request
        if request.refine_only:
            self._start_waiting(job)
            return
        prompt = self._prompts.code_prompt(
            job.texts[place], request.prompt, request.sample_text, has_speaker=request.has_speaker
        )
        self._add(job, place, Kind.AUDIO, prompt)

    def _keep_spoken(self, job: _Job, place: int, finished: Finished) -> None:
        job.spoken[place] = finished
        job.num_tokens += len(finished.sequence.tokens)
        if job.num_tokens > MAX_REQUEST_TOKENS:
            allowed = f"text of at most {MAX_REQUEST_TOKENS} audio tokens (35 minutes of speech): send it in parts"
            raise InvalidInputError("text", " ".join(job.request.texts), allowed)

    def _start_waiting(self, job: _Job) -> None:
        """Queue as many sentences in the engine as a request may have there, finished and unread ones included."""
        kind = Kind.TEXT if job.request.refine else Kind.AUDIO
        rivals = sum(other.is_batch <= job.is_batch for other in self._jobs.values())
        share = max(1, self._max_sequences // rivals)
        allowed = min(share, self._max_sentences_at_once, job.opening.plan.sentences_ahead)
        while job.waiting and len(job.running) + len(job.spoken) < allowed:
            place = job.waiting.popleft()
            self._add(job, place, kind, job.request.prompts[place])

    def _add(self, job: _Job, place: int, kind: Kind, prompt: tuple[int, ...]) -> None:
        sequence = _sequence(job, place, kind, prompt)
        try:
            self._engine.add(sequence)
        except ValueError as error:
            raise InvalidInputError("text", job.texts[place], f"a shorter sentence: {error}") from error
        job.running[place] = sequence
        self._owners[sequence] = job, place

    def _answer_reads(self) -> None:
        for job in list(self._reading):
            self._answer_read(job)

    def _answer_read(self, job: _Job) -> None:
        """Answer the read that waits, if its chunk is there."""
        with self._answers_for(job):
            part = _refined_part(job) if job.request.refine_only else self._next_part(job)
            if part is None:
                return
            if part.chunk.is_final:
                self._end(job, part)
                return
            self._start_waiting(job)
            self._reply(job, part)

    def _next_part(self, job: _Job) -> Part | None:
        """The next chunk, taken as read, or None while too little of it is there."""
        finished = job.spoken.get(job.place)
        sequence = finished.sequence if finished else job.running.get(job.place)
        if sequence is None or sequence.kind is Kind.TEXT or not (finished or sequence.has_hidden):
            return None
        window = next_window(
            job.opening.plan, job.num_chunks, job.num_read, len(sequence.tokens), ended=finished is not None
        )
        if window is None:
            return None
        if finished:
            hidden = finished.hidden[window.start : window.end]
        else:
            hidden = self._engine.hidden(sequence, window.start, window.end)
        return Part(hidden, sequence.tokens[window.first : window.last], _take_chunk(job, sequence, window))

    @contextmanager
    def _answers_for(self, job: _Job) -> Iterator[None]:
        """Whatever is raised inside ends the request of `job`, and no other."""
        try:
            yield
        except ServingError as error:
            self._end(job, error)
        except Exception:
            logger.exception("a request failed")
            self._end(job, EngineError("the request failed; the server's log has the cause"))

    def _look_around(self) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._drop_expired(now)
            drained = drained_until()
            if drained is not None and now >= drained:
                self._end_all(_shutting_down())
            self._report_load()

    def _report_load(self) -> None:
        engine = self._engine
        load = Load(
            requests_open=len(self._jobs),
            sequences_running=engine.num_running,
            sequences_waiting=engine.num_waiting,
            cache_tokens_used=engine.num_used_cache_tokens,
            cache_tokens=engine.num_cache_tokens,
        )
        if load != self._observed:
            self._observed = load
            self._tell(lambda observer: observer.load(load))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        if self._observer is not None:
            try:
                what(self._observer)
            except Exception:  # whatever it is, requests matter more
                logger.exception("what the engine does could not be reported")

    def _drop_expired(self, now: float) -> None:
        for job in list(self._jobs.values()):
            deadline_ns = job.request.deadline_ns
            if job.reply is None and now > job.idle_since + self._lease_s:
                logger.warning("a request was given up: not read for %.0f s", self._lease_s)
                self._forget(job)
            elif deadline_ns is not None and time.monotonic_ns() >= deadline_ns and job.error is None:
                self._end(job, DeadlineExceededError("deadline exceeded before the audio was complete"))

    def _end_all(self, error: ServingError) -> None:
        for job in list(self._jobs.values()):
            self._end(job, error)

    def _end(self, job: _Job, outcome: Part | ServingError) -> None:
        """End a request: its last part or its error goes to the read that waits, or an error to the next one."""
        if job.reply is not None or isinstance(outcome, CancelledError):
            self._forget(job)
            self._reply(job, outcome)
        elif isinstance(outcome, ServingError):
            self._leave_engine(job)
            job.error = outcome

    def _leave_engine(self, job: _Job) -> None:
        for sequence in job.running.values():
            self._engine.remove(sequence)
            del self._owners[sequence]
        job.running.clear()
        job.spoken.clear()

    def _forget(self, job: _Job) -> None:
        self._leave_engine(job)
        del self._jobs[job.name]
        with self._lock:
            self._count(job, -1)

    def _reply(self, job: _Job, outcome: Part | ServingError) -> None:
        """The one place that answers reads of open requests."""
        self._reading.pop(job, None)
        reply, job.reply = job.reply, None
        job.idle_since = time.monotonic()
        if reply is not None:
            _send(reply, outcome)


def _send(reply: Reply, outcome: Part | ServingError) -> None:
    try:
        reply(outcome)
    except Exception:
        logger.exception("a reply could not be sent")


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down")


def _refined_part(job: _Job) -> Part | None:
    """The answer to a request for refined text alone, once all of it is there."""
    if job.waiting or job.running:
        return None
    return Part(None, [], Chunk(0, 0, 0, 0, 0, tuple(job.texts), (), job.request.seed, is_final=True))


def _take_chunk(job: _Job, sequence: Sequence, window: Window) -> Chunk:
    """The chunk of `window`, which counts as read from now on."""
    place, is_first = job.place, job.num_read == 0
    sentences: tuple[SpokenSentence, ...] = ()
    pause_samples = 0
    is_final = window.ends and place == len(job.texts) - 1
    job.num_samples += window.num_samples
    job.num_read = window.last
    job.num_chunks += 1
    if window.ends:
        sentences = (
            SpokenSentence(
                text=job.texts[place],
                start=job.sentence_start / SAMPLE_RATE,
                end=job.num_samples / SAMPLE_RATE,
                num_tokens=len(sequence.tokens),
                finish_reason=sequence.finish_reason.value if sequence.finish_reason else "",
            ),
        )
        if not is_final:
            pause_samples = job.request.pauses[place] * SAMPLES_PER_TOKEN + HOP_LENGTH
        job.num_samples += pause_samples
        job.sentence_start = job.num_samples
        del job.spoken[place]
        job.place, job.num_read, job.num_chunks = place + 1, 0, 0
    return Chunk(
        first_sample=window.first_sample,
        num_samples=window.num_samples,
        fade_samples=window.fade_tokens * SAMPLES_PER_TOKEN,
        pause_samples=pause_samples,
        num_tokens=window.last - window.first,
        texts=(job.texts[place],) if is_first else (),
        sentences=sentences,
        seed=job.request.seed,
        is_final=is_final,
    )


def _sequence(job: _Job, place: int, kind: Kind, prompt: tuple[int, ...]) -> Sequence:
    """Sentence number `place` of the request as a sequence that generates `kind`."""
    opening, priority = job.opening, Priority.BATCH if job.is_batch else Priority.INTERACTIVE
    options = opening.request.sampling
    stream = 2 * place + (kind is Kind.AUDIO)
    if kind is Kind.TEXT:
        params = SamplingParams(
            temperature=options.refine_temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=1.0,  # ChatTTS's default, and the only value that its refining takes
            min_new_tokens=0,
            max_new_tokens=options.refine_max_new_tokens,
            seed=opening.request.seed,
            stream=stream,
        )
        return Sequence(kind, prompt, params, priority=priority)
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        min_new_tokens=options.min_new_tokens,
        max_new_tokens=options.max_new_tokens,
        seed=opening.request.seed,
        stream=stream,
    )
    return Sequence(kind, prompt, params, opening.request.sample_codes, opening.speaker, priority)
