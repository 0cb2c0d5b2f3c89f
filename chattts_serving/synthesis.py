"""Requests on their way through the engine: sentences refined, then spoken, and one reply for each request.

A thread of its own owns the engine and everything here but the queue of arrivals; every reply leaves from it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
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
    """What is needed to speak a refined sentence; `TextFrontend` is one."""

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


@dataclass(eq=False)
class _Job:
    """One request in the engine; `texts` and `spoken` change as its sentences finish."""

    request: GenerationRequest
    speaker: npt.NDArray[np.float32]
    reply: Reply
    texts: list[str]
    spoken: dict[int, Spoken] = field(default_factory=dict)


class Synthesizer:
    """Runs requests through an engine, many at a time, and answers each exactly once."""

    def __init__(self, engine: Engine, prompts: PromptBuilder, max_requests: int) -> None:
        """Start the thread; more than `max_requests` requests at once are refused."""
        self._engine = engine
        self._prompts = prompts
        self._max_requests = max_requests
        self._num_open = 0  # requests taken and not yet answered, guarded by _lock
        self._lock = threading.Lock()
        self._closing = False
        self._arrivals: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None wakes the thread to close
        self._owners: dict[Sequence, tuple[_Job, int]] = {}  # sequence -> its request and the sentence's place in it
        self._jobs: set[_Job] = set()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest, speaker: npt.NDArray[np.float32], reply: Reply) -> None:
        """Queue `request`; `reply` is called once, from the engine's thread.

        Args:
            request: what to say.
            speaker: the voice's normalised vector, float32 [hidden].
            reply: takes the result or the error; must not raise.

        Raises:
            OverloadedError: `max_requests` requests are open; `reply` will not be called.
            ShuttingDownError: the synthesizer is closed; `reply` will not be called.
        """
        with self._lock:
            if self._closing:
                raise ShuttingDownError("the server is shutting down")
            if self._num_open >= self._max_requests:
                raise OverloadedError(f"{self._num_open} requests are open, the most allowed; try again later")
            self._num_open += 1
            self._arrivals.put(_Job(request, speaker, reply, list(request.texts)))

    def close(self) -> None:
        """Answer every open request with ShuttingDownError and end the thread."""
        with self._lock:
            self._closing = True
        self._arrivals.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._take_arrivals():
            self._drop_expired()
            try:
                finished = self._engine.step()
            except Exception:
                logger.exception("a step of the engine failed")
                self._fail_all(EngineError("a step of the engine failed; the server's log has the cause"))
                continue
            for one in finished:
                self._advance(one)
        self._fail_all(ShuttingDownError("the server is shutting down"))

    def _take_arrivals(self) -> bool:
        """Start what has arrived, waiting for it when there is nothing else to do; False once closed."""
        while not self._arrivals.empty() or not self._jobs:
            job = self._arrivals.get()
            if job is None:
                return False
            self._start(job)
        return True

    def _start(self, job: _Job) -> None:
        self._jobs.add(job)
        kind = Kind.TEXT if job.request.refine else Kind.AUDIO
        for place, prompt in enumerate(job.request.prompts):
            if not self._add(job, place, kind, prompt):
                return

    def _advance(self, finished: Finished) -> None:
        """Take a sequence that ended: speak what was refined, or keep what was spoken."""
        sequence = finished.sequence
        job, place = self._owners.pop(sequence)
        if sequence.kind is Kind.AUDIO:
            job.spoken[place] = Spoken(np.array(sequence.tokens, np.int32), finished.hidden)
            if len(job.spoken) == len(job.texts):
                self._answer(job, _synthesis(job))
            return
        try:
            refined = self._prompts.refined_text(tuple(token for (token,) in sequence.tokens))
            job.texts[place] = refined or job.texts[place]  # control tags alone say nothing: keep the text
            request = job.request
            prompt = self._prompts.code_prompt(
                job.texts[place], request.prompt, request.sample_text, has_speaker=request.has_speaker
            )
        except ServingError as error:
            self._answer(job, error)
            return
        self._add(job, place, Kind.AUDIO, prompt)

    def _add(self, job: _Job, place: int, kind: Kind, prompt: tuple[int, ...]) -> bool:
        """Queue one sentence in the engine; where it cannot be, the whole request is answered with the error."""
        sequence = _sequence(job, place, kind, prompt)
        try:
            self._engine.add(sequence)
        except ValueError as error:
            self._answer(job, InvalidInputError("text", job.texts[place], f"a shorter sentence: {error}"))
            return False
        self._owners[sequence] = (job, place)
        return True

    def _drop_expired(self) -> None:
        now = time.monotonic_ns()
        for job in [job for job in self._jobs if job.request.deadline_ns is not None]:
            if now >= (job.request.deadline_ns or 0):
                self._answer(job, DeadlineExceededError("deadline exceeded before the audio was complete"))

    def _fail_all(self, error: ServingError) -> None:
        for job in list(self._jobs):
            self._answer(job, error)
        while not self._arrivals.empty():
            job_or_none = self._arrivals.get()
            if job_or_none is not None:
                self._answer(job_or_none, error)

    def _answer(self, job: _Job, outcome: Synthesis | ServingError) -> None:
        """The one place that replies; also drops what the engine still holds of the request."""
        for sequence in [sequence for sequence, (owner, _) in self._owners.items() if owner is job]:
            self._engine.remove(sequence)
            del self._owners[sequence]
        self._jobs.discard(job)
        with self._lock:
            self._num_open -= 1
        job.reply(outcome)


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
