"""Phases one after the other, within a time: what each finds is saved row by row, and whatever it raises is caught."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bench.gpu.record import CUT, FAILED, OK, RUNNING, SKIPPED, Record

Row = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Wrong:
    """Something that a phase found is not as it must be."""

    what: str


class OutOfTimeError(Exception):
    """The rest of a phase does not fit into the time that is left."""


class NotHereError(Exception):
    """This machine lacks what a phase needs."""


@dataclass(frozen=True)
class Phase(Generic[T]):
    """A part of the run.

    Attributes:
        name: as tables show it.
        least_s: seconds that it takes at least; with fewer left it is skipped.
        run: gives rows, and `Wrong` where something is; it may raise `OutOfTimeError` and `NotHereError`.
    """

    name: str
    least_s: float
    run: Callable[[T], Iterable[Row | Wrong]]


def run_phases(
    phases: Sequence[Phase[T]],
    machine: T,
    record: Record,
    until: float,
    *,
    forgiving: bool,
    answers: Callable[[], bool],
) -> bool:
    """Run those of `phases` that `record` does not have.

    Args:
        phases: most important first.
        machine: what each is run on.
        record: takes what they find.
        until: when all must be done, s (monotonic).
        forgiving: whether `Wrong` is noted, but does not fail a phase.
        answers: whether the machine can still be used; asked after a phase that failed.

    Returns:
        False where it cannot: the rest needs a new process.
    """
    for phase in phases:
        if record.has(phase.name):
            continue
        left = until - time.monotonic()
        if left < phase.least_s:
            reason = f"{max(0, left):.0f} s are left, it takes {phase.least_s:.0f} s or more"
            record.add(phase.name, SKIPPED, reason)
            print(f"== {phase.name}: skipped, {reason}", flush=True)
            continue
        _run(phase, machine, record, left, forgiving=forgiving)
        if record.phases[-1]["state"] == FAILED and not answers():
            print("   the GPU does not answer any more: a new process goes on", flush=True)
            return False
    return True


def _run(phase: Phase[T], machine: T, record: Record, left: float, *, forgiving: bool) -> None:
    print(f"== {phase.name} ({left:.0f} s left)", flush=True)
    entry = record.add(phase.name, RUNNING)
    started = time.monotonic()
    state, reason = OK, None
    try:
        for found in phase.run(machine):
            if isinstance(found, Wrong):
                entry["failures"].append(found.what)
                print(f"   WRONG: {found.what}", flush=True)
            else:
                entry["rows"].append(found)
                print("  ", "  ".join(f"{name} {_short(value)}" for name, value in found.items()), flush=True)
            entry["seconds"] = time.monotonic() - started
            record.save()
    except OutOfTimeError as error:
        state, reason = CUT, str(error)
    except NotHereError as error:
        state, reason = SKIPPED, str(error)
    except Exception as error:  # whatever it is, the other phases matter as much
        traceback.print_exc()
        state, reason = FAILED, " ".join(f"{type(error).__name__}: {error}".split())
    if entry["failures"] and not forgiving:
        state = FAILED
    entry |= {"state": state, "reason": reason, "seconds": time.monotonic() - started}
    record.save()
    print(f"   {state}{f', {reason}' if reason else ''}: {entry['seconds']:.1f} s", flush=True)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
