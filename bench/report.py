"""Where and with what a benchmark ran, and the file that it leaves: `results/PART-DATE.json`."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from chattts_serving.errors import ConfigError

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "onnxruntime",
    "onnxruntime-gpu",
    "tritonclient",
    "nvidia-pytriton",
    "ChatTTS",
    "transformers",
)


def environment() -> dict[str, object]:
    """Hardware, versions, commit and command of this run."""
    return {
        "cpu": _cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "gpu": _gpu(),
        "driver": _driver(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write(part: str, results: Mapping[str, object]) -> Path:
    """Write the JSON of one run; returns where it is."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{part}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}.json"
    text = json.dumps({"part": part, "environment": environment(), **results}, indent=1, ensure_ascii=False)
    # A list of numbers in one line.
    text = re.sub(r"\[[\s\d.,e+-]+\]", lambda numbers: " ".join(numbers[0].split()), text)
    path.write_text(text + "\n")
    return path


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote.

    Raises:
        ConfigError: it cannot be read, or is not of this version.
    """
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(results, dict) or "part" not in results:
        raise ConfigError(f"{path} is not what this version of the benchmarks writes: it has no 'part'")
    return results


def hardware(environment: Mapping[str, Any]) -> str:
    """One line for a plot's title."""
    cpu = f"{environment['cpu']}, {environment['cpus']} CPUs"
    return f"{environment['gpu']}, {cpu}" if environment["gpu"] else cpu


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows in columns; floats with three digits that count, "-" for None."""
    cells = [list(header), *([cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def cell(value: object) -> str:
    """A value of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _gpu() -> str | None:
    import torch  # noqa: PLC0415  # takes seconds, and tables need none of it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _driver() -> str | None:
    """The version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(listed.stdout.split()), None)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit, with "+" where the working tree differs from it; outside a checkout $BENCH_COMMIT, or None."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],  # noqa: S607
            cwd=RESULTS.parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCH_COMMIT")
    return described.stdout.strip()
