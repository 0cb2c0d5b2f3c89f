"""Limits of a container or a user that a server would run into: looked at before it starts, and named where met.

Linux ends what goes past them without a word to whom it concerns: a thread that is not started looks like a model that
does not load, a process that finds no memory like one that crashed.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from chattts_serving.errors import ConfigError

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
# Processes and threads of a server at rest, and what calls add (measured). Triton has 32 for each Python model's calls.
THREADS, THREADS_PER_MODEL, THREADS_PER_CPU = 80, 36, 12
UNLIMITED = 2**60  # bytes; what version 1 of the control groups says instead of "max" is larger


def check_threads(needed: int) -> None:
    """Refuse to start where `needed` more processes and threads are not allowed.

    Raises:
        ConfigError: names the limit, what it leaves and how it is raised.
    """
    for group in groups("pids"):
        limit, used = _number(group / "pids.max"), _number(group / "pids.current") or 0
        _check(
            needed,
            limit,
            used,
            f"pids.max of the control group {group}",
            "docker run or podman run --pids-limit, pids_limit in Compose, podPidsLimit of Kubernetes' kubelet",
        )
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if os.geteuid() and limit != resource.RLIM_INFINITY:  # root has none
        _check(needed, limit, _threads_of(os.geteuid()), "the user's RLIMIT_NPROC", "ulimit -u, --ulimit nproc")
    of_all = (PROC / "loadavg").read_text().split()[3]  # "running/all"
    pid_max = _number(PROC / "sys" / "kernel" / "pid_max")
    _check(needed, pid_max, int(of_all.split("/")[1]), "the machine's kernel.pid_max", "sysctl")


def threads_needed(num_models: int, num_cpus: int) -> int:
    """How many processes and threads a server of so many models has where it may use `num_cpus`."""
    return THREADS + THREADS_PER_MODEL * num_models + THREADS_PER_CPU * num_cpus


def _check(needed: int, limit: int | None, used: int, name: str, remedy: str) -> None:
    if limit is not None and limit - used < needed:
        raise ConfigError(
            f"a server needs {needed} processes and threads, and {name} leaves {max(0, limit - used)} of {limit}: "
            f"raise it ({remedy})"
        )


class MemoryLimit:
    """Whether the kernel ended a process since this was made because the container's memory was used up."""

    def __init__(self) -> None:
        """Remember how often that has happened."""
        self._before = _num_killed()

    def complaint(self) -> str:
        """A sentence that says so, once for each time it happened; "" where it did not."""
        before, self._before = self._before, _num_killed()
        if self._before <= before:
            return ""
        limits = [limit for group in groups("memory") if (limit := _memory_limit(group)) is not None]
        named = f"the container's limit, {min(limits) / 1e9:.2f} GB," if limits else "the machine's memory"
        return (
            f"error: the kernel ended a process because {named} was used up: raise it, or lower kv_cache_gb of "
            "gpt_decoder (docker/README.md says what a server takes)"
        )


def groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups that limit what `controller` counts, its own first."""
    for line in (PROC / "self" / "cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", maxsplit=2)
        if controller in controllers.split(","):
            root = CGROUPS / controller
        elif number == "0" and (CGROUPS / "cgroup.controllers").exists():
            root = CGROUPS
        else:
            continue
        own = root / path.lstrip("/")
        if not own.is_dir():  # a container sees its own group as the root
            own = root
        while True:
            yield own
            if own == root or root not in own.parents:
                break
            own = own.parent


def _number(path: Path) -> int | None:
    """None for "max", and where there is no such file."""
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _memory_limit(group: Path) -> int | None:
    limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
    return limit if limit and limit < UNLIMITED else None


def _num_killed() -> int:
    """Processes that the kernel ended in this process's group for want of memory."""
    number = 0
    for group in list(groups("memory"))[:1]:
        for name in ("memory.events", "memory.oom_control"):  # versions 2 and 1
            with suppress(OSError):
                lines = dict(line.split() for line in (group / name).read_text().splitlines())
                number = max(number, int(lines.get("oom_kill", 0)))
    return number


def _threads_of(user: int) -> int:
    number = 0
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if process.stat().st_uid == user:
                number += len(list((process / "task").iterdir()))
    return number
