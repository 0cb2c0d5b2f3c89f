"""The thread that owns the engine: requests are opened, read chunk by chunk under a name, and end.

Everything but the queue of arrivals is the thread's own, and every reply leaves from it. What a request is, and which
chunk is next, is in `open_request`.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from chattts_serving.engine.engine import Engine, Finished
from chattts_serving.engine.sequence import Kind, Sequence
from chattts_serving.errors import (
    CancelledError,
    DeadlineExceededError,
    EngineError,
    InvalidInputError,
    ServingError,
)
from chattts_serving.request import GenerationRequest
from chattts_serving.speech.admission import Room, drained_until
from chattts_serving.speech.arrivals import Arrivals, shutting_down
from chattts_serving.speech.observer import Observed, Observer
from chattts_serving.speech.open_request import OpenRequest
from chattts_serving.speech.opening import Opening, Part, PromptBuilder, Reply
from chattts_serving.speech.pacing import Pacing
from chattts_serving.speech.waiting_reads import WaitingReads

logger = logging.getLogger(__name__)

LOOK_S = 0.02  # between two looks at deadlines, leases and load
MAX_FAILED_STEPS = 3  # in a row; a GPU that has failed does not recover within a process
LAST_WORDS_S = 1.0  # for the answers of a process that ends itself


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
        waits_for_sound: bool = False,
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
            waits_for_sound: whether the engine, which computes on the CPUs that decoder and vocoder have, does nothing
                while they make a stream's first sound.
            abandon: ends the process, for another one to take over, when MAX_FAILED_STEPS steps in a row have failed.

        Raises:
            Exception: whatever `make_engine` raises.
        """
        self._prompts = prompts
        self._max_sentences_at_once = max_sentences_at_once
        self._max_sequences = max_sequences
        self._lease_s = lease_s
        self._arrivals = Arrivals(Room(0, 0, max_requests, max_batch_requests))
        self._requests: dict[str, OpenRequest] = {}  # the open requests by name
        self._num_open = {False: 0, True: 0}  # of those, by whether they are of the batch
        self._waiting_reads = WaitingReads()  # for tokens
        self._pacing = Pacing(waits_for_sound=waits_for_sound)
        self._owners: dict[Sequence, tuple[OpenRequest, int]] = {}  # the request, and the place of the sentence
        self._next_look = 0.0
        self._observed = Observed(observer)
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
        request = OpenRequest(name, opening)
        self._arrivals.put_request(lambda: self._open(request, reply), is_batch=request.is_batch)

    def read(self, name: str, reply: Reply) -> None:
        """Read the next chunk of the request `name`; `reply` as for `open`.

        Raises:
            ShuttingDownError: the synthesizer is closed; `reply` will not be called.
        """
        self._arrivals.put(lambda: self._read(name, reply))

    def extend(self, name: str, more: GenerationRequest, done: Callable[[], None]) -> None:
        """Have the open request `name`, whose text goes on, say `more`; where it has ended, its reader hears of that.

        `done` is called afterwards, from the engine's thread.

        Raises:
            ShuttingDownError: the synthesizer is closed; `done` will not be called.
        """
        self._arrivals.put(lambda: self._extend(name, more, done))

    def cancel(self, name: str, done: Callable[[], None]) -> None:
        """Give the request `name` up, if it is open: nobody will read it any more. A read that waits is answered.

        `done` is called afterwards, from the engine's thread.

        Raises:
            ShuttingDownError: the synthesizer is closed; `done` will not be called.
        """
        self._arrivals.put(lambda: self._cancel(name, done))

    def close(self) -> None:
        """Answer every read that waits with ShuttingDownError and end the thread."""
        self._arrivals.close()
        self._thread.join()

    def _run(self, make_engine: Callable[[], Engine]) -> None:
        try:
            self._engine = make_engine()
        except BaseException as error:
            self._made.set_exception(error)
            return
        self._made.set_result(None)
        while self._take_arrivals():
            self._look_around()
            self._pace()
            for one in [] if self._engine.is_idle else self._step():
                self._advance(one)
            for request in self._waiting_reads.take(self._engine.num_steps_read):
                self._answer_read(request)
        with suppress(queue.Empty):
            while True:
                arrival = self._arrivals.get(block=False, timeout=None)
                if arrival is not None:
                    arrival()
        self._end_all(shutting_down())

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
        self._pacing.took_step(seconds)
        self._observed.step(self._engine, seconds)
        return finished

    def _take_arrivals(self) -> bool:
        """Do what has arrived, waiting for it when there is nothing else to do; False once closed."""
        with suppress(queue.Empty):
            while True:
                timeout = LOOK_S if self._requests else None
                if timeout is None:
                    self._observed.load(self._engine, len(self._requests))
                waits_s = self._pacing.waits_s(time.monotonic())
                arrival = self._arrivals.get(block=waits_s > 0 or self._engine.is_idle, timeout=waits_s or timeout)
                if arrival is None:
                    return False
                arrival()
        return True

    def _open(self, request: OpenRequest, reply: Reply) -> None:
        if request.name in self._requests:
            self._arrivals.leave(is_batch=request.is_batch)
            _send(reply, InvalidInputError("stream_id", request.name, "the id of no open stream, with 'generation'"))
            return
        self._requests[request.name] = request
        self._num_open[request.is_batch] += 1
        request.reply = reply
        if self._pacing.rests_from_now(request):
            self._let_rest(request, rests=True)
        with self._answers_for(request):
            self._start_waiting(request)
        self._answer_read(request)

    def _read(self, name: str, reply: Reply) -> None:
        request = self._requests.get(name)
        if request is None or request.reply is not None:
            allowed = "the id of an open stream that is not being read (an idle one is given up after its lease)"
            _send(reply, InvalidInputError("stream_id", name, allowed))
            return
        request.reply = reply
        now = time.monotonic()
        request.heard_since = request.heard_since or now
        self._pacing.took_sound(request, now - request.idle_since)
        if request.error is not None:
            self._end(request, request.error)
            return
        self._answer_read(request)

    def _extend(self, name: str, more: GenerationRequest, done: Callable[[], None]) -> None:
        request = self._requests.get(name)
        if request is not None and request.error is None:
            with self._answers_for(request):
                request.extend(more)
                self._start_waiting(request)
            self._answer_read(request)
        _send(lambda _: done(), None)

    def _cancel(self, name: str, done: Callable[[], None]) -> None:
        if name in self._requests:
            self._end(self._requests[name], CancelledError("the request was cancelled"))
        _send(lambda _: done(), None)

    def _advance(self, finished: Finished) -> None:
        """Take a sequence that ended."""
        owner = self._owners.pop(finished.sequence, None)
        if owner is None:  # another sentence of its request failed in the same step
            return
        request, place = owner
        with self._answers_for(request):
            again = request.take_finished(place, finished)
            if again is not None:
                self._add(request, place, again)
            elif finished.sequence.kind is Kind.TEXT:
                self._take_refined(request, place, finished.sequence)
        self._answer_read(request)

    def _take_refined(self, request: OpenRequest, place: int, sequence: Sequence) -> None:
        """Speak what was refined, or go on refining where that is all."""
        refined = self._prompts.refined_text(tuple(sequence.codes(0, sequence.num_new_tokens)[:, 0].tolist()))
        request.texts[place] = refined or request.texts[place]  # style tags alone say nothing: keep the text
        if request.request.refine_only:
            self._start_waiting(request)
            return
        manner = request.request.manner_of(place)
        prompt = self._prompts.code_prompt(
            request.texts[place], manner.prompt, manner.sample_text, has_speaker=manner.has_speaker
        )
        self._add(request, place, request.sequence(place, Kind.AUDIO, prompt))

    def _start_waiting(self, request: OpenRequest) -> None:
        """Queue as many sentences in the engine as a request may have there, finished and unread ones included."""
        rivals = self._num_open[False] + (self._num_open[True] if request.is_batch else 0)
        share = max(1, self._max_sequences // rivals)
        allowed = min(share, self._max_sentences_at_once, request.opening.plan.sentences_ahead)
        while request.waiting and request.num_ahead < allowed:
            self._add(request, *request.start_next())

    def _add(self, request: OpenRequest, place: int, sequence: Sequence) -> None:
        heads = self._engine.text_heads if request.request.word_times else ()
        if heads and sequence.kind is Kind.AUDIO:
            request.watch(place, sequence, self._prompts, heads)
        try:
            self._engine.add(sequence)
        except ValueError as error:
            raise InvalidInputError("text", request.texts[place], f"a shorter sentence: {error}") from error
        request.running[place] = sequence
        self._owners[sequence] = request, place
        if request.rests:
            self._engine.rest(sequence)

    def _pace(self) -> None:
        """Let those rest whom others need to go before, and go on who has rested."""
        changes = self._pacing.changes(self._requests.values(), time.monotonic())
        for rests, changed in zip((True, False), changes, strict=True):
            for request in changed:
                self._let_rest(request, rests=rests)

    def _let_rest(self, request: OpenRequest, *, rests: bool) -> None:
        request.rests, request.rest_changed_at = rests, time.monotonic()
        for sequence in reversed(request.running.values()):  # who is resumed last waits first
            if rests:
                self._engine.rest(sequence)
            else:
                self._engine.resume(sequence)
        self._answer_read(request)

    def _answer_read(self, request: OpenRequest) -> None:
        """Answer the read that waits, if there is one that may be answered and its chunk is there."""
        if request.reply is None or request.rests:
            return
        with self._answers_for(request):
            part = request.next_part(self._engine.hidden)
            if part is None:
                missing = request.num_missing()  # None: whatever brings the chunk answers the read
                if missing is not None:
                    self._waiting_reads.put(request, self._engine.num_steps_read + missing)  # one a step at most
                return
            if part.chunk.is_final:
                self._end(request, part)
                return
            self._start_waiting(request)
            self._reply(request, part)

    @contextmanager
    def _answers_for(self, request: OpenRequest) -> Iterator[None]:
        """Whatever is raised inside ends the request of `request`, and no other."""
        try:
            yield
        except ServingError as error:
            self._end(request, error)
        except Exception:
            logger.exception("a request failed")
            self._end(request, EngineError("the request failed; the server's log has the cause"))

    def _look_around(self) -> None:
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._drop_expired(now)
            drained = drained_until()
            if drained is not None and now >= drained:
                self._end_all(shutting_down())
            self._observed.load(self._engine, len(self._requests))

    def _drop_expired(self, now: float) -> None:
        for request in list(self._requests.values()):
            deadline_ns = request.request.deadline_ns
            if request.reply is None and now > request.idle_since + self._lease_s:
                logger.warning("a request was given up: not read for %.0f s", self._lease_s)
                self._forget(request)
            elif deadline_ns is not None and time.monotonic_ns() >= deadline_ns and request.error is None:
                self._end(request, DeadlineExceededError("deadline exceeded before the audio was complete"))

    def _end_all(self, error: ServingError) -> None:
        for request in list(self._requests.values()):
            self._end(request, error)

    def _end(self, request: OpenRequest, outcome: Part | ServingError) -> None:
        """End a request: its last part or its error goes to the read that waits, or an error to the next one."""
        if request.reply is not None or isinstance(outcome, CancelledError):
            self._forget(request)
            self._reply(request, outcome)
        elif isinstance(outcome, ServingError):
            self._leave_engine(request)
            request.error = outcome

    def _leave_engine(self, request: OpenRequest) -> None:
        for sequence in request.running.values():
            self._engine.remove(sequence)
            del self._owners[sequence]
        request.running.clear()
        request.spoken.clear()

    def _forget(self, request: OpenRequest) -> None:
        self._leave_engine(request)
        self._pacing.forget(request)
        del self._requests[request.name]
        self._num_open[request.is_batch] -= 1
        self._arrivals.leave(is_batch=request.is_batch)

    def _reply(self, request: OpenRequest, outcome: Part | ServingError) -> None:
        """The one place that answers reads of open requests."""
        self._waiting_reads.drop(request)
        reply, request.reply = request.reply, None
        request.idle_since = time.monotonic()
        if isinstance(outcome, Part) and not outcome.chunk.is_final:
            self._pacing.begins_sound(request, request.idle_since)
        if reply is not None:
            _send(reply, outcome)


def _send(reply: Callable[[Any], None], outcome: Any) -> None:
    try:
        reply(outcome)
    except Exception:
        logger.exception("a reply could not be sent")
