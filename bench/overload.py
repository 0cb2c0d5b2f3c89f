"""What a server does when more is asked of it than it can: who is answered, who is refused and how soon, and the time
until it is as quick as before.

One run on one live server, in four phases. Unloaded: one caller. Capacity: as many callers at once as bring the most
(closed loop). Overload: arrivals at a multiple of that (open loop, Poisson), which the server may take up to its
`max_requests`; figures are of what came after it had filled up. Recovery: one caller again, from the last arrival on.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from chattts_client import AsyncTTSClient, SynthesisOptions
from chattts_client.transport import ProtocolName
from tqdm import tqdm

from bench import report
from bench.load import Loaded, Outcome, Speak, closed_loop, open_loop, percentile, poisson_arrivals, summarize
from bench.plots import draw_beside
from bench.repository import FOLDER, precision_of, sentence, setting, with_precision, with_settings
from bench.server import DEFAULT_CONCURRENCY, Load, Target, measure_levels
from bench.watch import Usage, Watch
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server

KNEE = 0.95  # of the best throughput: what the fewest callers that are enough reach
ROOM = 1.25  # requests that the server has room for, for each of those callers
PROBES = 8  # requests of the one caller who measures the unloaded latency
RECOVERED = 1.2  # of the unloaded latency: the most that counts as recovered
IN_A_ROW = 3  # requests that must be within it, so that chance does not decide
RETRY_S = 0.1  # until a caller in the recovery comes again who was refused
INTERACTIVE, BATCH = "interactive", "batch"
REFUSED = "UNAVAILABLE"
LOST = ("DEADLINE_EXCEEDED", "CONNECTION_FAILED")  # errors of requests that the server left without an answer in time
COLUMNS = {  # of the table, by field
    "requests": "requests",
    "answered": "answered",
    "refused": "refused",
    "failed": "failed",
    "unanswered": "unanswered",
    "sentences_per_s": "sentences/s",
    "p50_s": "p50 s",
    "p99_s": "p99 s",
    "refused_p50_ms": "refused p50 ms",
    "refused_p99_ms": "refused p99 ms",
}


@dataclass(frozen=True)
class Overload:
    """What to send.

    Attributes:
        protocol: "grpc" or "http".
        tokens: audio tokens of each sentence.
        timeout_s: how long a request may take, and the recovery.
        callers: at once when capacity is measured; None looks for the fewest that bring the most.
        max_requests: that the server takes at once; None is ROOM for each caller.
        factor: arrivals of the overload, as a multiple of capacity.
        seconds: length of the overload, once the server is full.
        batch_share: of the overload's requests, how many have the priority "batch".

    Raises:
        ConfigError: a number is out of its range.
    """

    protocol: ProtocolName = "grpc"
    tokens: int = 96
    timeout_s: float = 120.0
    callers: int | None = None
    max_requests: int | None = None
    factor: float = 4.0
    seconds: float = 60.0
    batch_share: float = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        counts = (self.tokens, self.timeout_s, self.callers or 1, self.max_requests or 1, self.factor, self.seconds)
        if not all(0 < count < math.inf for count in counts):
            raise ConfigError(
                f"tokens, timeout, callers, max-requests, factor and seconds must be above 0 and finite: {counts}"
            )
        if not 0 <= self.batch_share <= 1:
            raise ConfigError(f"--batch-share is {self.batch_share:g}; allowed is 0 to 1")
        if self.callers and self.max_requests and self.max_requests < self.callers:
            raise ConfigError(f"--max-requests is {self.max_requests}, which {self.callers} callers at once overload")


class Arrival(NamedTuple):
    """One request of the overload.

    Attributes:
        due_s: from the first moment of the overload until it was due.
        priority: "interactive" or "batch".
        outcome: what became of it.
    """

    due_s: float
    priority: str
    outcome: Outcome

    @property
    def end_s(self) -> float:
        """From the first moment of the overload to the end of its answer."""
        return self.due_s + self.outcome.latency_s


class Probe(NamedTuple):
    """One request of the lonely caller.

    Attributes:
        due_s: from the first one until it was sent.
        latency_s: None where it was not answered.
    """

    due_s: float
    latency_s: float | None


@dataclass(frozen=True)
class Fates:
    """What became of the requests that were due in a stretch of the overload.

    Attributes:
        requests: due in it; each is one of the next four.
        answered: got audio.
        refused: were told that the server is full.
        failed: got another error, of which `errors` has the kinds.
        unanswered: got nothing in time, or lost their connection.
        errors: how many of each kind.
        sentences_per_s: goodput: answers that came within the stretch.
        p50_s, p99_s: latency of those answered; None where none was.
        refused_p50_ms, refused_p99_ms: from the moment due to the refusal; None where nothing was refused.
    """

    requests: int
    answered: int
    refused: int
    failed: int
    unanswered: int
    errors: dict[str, int]
    sentences_per_s: float
    p50_s: float | None
    p99_s: float | None
    refused_p50_ms: float | None
    refused_p99_ms: float | None


def knee(rates: dict[int, float]) -> int:
    """The fewest callers whose rate is at least KNEE of the best; `rates` has the sentences/s by number of callers."""
    return min(callers for callers, rate in rates.items() if rate >= KNEE * max(rates.values()))


def fates(arrivals: Sequence[Arrival], start_s: float, end_s: float) -> Fates:
    """What became of those of `arrivals` that were due from `start_s` to `end_s`, and the answers in that time."""
    due = [arrival.outcome for arrival in arrivals if start_s <= arrival.due_s < end_s]
    errors = Counter(outcome.error for outcome in due if outcome.error is not None)
    unanswered = sum(errors[kind] for kind in LOST)
    answered_s = [outcome.latency_s for outcome in due if outcome.error is None]
    refused_ms = [1e3 * outcome.latency_s for outcome in due if outcome.error == REFUSED]
    within = sum(one.outcome.error is None and start_s <= one.end_s < end_s for one in arrivals)
    return Fates(
        requests=len(due),
        answered=len(answered_s),
        refused=len(refused_ms),
        failed=errors.total() - unanswered - len(refused_ms),
        unanswered=unanswered,
        errors=dict(errors),
        sentences_per_s=within / (end_s - start_s),
        p50_s=percentile(answered_s, 0.5) if answered_s else None,
        p99_s=percentile(answered_s, 0.99) if answered_s else None,
        refused_p50_ms=percentile(refused_ms, 0.5) if refused_ms else None,
        refused_p99_ms=percentile(refused_ms, 0.99) if refused_ms else None,
    )


def per_second(moments_s: Sequence[float]) -> list[int]:
    """How many of `moments_s` (0 or more) are in the first second, the next, and so on to the last that has any."""
    return np.bincount(np.array(moments_s, int)).tolist() if moments_s else []


def recovered_s(probes: Sequence[Probe], limit_s: float) -> float | None:
    """When the first of IN_A_ROW probes was sent that were all answered within `limit_s`; None where there are none."""
    for first in range(len(probes) - IN_A_ROW + 1):
        latencies = [probe.latency_s for probe in probes[first : first + IN_A_ROW]]
        if all(latency is not None and latency <= limit_s for latency in latencies):
            return probes[first].due_s
    return None


def run(overload: Overload, repository: Path, precisions: Sequence[str]) -> list[Path]:
    """Measure each precision on a server of its own, print the table, write JSON and plot; the paths of the JSON files.

    Args:
        overload: what to send.
        repository: an export.
        precisions: of the GPT; empty is what `repository` says.

    Raises:
        ConfigError: the server does not start, or does not answer.
    """
    paths = []
    for precision in precisions or [precision_of(repository)]:
        callers, levels = overload.callers, []
        if callers is None:
            with _serving(with_precision(repository, precision), overload.protocol) as target:
                levels = asyncio.run(measure_levels(_search(overload), target, None))
            callers = knee({level["concurrency"]: level["sentences_per_s"] for level in levels})
        max_requests = overload.max_requests or math.ceil(ROOM * callers)
        with _serving(with_max_requests(repository, precision, max_requests), overload.protocol) as target:
            results = asyncio.run(measure(overload, target, callers, max_requests))
        _print(results, overload, callers)
        settings = asdict(overload) | {"precision": precision, "callers": callers, "max_requests": max_requests}
        path = report.write("overload", {"settings": settings, "search": levels, **results})
        print(f"raw numbers: {path}")
        draw_beside([path])
        paths.append(path)
    return paths


def with_max_requests(repository: Path, precision: str, max_requests: int) -> Path:
    """As `with_precision`, with room for `max_requests` requests at once, the same share of them for batch ones.

    Raises:
        ConfigError: as `setting`.
    """
    batch = int(setting(repository, "max_batch_requests")) * max_requests // int(setting(repository, "max_requests"))
    return with_settings(
        repository,
        FOLDER / f"repository_{precision}",
        precision=precision,
        max_requests=max_requests,
        max_batch_requests=batch,
    )


@contextmanager
def _serving(repository: Path, protocol: ProtocolName) -> Iterator[Target]:
    with running_server(repository, log_path=FOLDER / f"{repository.name}.log") as server:
        yield Target(server.http_url if protocol == "http" else server.grpc_url, server.launcher.pid)


def _search(overload: Overload) -> Load:
    return Load(overload.protocol, overload.tokens, overload.timeout_s, DEFAULT_CONCURRENCY)


async def measure(overload: Overload, target: Target, callers: int, max_requests: int) -> dict[str, Any]:
    """All phases on the server at `target`, which has room for `max_requests`.

    Returns:
        "unloaded", "capacity" (`Summary`), "overload" (`Fates` of all and, where there are two, of each priority;
        `Usage`; how far the client fell behind), "recovery", "ratios" and "timeline".

    Raises:
        ConfigError: the server does not answer before the overload.
    """
    async with AsyncTTSClient(target.url, overload.protocol, timeout=overload.timeout_s) as client:
        speak = _speaker(client, overload.tokens)
        await closed_loop(speak, callers, callers, lambda: None)  # to warm up
        unloaded_s = await _unloaded(speak)
        limit_s = RECOVERED * unloaded_s
        requests = Load().num_closed(callers)
        with tqdm(desc="capacity", total=requests, unit="sentence") as bar:
            capacity = summarize(*await closed_loop(speak, callers, requests, bar.update))
        if not capacity.answered:
            raise ConfigError(f"{target.url} answered none of {requests} requests: {capacity.errors}")
        # What it takes to fill the server up and to answer all who came first.
        settle_s = max(capacity.latencies_s) * max(1.0, max_requests / callers)
        end_s = settle_s + overload.seconds
        due_s, priorities = _plan(overload, overload.factor * capacity.sentences_per_s, end_s)
        with tqdm(desc="overload", total=len(due_s), unit="sentence") as bar:
            outcomes, probes, usage = await _overload(
                target,
                end_s,
                open_loop(_speaker(client, overload.tokens, priorities), due_s, bar.update),
                _probe(speak, lambda probes: _is_over(probes, limit_s, overload.timeout_s)),
            )
    arrivals = list(map(Arrival, due_s, priorities, outcomes))
    by_priority = {
        priority: asdict(fates([one for one in arrivals if one.priority == priority], settle_s, end_s))
        for priority in dict.fromkeys(priorities)
    }
    every = fates(arrivals, settle_s, end_s)
    return {
        "unloaded": {"p50_s": unloaded_s},
        "capacity": asdict(capacity),
        "overload": {
            "settle_s": settle_s,
            "end_s": end_s,
            "all": asdict(every),
            "by_priority": by_priority if len(by_priority) > 1 else {},
            "unanswered": sum(outcome.error in LOST for outcome in outcomes),
            "max_late_s": max(outcome.late_s for outcome in outcomes),
            **asdict(usage),
        },
        "recovery": {
            "seconds": recovered_s(probes, limit_s),
            "limit_s": limit_s,
            "due_s": [probe.due_s for probe in probes],
            "latencies_s": [probe.latency_s for probe in probes],
        },
        "ratios": {
            "p50_to_capacity": _ratio(every.p50_s, capacity.p50_s),
            "p99_to_capacity": _ratio(every.p99_s, capacity.p99_s),
            "goodput_to_capacity": every.sentences_per_s / capacity.sentences_per_s,
        },
        "timeline": timeline(arrivals),
    }


def _plan(overload: Overload, rate: float, seconds: float) -> tuple[list[float], list[str]]:
    """When requests are due, a Poisson process of `rate` a second, and the priority of each."""
    due_s = poisson_arrivals(rate, math.ceil(1.5 * rate * seconds) + 50, seed=0)
    due_s = due_s[due_s < seconds]
    is_batch = np.random.default_rng(1).random(len(due_s)) < overload.batch_share
    return due_s.tolist(), [BATCH if batch else INTERACTIVE for batch in is_batch]


async def _overload(
    target: Target, end_s: float, load: Coroutine[Any, Any, Loaded], recovery: Coroutine[Any, Any, list[Probe]]
) -> tuple[list[Outcome], list[Probe], Usage]:
    """`load`, whose last request is due at `end_s`, and from then on `recovery`; what was used until then."""
    ended = threading.Event()
    try:
        # On a thread: looking takes some 50 ms, for which the event loop must not stop.
        watching = asyncio.create_task(asyncio.to_thread(_watch, target, ended))
        loading = asyncio.create_task(load)
        await asyncio.sleep(end_s)
    finally:
        ended.set()
    probes = await recovery
    return (await loading).outcomes, probes, await watching


def _watch(target: Target, ended: threading.Event) -> Usage:
    with Watch(target.root, None) as watch:
        ended.wait()
    return watch.usage


async def _unloaded(speak: Speak) -> float:
    """The median latency of a caller who is alone.

    Raises:
        ConfigError: there was no answer.
    """
    latencies = [probe.latency_s for probe in await _probe(speak, lambda probes: len(probes) == PROBES)]
    answered = [latency for latency in latencies if latency is not None]
    if len(answered) < PROBES:
        raise ConfigError(f"a caller who is alone was not answered: {latencies}")
    return percentile(answered, 0.5)


async def _probe(speak: Speak, is_over: Callable[[list[Probe]], bool]) -> list[Probe]:
    """One caller, always with the first sentence, until `is_over`."""
    started = time.perf_counter()
    probes: list[Probe] = []
    while not (probes and is_over(probes)):
        due_s = time.perf_counter() - started
        ((outcome,), _) = await closed_loop(speak, 1, 1, lambda: None)
        probes.append(Probe(due_s, outcome.latency_s if outcome.error is None else None))
        if outcome.error is not None:
            await asyncio.sleep(RETRY_S)
    return probes


def _is_over(probes: Sequence[Probe], limit_s: float, at_most_s: float) -> bool:
    return recovered_s(probes, limit_s) is not None or probes[-1].due_s > at_most_s


def _speaker(client: AsyncTTSClient, tokens: int, priorities: Sequence[str] = ()) -> Speak:
    """Speaks sentences of `tokens` tokens; request n has `priorities[n]`, where there are any."""

    async def speak(number: int) -> AsyncIterator[float]:
        options = SynthesisOptions(seed=number, skip_refine=True, min_new_tokens=tokens, max_new_tokens=tokens)
        if priorities and priorities[number] != INTERACTIVE:  # which is the default
            options = replace(options, priority=priorities[number])
        speech = await client.synthesize(sentence(number), options)
        if speech.num_tokens != tokens:
            raise AssertionError(f"the server made {speech.num_tokens} tokens, not {tokens}")
        yield speech.duration

    return speak


def timeline(arrivals: Sequence[Arrival]) -> dict[str, list[Any]]:
    """Counts per second of the overload, and moment and latency of each answer."""
    answered = [one for one in arrivals if one.outcome.error is None]
    refused = [one for one in arrivals if one.outcome.error == REFUSED]
    return {
        "arrivals_per_s": per_second([one.due_s for one in arrivals]),
        "answered_per_s": per_second([one.end_s for one in answered]),
        "refused_per_s": per_second([one.end_s for one in refused]),
        "answered_due_s": [round(one.due_s, 3) for one in answered],
        "answered_latencies_s": [round(one.outcome.latency_s, 3) for one in answered],
        "refused_due_s": [round(one.due_s, 3) for one in refused],
        "refused_latencies_s": [round(one.outcome.latency_s, 4) for one in refused],
    }


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base is not None else None


def _print(results: dict[str, Any], overload: Overload, callers: int) -> None:
    capacity, under = results["capacity"], results["overload"]
    rows = {
        f"{callers} at once": capacity,
        f"overload x {overload.factor:g}": under["all"],
        **under["by_priority"],
    }
    print(report.table(("load", *COLUMNS.values()), [[name, *map(row.get, COLUMNS)] for name, row in rows.items()]))
    ratios, recovery = results["ratios"], results["recovery"]
    shown = report.table(
        ("p50 / capacity's", "p99 / capacity's", "goodput / capacity", "recovery s", "unanswered"),
        [[*ratios.values(), recovery["seconds"], under["unanswered"]]],
    )
    print(shown)
    print(
        f"unloaded p50: {results['unloaded']['p50_s']:.3g} s; errors of the overload: {under['all']['errors']}; "
        f"client: {under['client_cpu_cores']:.2f} cores, {1e3 * under['max_late_s']:.0f} ms late at most"
    )
