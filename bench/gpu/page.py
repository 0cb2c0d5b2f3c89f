"""The record as a page: tables in Markdown, which read well on a terminal too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.gpu.record import Entry
from bench.report import cell, hardware

FILE = "gpu.md"


def write_page(content: dict[str, Any], folder: Path) -> str:
    """Write the page of a record's `content` to `folder`; its text."""
    text = page(content)
    (folder / FILE).write_text(text, "utf-8")
    return text


def page(content: dict[str, Any]) -> str:
    """What every phase found, and above it what ran where and what is wrong."""
    environment, settings = content["environment"], content["settings"]
    wrong = [f"- **{entry['name']}**: {what}" for entry in content["phases"] for what in _wrong(entry)]
    parts = ["# GPU check"]
    if environment:
        versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        driver = f"driver {environment['driver']}, " if environment.get("driver") else ""
        parts += [f"{hardware(environment)}; {driver}{versions}; commit {environment['commit']}, {environment['time']}"]
    if settings.get("dry_run"):
        parts += ["A dry run: no figure means anything."]
    parts += ["\n".join(["What is wrong:", "", *wrong]) if wrong else "Nothing is wrong with what ran."]
    for entry in content["phases"]:
        reason = f": {entry['reason']}" if entry["reason"] else ""
        parts += [f"## {entry['name']}", f"{entry['state']}{reason} ({entry['seconds']:.1f} s)"]
        parts += [_table(list(rows)) for _, rows in groupby(entry["rows"], key=tuple)]
    return "\n\n".join(parts) + "\n"


def _wrong(entry: Entry) -> list[str]:
    failed = [entry["reason"]] if entry["state"] == "failed" and entry["reason"] else []
    return [*entry["failures"], *failed]


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same names, in columns of equal width."""
    cells = [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.rjust, row, widths)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines)
