"""The command `python -m bench gpu`: one process that looks on, and one that works."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.page import write_page
from bench.gpu.record import Record
from bench.gpu.supervisor import AGAIN, supervise
from chattts_serving.errors import ConfigError

TINY: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_layers": 2,
    "num_heads": 2,
}  # of a dry run without a GPU


def run(folder: Path, seconds: float, *, dry_run: bool) -> bool:
    """Run every phase within `seconds`, print the tables and write them beside the record; whether all is well.

    Args:
        folder: for gpu.json, gpu.md and profiles; those of an earlier run are replaced.
        seconds: for all of it. What does not fit is skipped.
        dry_run: the smallest counts, and numbers that are not as they must be fail nothing; on a CPU, a tiny model.

    Raises:
        ConfigError: `seconds` is not above 0.
    """
    if not seconds > 0:
        raise ConfigError(f"--seconds is {seconds:g}; allowed is a number above 0")
    until = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    record = Record(folder)
    record.path.unlink(missing_ok=True)
    flags = ["--out", str(folder), "--seconds", str(seconds), *(["--dry-run"] if dry_run else [])]
    record = supervise([sys.executable, "-m", "bench", "gpu", *flags, "--until", str(until)], folder, until)
    if not record.phases:  # its process has said why
        return False
    print(write_page(record.content, folder))
    print(f"raw numbers: {record.path}")
    return record.is_good


def work(folder: Path, seconds: float, until: float, *, dry_run: bool) -> int:
    """Run the phases that the record in `folder` does not have; the exit status of this process.

    Raises:
        ConfigError: there is no GPU, and this is no dry run.
    """
    import torch  # noqa: PLC0415  # takes seconds, and the process that looks on does without

    from bench import report  # noqa: PLC0415
    from bench.gpu.counts import DRY, Counts  # noqa: PLC0415
    from bench.gpu.machine import Machine  # noqa: PLC0415
    from bench.gpu.phases import run_phases  # noqa: PLC0415
    from bench.gpu.plan import PHASES  # noqa: PLC0415
    from bench.model import OFFICIAL  # noqa: PLC0415

    has_gpu = torch.cuda.is_available()
    if not (has_gpu or dry_run):
        raise ConfigError("PyTorch finds no GPU here; --dry-run goes through all phases on a CPU, with a tiny model")
    device = torch.device("cuda:0" if has_gpu else "cpu")
    machine = Machine(
        device, OFFICIAL if has_gpu else replace(OFFICIAL, **TINY), DRY if dry_run else Counts(), folder, until
    )
    record = Record(folder)
    if not record.content["environment"]:
        record.content["environment"] = report.environment()
        record.content["settings"] = {
            "seconds": seconds,
            "dry_run": dry_run,
            "device": str(device),
            "precision": machine.precision.value,
        }
        record.plan([phase.name for phase in PHASES])
    for row in record.rows(PHASES[0].name):  # by a process before this one
        if "read GB/s" in row:
            machine.bandwidth = 1e9 * row["read GB/s"]
    phases = [replace(phase, least_s=0.0) for phase in PHASES] if dry_run else PHASES
    all_ran = run_phases(phases, machine, record, until, forgiving=dry_run, answers=machine.answers)
    return 0 if all_ran else AGAIN
