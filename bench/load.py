"""Load, and what came of it: closed and open loops over anything that speaks one text, and their statistics.

It knows nothing of servers or protocols: whoever calls hands in how to speak.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from chattts_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    TTSError,
)
from numpy.typing import NDArray

Speak = Callable[[int], AsyncIterator[float]]
"""Number of the request -> seconds of audio of each chunk of the answer, when it is there; raises TTSError."""

KINDS = {  # names of gRPC's statuses, for both protocols
    OverloadedError: "UNAVAILABLE",
    DeadlineExceededError: "DEADLINE_EXCEEDED",
    ConnectionFailedError: "CONNECTION_FAILED",
    InvalidInputError: "INVALID_ARGUMENT",
}


class Chunk(NamedTuple):
    """A part of an answer.

    Attributes:
        arrival_s: from the moment at which the request was due until it was there.
        audio_s: seconds of audio in it.
    """

    arrival_s: float
    audio_s: float


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        latency_s: from the moment at which it was due, sent in time or not, to the end of its answer.
        late_s: from the moment at which it was due to the moment at which it was sent.
        chunks: of the answer, one where it came as a whole; none after an error.
        error: its kind; None for an answer.
    """

    latency_s: float
    late_s: float
    chunks: tuple[Chunk, ...]
    error: str | None

    @property
    def sounding(self) -> tuple[Chunk, ...]:
        """The chunks with samples."""
        return tuple(chunk for chunk in self.chunks if chunk.audio_s)


class Loaded(NamedTuple):
    """One level of load: what became of its requests, in their order, and the seconds that it took."""

    outcomes: list[Outcome]
    seconds: float


@dataclass(frozen=True)
class Summary:
    """The outcomes of one level of load.

    Attributes:
        seconds: from the first request due to the last answer.
        requests, answered: how many were sent, and how many got audio.
        errors: how many of each kind.
        sentences_per_s, audio_s_per_s: of those answered.
        rtf: seconds of wall clock per second of audio; None without audio.
        p50_s, p90_s, p99_s: latency of those answered (errors are not in it); None where none was.
        max_late_s: how far the client itself fell behind.
        latencies_s: of those answered, in the order of the requests.
    """

    seconds: float
    requests: int
    answered: int
    errors: dict[str, int]
    sentences_per_s: float
    audio_s_per_s: float
    rtf: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    max_late_s: float
    latencies_s: list[float]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` (above 0, to 1) of them do not exceed: one of them, never between.

    Raises:
        ValueError: there are no values, or `share` is out of its range.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    return sorted(values)[math.ceil(share * len(values) - 1e-9) - 1]  # 1e-9: 0.07 * 100 is more than 7


def poisson_arrivals(rate: float, count: int, seed: int) -> NDArray[np.float64]:
    """Moments at which `count` requests are due, in seconds from the start: a Poisson process of `rate` a second."""
    return np.random.default_rng(seed).exponential(1 / rate, count).cumsum()


async def closed_loop(
    speak: Speak,
    concurrency: int,
    requests: int,
    advance: Callable[[], object],
    pauses: Sequence[float] | NDArray[np.float64] = (),
) -> Loaded:
    """Have `concurrency` callers ask again and again until `requests` are answered; `advance` is called after each.

    Before request n its caller waits `pauses[n]` seconds, where there are pauses.
    """
    numbers = iter(range(requests))
    outcomes: dict[int, Outcome] = {}

    async def worker() -> None:
        for number in numbers:
            if len(pauses):
                await asyncio.sleep(pauses[number])
            outcomes[number] = await _one(speak, number, time.perf_counter())
            advance()

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return Loaded([outcomes[number] for number in range(requests)], time.perf_counter() - started)


async def open_loop(
    speak: Speak, arrivals: Sequence[float] | NDArray[np.float64], advance: Callable[[], object]
) -> Loaded:
    """Send request n at `arrivals[n]` seconds from now, whatever became of those before."""
    started = time.perf_counter()

    async def send(number: int, due: float) -> Outcome:
        await asyncio.sleep(due - time.perf_counter())
        outcome = await _one(speak, number, due)
        advance()
        return outcome

    outcomes = await asyncio.gather(*(send(number, started + arrival) for number, arrival in enumerate(arrivals)))
    return Loaded(outcomes, time.perf_counter() - started - arrivals[0])


def summarize(outcomes: Sequence[Outcome], seconds: float) -> Summary:
    """The summary of `outcomes`, which took `seconds` together."""
    latencies = [outcome.latency_s for outcome in outcomes if outcome.error is None]
    audio_s = sum(chunk.audio_s for outcome in outcomes for chunk in outcome.chunks)
    p50, p90, p99 = (percentile(latencies, share) if latencies else None for share in (0.5, 0.9, 0.99))
    return Summary(
        seconds=seconds,
        requests=len(outcomes),
        answered=len(latencies),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        sentences_per_s=len(latencies) / seconds,
        audio_s_per_s=audio_s / seconds,
        rtf=seconds / audio_s if audio_s else None,
        p50_s=p50,
        p90_s=p90,
        p99_s=p99,
        max_late_s=max(outcome.late_s for outcome in outcomes),
        latencies_s=latencies,
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Slope of the straight line that fits the points best (least squares); needs two different `x`."""
    dx, dy = np.subtract(x, np.mean(x)), np.subtract(y, np.mean(y))
    return float(dx @ dy / (dx @ dx))


async def _one(speak: Speak, number: int, due: float) -> Outcome:
    late_s = time.perf_counter() - due
    try:
        chunks = [Chunk(time.perf_counter() - due, audio_s) async for audio_s in speak(number)]
        error = None
    except TTSError as failure:
        chunks, error = [], kind_of(failure)
    return Outcome(time.perf_counter() - due, late_s, tuple(chunks), error)


def kind_of(error: TTSError) -> str:
    """The name under which `error` is counted: gRPC's names of statuses, for both protocols."""
    return error.status if isinstance(error, ServerError) else KINDS.get(type(error), type(error).__name__)
