"""What the phases found: `gpu.json`, written anew after every row, so that nothing is lost with the process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "gpu.json"
RUNNING, OK, FAILED, CUT, SKIPPED = "running", "ok", "failed", "cut short", "skipped"

Entry = dict[str, Any]
"""A phase: name, state, rows (what it found), failures (what was not as it must be), seconds, reason."""


class Record:
    """The file of one run, as `bench.report.read` takes it."""

    def __init__(self, folder: Path) -> None:
        """Go on with the file in `folder`, or begin one."""
        self.path = folder / FILE
        self.content: dict[str, Any] = {"part": "gpu", "environment": {}, "settings": {}, "plan": [], "phases": []}
        if self.path.exists():
            self.content = json.loads(self.path.read_text("utf-8"))

    @property
    def phases(self) -> list[Entry]:
        """Those that began or were skipped, in order."""
        entries: list[Entry] = self.content["phases"]
        return entries

    @property
    def is_good(self) -> bool:
        """Whether phases ran and none failed."""
        states = {entry["state"] for entry in self.phases}
        return OK in states and FAILED not in states

    def has(self, name: str) -> bool:
        """Whether the phase `name` is there."""
        return any(entry["name"] == name for entry in self.phases)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What the phase `name` found; nothing where it is not there."""
        return [row for entry in self.phases if entry["name"] == name for row in entry["rows"]]

    def plan(self, names: Sequence[str]) -> None:
        """These phases are to come."""
        self.content["plan"] = list(names)
        self.save()

    def add(self, name: str, state: str, reason: str | None = None) -> Entry:
        """A phase that begins, or is skipped."""
        entry: Entry = {"name": name, "state": state, "rows": [], "failures": [], "seconds": 0.0, "reason": reason}
        self.phases.append(entry)
        self.save()
        return entry

    def end_running(self, reason: str) -> bool:
        """Call the phase failed that was under way when its process ended; whether there was one."""
        running = [entry for entry in self.phases if entry["state"] == RUNNING]
        for entry in running:
            entry["state"], entry["reason"] = FAILED, reason
            self.save()
        return bool(running)

    def skip_rest(self, reason: str) -> None:
        """Every planned phase that is not there is skipped."""
        for name in self.content["plan"]:
            if not self.has(name):
                self.add(name, SKIPPED, reason)

    def save(self) -> None:
        """Write the file; whoever reads it meanwhile finds the old or the new one."""
        unfinished = self.path.with_suffix(".new")
        unfinished.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        unfinished.replace(self.path)
