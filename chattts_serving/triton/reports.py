"""What the models tell an operator: metrics of the engine and of requests, and a line of log for each request.

The log is on where the environment variable LOG_REQUESTS is 1, one JSON object a line on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.engine.sequence import Kind
from chattts_serving.errors import ServingError
from chattts_serving.speech.observer import Load, Step
from chattts_serving.triton.metrics import Metrics
from chattts_serving.variables import LOG_REQUESTS

STEP_BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FIRST_AUDIO_BOUNDS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
REALTIME_BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)
LOAD = {
    "requests_open": "Requests that were taken and have not ended.",
    "sequences_running": "Sentences in the batch.",
    "sequences_waiting": "Sentences that wait for room in the batch or the cache.",
    "cache_tokens_used": "Tokens of the key-value cache that are in use.",
    "cache_tokens": "Tokens that the key-value cache holds.",
}


class EngineReports:
    """`Observer` of the engine that makes metrics of what it is told."""

    def __init__(self, metrics: Metrics) -> None:
        """Make its metrics."""
        self._load = {name: metrics.gauge(name, description) for name, description in LOAD.items()}
        tokens = "Tokens generated: of audio (21.3 ms each) and of refined text."
        self._tokens = {kind: metrics.counter("tokens_total", tokens, kind=kind.value) for kind in Kind}
        self._seconds = metrics.histogram("step_seconds", "Time of the engine's steps.", STEP_BOUNDS_S)
        self._sequences = metrics.histogram("step_sequences", "Sentences in the batch of each step.", BATCH_BOUNDS)

    def load(self, load: Load) -> None:
        """As `Observer`."""
        for name, number in asdict(load).items():
            self._load[name].set(number)

    def step(self, step: Step) -> None:
        """As `Observer`."""
        self._seconds.observe(step.seconds)
        self._sequences.observe(step.num_sequences)
        for kind, number in step.num_generated.items():
            self._tokens[kind].add(number)


class RequestReports:
    """Reports the requests of one model."""

    def __init__(self, metrics: Metrics, model: str, *, speaks: bool = True, streams: bool = False) -> None:
        """`model` is its name; whether it `speaks`, and `streams`, so that there is a first audio before the whole.

        Each request is reported once, by the model where it ends; one that only prepares reports those that fail.
        """
        self.model, self.speaks, self.streams = model, speaks, streams
        self.is_logged = os.environ.get(LOG_REQUESTS) == "1"
        kinds: list[type[ServingError]] = [ServingError, *ServingError.__subclasses__()]
        self.outcomes = {
            outcome: metrics.counter("requests_total", "Requests that have ended.", model=model, outcome=outcome)
            for outcome in dict.fromkeys([*(["answered"] if speaks else []), *(kind.outcome for kind in kinds)])
        }
        if speaks:
            self.come, self.gone = (
                metrics.counter(f"requests_{name}_total", f"Requests that have {name}.", model=model)
                for name in ("come", "gone")
            )
            self._states = metrics.gauge(
                "states_held", "Requests whose decoder and vocoder state is held.", model=model
            )
            self._state_bytes = metrics.gauge("state_bytes", "Bytes of the states that are held.", model=model)
        if streams:
            self.first_audio = metrics.histogram(
                "first_audio_seconds", "From a stream's arrival to its first audio.", FIRST_AUDIO_BOUNDS_S
            )
        if speaks:
            self.realtime_factor = metrics.histogram(
                "realtime_factor", "Seconds that a request took per second of its audio.", REALTIME_BOUNDS, model=model
            )

    def held(self, num_states: int, num_bytes: int) -> None:
        """So many more states are held between chunks, and so many more bytes of them; fewer where below 0."""
        self._states.add(num_states)
        self._state_bytes.add(num_bytes)

    def arrived(self, request: Any) -> RequestReport:
        """The report of `request`, a `pb_utils.InferenceRequest`, which has just come."""
        if self.speaks:
            self.come.add()
        return RequestReport(self, request.request_id())


class RequestReport:
    """What becomes of one request."""

    def __init__(self, reports: RequestReports, request_id: str) -> None:
        """It has just come."""
        self._reports, self._request_id = reports, request_id
        self._arrived = time.monotonic()
        self._first_audio_s: float | None = None
        self._num_samples = self._num_tokens = 0

    def heard(self, outputs: Mapping[str, Any]) -> None:
        """Some of its outputs are about to leave: `audio` [n] and `num_tokens` [1]."""
        self._num_samples += len(outputs["audio"])
        self._num_tokens += int(np.asarray(outputs["num_tokens"]).item())
        if self._reports.streams and self._num_samples and self._first_audio_s is None:
            self._first_audio_s = time.monotonic() - self._arrived
            self._reports.first_audio.observe(self._first_audio_s)

    def gone(self) -> None:
        """All that this model has to say of it has left, whoever reports how it ended."""
        self._reports.gone.add()

    def ended(self, error: BaseException | None = None) -> None:
        """It was answered, or ended by `error`."""
        seconds, audio_s = time.monotonic() - self._arrived, self._num_samples / SAMPLE_RATE
        outcome = "answered" if error is None else getattr(error, "outcome", ServingError.outcome)
        self._reports.outcomes[outcome].add()
        if error is None and audio_s:
            self._reports.realtime_factor.observe(seconds / audio_s)
        if self._reports.is_logged:
            line = {
                "event": "request",
                "time": round(time.time(), 3),
                "request_id": self._request_id,
                "model": self._reports.model,
                "outcome": outcome,
                "seconds": round(seconds, 4),
                "first_audio_s": None if self._first_audio_s is None else round(self._first_audio_s, 4),
                "audio_s": round(audio_s, 3),
                "tokens": self._num_tokens,
                "error": None if error is None else str(error)[:300],
            }
            sys.stderr.write(json.dumps(line, ensure_ascii=True) + "\n")  # one write, so that lines stay whole
            sys.stderr.flush()
