"""The verdict on a run: every check beside what it allows, and why the run failed where it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench.repository import setting
from bench.watch import MB
from chattts_serving.triton.config import AUTO
from chattts_serving.triton.decoder import CPU_CACHE_GB
from tests.soak.calls import FULL, NO_ANSWER, WRONG
from tests.soak.health import Process, Rest
from tests.soak.run import Record
from tests.soak.trend import FEWEST_VALUES, Answer, Trend, trend

ALL = "all"  # processes together
SHOWN = 5  # faults in a reason


@dataclass(frozen=True)
class Limits:
    """How much may grow from the end of warm-up to the end of the run.

    Attributes:
        memory_share: of what all processes hold, the key-value cache left out: it is allocated at start, and would hide
            what leaks. Holds for all together and for each, and for /dev/shm.
        descriptors, threads: of one process.
        warm_up_s: from the start of the run; what is seen in it does not count.
    """

    memory_share: float = 0.01
    descriptors: float = 4.0
    threads: float = 16.0  # pools grow to the most calls that ever ran at once
    warm_up_s: float = 0.0


class Check(NamedTuple):
    """One check: what was measured, what is allowed, and what follows. `reason` is for people."""

    name: str
    measured: str
    allowed: str
    answer: Answer
    reason: str = ""


class Growth(NamedTuple):
    """The trends of one process, or of ALL; None where it was not looked at."""

    name: str
    held_mb: Trend
    descriptors: Trend
    threads: Trend


@dataclass(frozen=True)
class Verdict:
    """All of it.

    Attributes:
        checks: in the order in which they are shown.
        growths: of every process, ALL first; empty where there were too few looks.
    """

    checks: list[Check]
    growths: list[Growth]

    @property
    def passed(self) -> bool:
        """Whether every check was kept."""
        return all(check.answer is Answer.KEPT for check in self.checks)

    @property
    def reasons(self) -> list[str]:
        """Why it did not pass."""
        return [check.reason for check in self.checks if check.answer is not Answer.KEPT]


def cache_mb(repository: Path) -> float:
    """The size of the key-value cache that a server of `repository` has in a CPU's memory, 10**6 bytes."""
    gigabytes = setting(repository, "kv_cache_gb")
    return (CPU_CACHE_GB if gigabytes == AUTO else float(gigabytes)) * 1e9 / MB


def judge(record: Record, deck: Iterable[str], limits: Limits, cache_mb: float) -> Verdict:
    """The verdict on `record`, a run of the kinds in `deck`."""
    steady = [rest for rest in record.rests if rest.at_s >= limits.warm_up_s]
    enough = len(steady) >= FEWEST_VALUES
    growths = _growths(steady) if enough else []
    looks = "looks at rest after warm-up"
    answer = Answer.KEPT if enough else Answer.UNDECIDED
    checks = [
        *_checks_of_calls(record, deck),
        Check(looks, str(len(steady)), f"{FEWEST_VALUES} or more", answer, "too few looks at rest: run it longer"),
    ]
    if enough:
        allowed_mb = limits.memory_share * (growths[0].held_mb.level - cache_mb)
        shm = trend([rest.at_s for rest in steady], [rest.shm_mb for rest in steady])
        checks += [
            *(_of_trend("memory", one.name, one.held_mb, allowed_mb, "MB") for one in growths),
            _of_trend("shared memory", "", shm, allowed_mb, "MB"),
            *(_of_trend("descriptors", one.name, one.descriptors, limits.descriptors) for one in growths[1:]),
            *(_of_trend("threads", one.name, one.threads, limits.threads) for one in growths[1:]),
        ]
    return Verdict(checks, growths)


def _checks_of_calls(record: Record, deck: Iterable[str]) -> list[Check]:
    faults = [outcome for outcome in record.outcomes if outcome.fault is not None]
    unanswered = [f"{one.kind}: {one.fault}" for one in faults if one.ending == NO_ANSWER]
    wrong = [f"{one.kind}: {one.fault}" for one in faults if one.ending == WRONG]
    other = [f"{one.kind}: {one.ending}: {one.fault}" for one in faults if one.ending not in (NO_ANSWER, WRONG)]
    return [
        _none("restarts and dead processes", [record.ended] if record.ended is not None else []),
        _none("requests without an answer", unanswered),
        _none("wrong answers", wrong),
        _none("errors that were not expected", other),
        _none("requests still open at rest", record.restless),
        _none("kinds of calls without their effect", _without_effect(record, deck)),
    ]


def _without_effect(record: Record, deck: Iterable[str]) -> list[str]:
    """Kinds that never ended as they are meant to: a burst that fills nothing, others that only met a full server."""
    if not record.outcomes:
        return []
    endings = Counter((outcome.kind, outcome.ending == FULL) for outcome in record.outcomes)
    missing = [kind for kind in deck if kind != "burst" and not endings[kind, False]]
    if "burst" in deck and not endings["one of a burst", True]:
        missing.append("burst: the server was never full")
    return missing


def _none(name: str, found: Sequence[str]) -> Check:
    """A check that nothing was found."""
    kinds = Counter(found).most_common(SHOWN)
    reason = f"{name}: " + "; ".join(f"{number} x {what}" if number > 1 else what for what, number in kinds)
    return Check(name, str(len(found)), "0", Answer.GROWS if found else Answer.KEPT, reason)


def _of_trend(what: str, name: str, grown: Trend, allowed: float, unit: str = "") -> Check:
    answer = grown.answer(allowed)
    of = f"{what} of {name}" if name else what
    measured = f"{grown.growth:+.2f} ± {grown.error:.2f} {unit}".rstrip()
    most = f"{allowed:.2f} {unit}".rstrip()
    words = {
        Answer.GROWS: f"{of} grows: {measured} over the run, allowed is {most}",
        Answer.UNDECIDED: f"{of} is too unsteady to tell: {measured} over the run, allowed is {most}; run it longer",
    }
    return Check(of, measured, most, answer, words.get(answer, ""))


def _growths(steady: Sequence[Rest]) -> list[Growth]:
    at_s = [rest.at_s for rest in steady]
    names = [name for name in steady[0].processes if all(name in rest.processes for rest in steady)]

    def growth(name: str, processes: Callable[[Rest], list[Process]]) -> Growth:
        seen = [processes(rest) for rest in steady]
        return Growth(
            name,
            trend(at_s, [sum(one.held_mb for one in several) for several in seen]),
            trend(at_s, [sum(one.descriptors for one in several) for several in seen]),
            trend(at_s, [sum(one.threads for one in several) for several in seen]),
        )

    return [
        growth(ALL, lambda rest: list(rest.processes.values())),
        *(growth(name, lambda rest, name=name: [rest.processes[name]]) for name in names),
    ]
