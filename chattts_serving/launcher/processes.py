"""What Linux knows of processes: whose children they are, in what state, and which model one of Triton's runs."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from chattts_serving.launcher.tritonserver import STUB_NAME

UNKNOWN = "unknown"  # the name of a model
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def adopt_orphans() -> None:
    """Make processes that a killed tritonserver leaves behind children of this one, which can wait for them."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def child_processes(parent: int) -> dict[int, str]:
    """The states of `parent`'s children by process id, as /proc/PID/stat has them ("Z": dead, not waited for)."""
    processes = {int(entry.name): state_and_parent(entry.name) for entry in Path("/proc").glob("[0-9]*")}
    return {pid: state for pid, (state, its_parent) in processes.items() if its_parent == parent}


def state_and_parent(pid: int | str) -> tuple[str, int]:
    """("", 0) where there is no such process."""
    try:
        # "pid (name) state ppid ...", and the name may hold anything
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)


def model_of(pid: int) -> str:
    """The name of the model that `pid` runs, UNKNOWN where it does not say; "" where it runs none or is dead.

    A stub's first argument is REPOSITORY/MODEL/VERSION/FILE. (PyTorch changes the name of its process.)
    """
    try:
        program, path, *_ = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except (OSError, ValueError):
        return ""
    return Path(path).parent.parent.name or UNKNOWN if Path(program).name == STUB_NAME else ""
