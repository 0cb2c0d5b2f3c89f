"""What a gateway counts, for Prometheus. Each gateway has a registry of its own."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any

from chattts_client import Chunk
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 4)


class Metrics:
    """Counters and histograms of one gateway."""

    def __init__(self) -> None:
        """Nothing has happened."""
        self.registry = CollectorRegistry()
        named: Any = {"registry": self.registry, "namespace": "chattts_gateway"}
        self.requests = Counter("requests", "Answered requests.", ["route", "status"], **named)
        self.speaking = Gauge("syntheses", "Syntheses that are running.", **named)
        self.ended = Counter("syntheses_ended", "Syntheses by how they ended.", ["outcome"], **named)
        self.audio = Counter("audio_seconds", "Seconds of audio that the model made.", **named)
        self.first_audio = Histogram(
            "first_audio_seconds", "From the request to its first samples.", buckets=SECONDS, **named
        )
        self.rtf = Histogram("real_time_factor", "Seconds taken for a second of audio.", buckets=RATIOS, **named)

    def speech(self, *, is_heard: bool = True) -> SpeechReport:
        """The report of one synthesis, to be left when it has ended; one that lets others go first is not timed."""
        return SpeechReport(self, is_heard)


class SpeechReport:
    """One synthesis, from its request to its end."""

    def __init__(self, metrics: Metrics, is_heard: bool) -> None:
        """It begins now; `is_heard` says whether somebody waits for its sound."""
        self._metrics, self._is_heard, self._began = metrics, is_heard, time.perf_counter()
        self._status: int | None = None
        self._seconds = 0.0

    def add(self, chunk: Chunk) -> None:
        """A chunk has come."""
        if self._is_heard and not self._seconds and len(chunk.audio):
            self._metrics.first_audio.observe(time.perf_counter() - self._began)
        self._seconds += chunk.duration

    def failed(self, status: int) -> None:
        """The server said no; `status` is what the client is told."""
        self._status = status

    def __enter__(self) -> SpeechReport:
        """Itself."""
        self._metrics.speaking.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Count it."""
        self._metrics.speaking.dec()
        self._metrics.audio.inc(self._seconds)
        if self._status is not None:
            outcome = f"error_{self._status}"
        elif kind is not None:
            outcome = "left" if issubclass(kind, (asyncio.CancelledError, OSError)) else "failed"
        else:
            outcome = "spoken"
            if self._is_heard and self._seconds:
                self._metrics.rtf.observe((time.perf_counter() - self._began) / self._seconds)
        self._metrics.ended.labels(outcome).inc()
