"""The process that runs the phases, and another one for the rest where it dies, hangs or loses its GPU."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.record import Record

AGAIN = 3  # exit status: the rest needs a new process
GRACE_S = 20.0  # past the end, for a phase to come to its own


def supervise(command: Sequence[str], folder: Path, until: float, grace_s: float = GRACE_S) -> Record:
    """Run `command` until every planned phase is in the record of `folder`, or until `until` (s, monotonic)."""
    while True:
        ended = _run(command, until + grace_s - time.monotonic())
        record = Record(folder)
        had_one = record.end_running(f"its process {ended or 'ended without a word'}")
        if not (had_one or ended is None) or time.monotonic() >= until:
            break
        if all(map(record.has, record.content["plan"])):
            break
    record.skip_rest("no time was left" if time.monotonic() >= until else "the process could not go on")
    return record


def _run(command: Sequence[str], timeout_s: float) -> str | None:
    """How the process ended, in words; None where it asks for another one."""
    with subprocess.Popen(command) as process:  # noqa: S603
        try:
            status = process.wait(timeout=max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            process.kill()
            return "was still busy when the time was over, and was ended"
        except BaseException:  # an interrupt is for both
            process.kill()
            raise
    if status == AGAIN:
        return None
    return f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
