"""Losses as they fall: means over some steps, a line of JSON each, on the terminal and in a file."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

EVERY = 50  # steps of which the mean is written


class Curve:
    """The curve of one run, and of those that it goes on from."""

    def __init__(self, file: Path) -> None:
        """Lines are appended to `file`."""
        self._file = file
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, step: int, seconds: float, **values: float) -> None:
        """What step number `step`, `seconds` after training began, saw."""
        for name, value in values.items():
            self._values[name].append(value)
        if step % EVERY == 0:
            means = {name: round(sum(seen) / len(seen), 4) for name, seen in self._values.items()}
            line = json.dumps({"step": step, "minutes": round(seconds / 60, 2)} | means)
            with self._file.open("a") as file:
                file.write(line + "\n")
            print(line, file=sys.stderr, flush=True)
            self._values.clear()
