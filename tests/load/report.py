"""The report of a run, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.load.limits import Verdict
from tests.load.summary import Entry, Summary

HEADER = ("type", "name", "requests", "failed", "p50 ms", "p90", "p95", "p99", "max")


def as_text(entries: Iterable[Entry], summary: Summary, verdicts: Iterable[Verdict]) -> str:
    """Both tables, and the line between them."""
    rows = [list(entry.to_json().values()) for entry in entries]
    errors = ", ".join(f"{count} {kind}" for kind, count in sorted(summary.errors.items())) or "no errors"
    judged = [(*verdict[:3], "ok" if verdict.kept else "EXCEEDED") for verdict in verdicts]
    return "\n".join(
        [
            table(HEADER, rows, num_words=2),
            f"{summary.requests} requests in {summary.seconds:.1f} s: {summary.answered} answered, "
            f"{summary.left} left, {errors}; {summary.audio_s_per_s:.3g} s of audio a second",
            "",
            table(("limit", "measured", "allowed", ""), judged, num_words=1),
        ]
    )


def as_json(
    settings: Mapping[str, object], entries: Iterable[Entry], summary: Summary, verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """All of it, and whether the run passed."""
    return {
        "settings": dict(settings),
        "entries": [entry.to_json() for entry in entries],
        "summary": asdict(summary) | {"error_share": summary.error_share},
        "limits": [_verdict_json(verdict) for verdict in verdicts],
        "passed": passed(verdicts),
    }


def _verdict_json(verdict: Verdict) -> dict[str, Any]:
    """JSON has no infinity; there, a limit that allows all is None."""
    return verdict._asdict() | {"limit": verdict.limit if math.isfinite(verdict.limit) else None}


def passed(verdicts: Iterable[Verdict]) -> bool:
    """Whether every limit was kept."""
    return all(verdict.kept for verdict in verdicts)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], num_words: int) -> str:
    """Rows in columns, the first `num_words` of them to the left; "-" for None."""
    cells = [list(header), *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(_line(row, widths, num_words)).rstrip() for row in cells)


def _line(row: Sequence[str], widths: Sequence[int], num_words: int) -> list[str]:
    pairs = list(zip(row, widths, strict=True))
    return [
        *(cell.ljust(width) for cell, width in pairs[:num_words]),
        *(cell.rjust(width) for cell, width in pairs[num_words:]),
    ]


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if 100 <= abs(value) < math.inf else f"{value:.3g}"
    return str(value)
