"""What a run leaves: tables on the terminal, a JSON file with all that was seen, and a picture of it."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.report import environment, hardware
from tests.load.report import table
from tests.soak.calls import Outcome
from tests.soak.health import Rest
from tests.soak.run import Record
from tests.soak.trend import Answer
from tests.soak.verdict import ALL, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (6.0, 3.6)
DOTS_PER_INCH = 110
MAX_FAULTS = 100  # in the JSON


def as_text(record: Record, verdict: Verdict) -> str:
    """The tables: calls, processes, checks."""
    return "\n\n".join(part for part in (_calls(record), _processes(verdict), _checks(verdict)) if part)


def _calls(record: Record) -> str:
    rows = []
    for kind in sorted({outcome.kind for outcome in record.outcomes}):
        of_kind = [outcome for outcome in record.outcomes if outcome.kind == kind]
        rows.append((kind, _endings(of_kind), len(of_kind), max(outcome.seconds for outcome in of_kind)))
    return table(("call", "ended", "number", "longest s"), rows, num_words=2)


def _endings(outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.ending for outcome in outcomes)
    return ", ".join(f"{count} {ending}" for ending, count in counts.most_common())


def _processes(verdict: Verdict) -> str:
    header = ("process", "memory MB", "growth", "error", "descriptors", "growth", "threads", "growth")
    rows = [
        (
            *(one.name, one.held_mb.level, one.held_mb.growth, one.held_mb.error),
            *(one.descriptors.level, one.descriptors.growth, one.threads.level, one.threads.growth),
        )
        for one in verdict.growths
    ]
    return table(header, rows, num_words=1) if rows else ""


def _checks(verdict: Verdict) -> str:
    """All checks but those of single processes that were kept."""
    single = tuple(f"{what} of " for what in ("memory", "descriptors", "threads"))
    shown = [
        check
        for check in verdict.checks
        if check.answer is not Answer.KEPT or not check.name.startswith(single) or check.name.endswith(f" of {ALL}")
    ]
    rows = [(check.name, check.measured, check.allowed, check.answer.value) for check in shown]
    return table(("check", "measured", "allowed", ""), rows, num_words=1)


def write(folder: Path, settings: Mapping[str, object], record: Record, verdict: Verdict) -> tuple[Path, Path]:
    """Write JSON and picture; where they are."""
    path = folder / f"soak-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    seen = environment() | {"command": " ".join(["python -m tests.soak", *sys.argv[1:]])}
    text = json.dumps(
        {
            "settings": dict(settings),
            "environment": seen,
            "passed": verdict.passed,
            "reasons": verdict.reasons,
            "checks": [check._asdict() | {"answer": check.answer.value} for check in verdict.checks],
            "growths": [
                {name: value if name == "name" else value._asdict() for name, value in one._asdict().items()}
                for one in verdict.growths
            ],
            "calls": dict(Counter(f"{outcome.kind}: {outcome.ending}" for outcome in record.outcomes)),
            "faults": [asdict(outcome) for outcome in record.outcomes if outcome.fault is not None][:MAX_FAULTS],
            "ended": record.ended,
            "rests": _columns(record.rests),
            "busy": {
                name: [getattr(one, name) for one in record.busy]
                for name in ("at_s", "held_mb", "requests_open", "sequences_running")
            },
        },
        indent=1,
        ensure_ascii=False,
    )
    path.write_text(re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    picture = path.with_suffix(".png")
    draw(picture, record, verdict, float(str(settings["warm_up_s"])), hardware(seen))
    return path, picture


def _columns(rests: list[Rest]) -> dict[str, Any]:
    names = dict.fromkeys(name for rest in rests for name in rest.processes)
    of = {name: [rest.processes.get(name) for rest in rests] for name in names}
    return {
        "at_s": [rest.at_s for rest in rests],
        "requests": [rest.requests for rest in rests],
        "shm_mb": [rest.shm_mb for rest in rests],
        "processes": {
            name: {key: [getattr(one, key, None) for one in of[name]] for key in ("held_mb", "descriptors", "threads")}
            for name in names
        },
    }


def draw(picture: Path, record: Record, verdict: Verdict, warm_up_s: float, machine: str) -> None:
    """Draw the series; warm-up is grey."""
    from matplotlib.figure import Figure  # noqa: PLC0415  # slow

    figure = Figure(figsize=(2 * PANEL_INCHES[0], 3 * PANEL_INCHES[1] + 0.5), layout="constrained")
    passed = "passed" if verdict.passed else "FAILED"
    figure.suptitle(f"soak of {len(record.outcomes)} calls: {passed}\n{machine}", fontsize=10)
    panels = (_memory, _memory_by_process, _descriptors, _threads, _shared_memory, _load)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(3, 2, place + 1)
        axes.axvspan(0, warm_up_s / 60, color="0.93")
        axes.grid(visible=True, alpha=0.3)
        axes.set_axisbelow(True)
        panel(axes, record)
        axes.set_xlabel("minutes")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, loc="upper left")
    figure.savefig(picture, dpi=DOTS_PER_INCH)


def _minutes(seen: list[Any]) -> list[float]:
    return [one.at_s / 60 for one in seen]


def _memory(axes: Axes, record: Record) -> None:
    axes.plot(_minutes(record.busy), [one.held_mb for one in record.busy], ".", color="tab:orange", label="under load")
    axes.plot(_minutes(record.rests), [one.held_mb for one in record.rests], "o-", markersize=3, label="at rest")
    axes.set_ylabel("memory, MB")


def _memory_by_process(axes: Axes, record: Record) -> None:
    _by_process(axes, record, "held_mb", "memory since the end of round 1, MB")


def _descriptors(axes: Axes, record: Record) -> None:
    _by_process(axes, record, "descriptors", "descriptors since the end of round 1")


def _threads(axes: Axes, record: Record) -> None:
    _by_process(axes, record, "threads", "threads since the end of round 1")


def _by_process(axes: Axes, record: Record, field: str, label: str) -> None:
    names = record.rests[0].processes if record.rests else ()
    for place, name in enumerate(names):
        there = [rest for rest in record.rests if name in rest.processes]
        first = getattr(there[0].processes[name], field)
        values = [getattr(rest.processes[name], field) - first for rest in there]
        axes.plot(_minutes(there), values, color=f"C{place % 10}", linestyle="-" if place < 10 else "--", label=name)
    axes.set_ylabel(label)


def _shared_memory(axes: Axes, record: Record) -> None:
    axes.plot(_minutes(record.rests), [rest.shm_mb for rest in record.rests])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("/dev/shm at rest, MB")


def _load(axes: Axes, record: Record) -> None:
    for field in ("requests_open", "sequences_running"):
        values = [getattr(one, field) for one in record.busy]
        axes.plot(_minutes(record.busy), values, label=field.replace("_", " "))
    axes.set_ylabel("under load")
