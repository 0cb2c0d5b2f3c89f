"""Requests on their way through the engine: sentences refined, then spoken, and one reply for each request.

A thread of its own owns the engine and everything here but the queue of arrivals; every reply leaves from it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.engine import Engine, Finished
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from chattts_serving.errors import (
    DeadlineExceededError,
    EngineError,
    InvalidInputError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from chattts_serving.request import GenerationRequest

logger = logging.getLogger(__name__)


class PromptBuilder(Protocol):
    """What is needed to speak a refined sentence; `Prompts` is one."""

    def refined_text(self, ids: tuple[int, ...]) -> str:
        """The text of refined token ids."""

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        """Token ids of the prompt that has `text` spoken."""


@dataclass(frozen=True)
class Spoken:
    """One sentence as the engine spoke it.

    Attributes:
        codes: its audio tokens, int32 [num_tokens, num_codebooks].
        hidden: the hidden states that they were drawn from, float32 [num_tokens, hidden].
    """

    codes: npt.NDArray[np.int32]
    hidden: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Synthesis:
    """What the engine made of one request.

    Attributes:
        sentences: its sentences, in order; each has at least one audio token.
        refined_text: the sentences' text as it was spoken, joined by newlines.
    """

    sentences: tuple[Spoken, ...]
    refined_text: str


Reply = Callable[["Synthesis | ServingError"], None]

MAX_REQUEST_TOKENS = 98_304  # audio tokens of one request, 35 min: one row in memory, and its samples fit INT32


@dataclass(eq=False)
class _Job:
    """One request in the engine.

    Attributes:
        request, speaker, reply: as submitted.
        texts: the sentences as they will be spoken; refined ones replace those of the request.
        waiting: places of the sentences that have not been started.
        running: the sequences in the engine, and the place of the sentence that each belongs to.
        spoken: the finished sentences by place.
        num_tokens: audio tokens of the finished sentences.
    """

    request: GenerationRequest
    speaker: npt.NDArray[np.float32]
    reply: Reply
    texts: list[str]
    waiting: deque[int]
    running: dict[Sequence, int] = field(default_factory=dict)
    spoken: dict[int, Spoken] = field(default_factory=dict)
    num_tokens: int = 0


class Synthesizer:
    """Runs requests through an engine, many at a time, and answers each exactly once."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        prompts: PromptBuilder,
        *,
        max_requests: int,
        max_sentences_at_once: int,
    ) -> None:
        """Start the thread and wait until its engine is made.

        Args:
            make_engine: called on the thread, which then owns the engine: PyTorch's current GPU and stream belong to a
                thread.
            prompts: makes the prompts of the second pass.
            max_requests: requests at once; one more is refused.
            max_sentences_at_once: sentences of one request in the engine, so that a long text leaves room for others.

        Raises:
            Exception: whatever `make_engine` raises.
        """
        self._prompts = prompts
        self._max_requests = max_requests
        self._max_sentences_at_once = max_sentences_at_once
        self._num_open = 0  # requests taken and not yet answered, guarded by _lock
        self._lock = threading.Lock()
        self._closing = False
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None wakes the thread to close
        self._jobs: dict[_Job, None] = {}  # the open requests, oldest first
        self._owners: dict[Sequence, _Job] = {}
        self._made: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(make_engine,), name="engine", daemon=True)
        self._thread.start()
        self._made.result()

    def submit(self, request: GenerationRequest, speaker: npt.NDArray[np.float32], reply: Reply) -> None:
        """Queue `request`; `reply` is called once, from the engine's thread.

        Args:
            request: what to say.
            speaker: the voice's normalised vector, float32 [hidden].
            reply: takes the result or the error.

        Raises:
            OverloadedError: `max_requests` requests are open; `reply` will not be called.
            ShuttingDownError: the synthesizer is closed; `reply` will not be called.
        """
        with self._lock:
            if self._closing:
                raise _shutting_down()
            if self._num_open >= self._max_requests:
                raise OverloadedError(f"{self._num_open} requests are open, the most allowed; try again later")
            self._num_open += 1
            self._arrivals.put(_Job(request, speaker, reply, list(request.texts), deque(range(len(request.texts)))))

    def close(self) -> None:
        """Answer every open request with ShuttingDownError and end the thread."""
        with self._lock:
            self._closing = True
        self._arrivals.put(None)
        self._thread.join()

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        try:
            self._engine = make_engine()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        while self._take_arrivals():
            self._drop_expired()
            try:
                finished = self._engine.step()
            except Exception:
                logger.exception("a step of the engine failed")
                self._answer_all(EngineError("a step of the engine failed; the server's log has the cause"))
                continue
            for one in finished:
                self._advance(one)
        self._answer_all(_shutting_down())

    def _take_arrivals(self) -> bool:
        """Start what has arrived, waiting for it when there is nothing else to do; False once closed."""
        while not self._arrivals.empty() or not self._jobs:
            job = self._arrivals.get()
            if job is None:
                return False
            self._jobs[job] = None
            with self._answers_for(job):
                self._start_waiting(job)
        return True

    def _advance(self, finished: Finished) -> None:
        """Take a sequence that ended: speak what was refined, or keep what was spoken."""
        job = self._owners.pop(finished.sequence, None)
        if job is None:  # another sentence of its request failed in the same step
            return
        with self._answers_for(job):
            place = job.running.pop(finished.sequence)
            if finished.sequence.kind is Kind.TEXT:
                self._speak_refined(job, place, finished.sequence)
            else:
                self._keep_spoken(job, place, finished)

    def _speak_refined(self, job: _Job, place: int, sequence: Sequence) -> None:
        refined = self._prompts.refined_text(tuple(token for (token,) in sequence.tokens))
        job.texts[place] = refined or job.texts[place]  # style tags alone say nothing: keep the text
        request = job.request
        prompt = self._prompts.code_prompt(
            job.texts[place], request.prompt, request.sample_text, has_speaker=request.has_speaker
        )
        self._add(job, place, Kind.AUDIO, prompt)

    def _keep_spoken(self, job: _Job, place: int, finished: Finished) -> None:
        tokens = finished.sequence.tokens
        job.spoken[place] = Spoken(np.array(tokens, np.int32), finished.hidden)
        job.num_tokens += len(tokens)
        if job.num_tokens > MAX_REQUEST_TOKENS:
            allowed = f"text of at most {MAX_REQUEST_TOKENS} audio tokens (35 minutes of speech): send it in parts"
            raise InvalidInputError("text", " ".join(job.request.texts), allowed)
        if len(job.spoken) == len(job.texts):
            self._answer(job, _synthesis(job))
        else:
            self._start_waiting(job)

    def _start_waiting(self, job: _Job) -> None:
        """Queue as many sentences in the engine as a request may have there."""
        kind = Kind.TEXT if job.request.refine else Kind.AUDIO
        while job.waiting and len(job.running) < self._max_sentences_at_once:
            place = job.waiting.popleft()
            self._add(job, place, kind, job.request.prompts[place])

    def _add(self, job: _Job, place: int, kind: Kind, prompt: tuple[int, ...]) -> None:
        sequence = _sequence(job, place, kind, prompt)
        try:
            self._engine.add(sequence)
        except ValueError as error:
            raise InvalidInputError("text", job.texts[place], f"a shorter sentence: {error}") from error
        job.running[sequence] = place
        self._owners[sequence] = job

    @contextmanager
    def _answers_for(self, job: _Job) -> Iterator[None]:
        """Whatever is raised inside ends the request of `job`, and no other."""
        try:
            yield
        except ServingError as error:
            self._answer(job, error)
        except Exception:
            logger.exception("a request failed")
            self._answer(job, EngineError("the request failed; the server's log has the cause"))

    def _drop_expired(self) -> None:
        now = time.monotonic_ns()
        for job in list(self._jobs):
            if job.request.deadline_ns is not None and now >= job.request.deadline_ns:
                self._answer(job, DeadlineExceededError("deadline exceeded before the audio was complete"))

    def _answer_all(self, error: ServingError) -> None:
        while not self._arrivals.empty():
            job = self._arrivals.get()
            if job is not None:
                self._jobs[job] = None
        for job in list(self._jobs):
            self._answer(job, error)

    def _answer(self, job: _Job, outcome: Synthesis | ServingError) -> None:
        """The one place that replies; also drops what the engine still holds of the request."""
        for sequence in job.running:
            self._engine.remove(sequence)
            del self._owners[sequence]
        del self._jobs[job]
        with self._lock:
            self._num_open -= 1
        try:
            job.reply(outcome)
        except Exception:
            logger.exception("a reply could not be sent")


def _shutting_down() -> ShuttingDownError:
    return ShuttingDownError("the server is shutting down")


def _synthesis(job: _Job) -> Synthesis:
    return Synthesis(tuple(job.spoken[place] for place in range(len(job.texts))), "\n".join(job.texts))


def _sequence(job: _Job, place: int, kind: Kind, prompt: tuple[int, ...]) -> Sequence:
    """Sentence number `place` of `job` as a sequence that generates `kind`."""
    options = job.request.sampling
    stream = 2 * place + (kind is Kind.AUDIO)
    if kind is Kind.TEXT:
        params = SamplingParams(
            temperature=options.refine_temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            repetition_penalty=1.0,  # ChatTTS's default, and the only value that its refining takes
            min_new_tokens=0,
            max_new_tokens=options.refine_max_new_tokens,
            seed=job.request.seed,
            stream=stream,
        )
        return Sequence(kind, prompt, params)
    params = SamplingParams(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        repetition_penalty=options.repetition_penalty,
        min_new_tokens=options.min_new_tokens,
        max_new_tokens=options.max_new_tokens,
        seed=job.request.seed,
        stream=stream,
    )
    return Sequence(kind, prompt, params, job.request.sample_codes, job.speaker)
