"""How many CPUs this process may keep busy."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # a container sees its own group there


def available_cpus(cgroup: Path = CGROUP) -> int:
    """The CPUs of this process's affinity, or those that its container's time is worth, rounded up, if fewer.

    Args:
        cgroup: folder of the control group, version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_quota_us`).
    """
    cpus = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError, ZeroDivisionError):  # no group, or "max": no limit
        quota, period = map(int, _quota_and_period(cgroup))
        if quota > 0:
            return max(1, min(cpus, math.ceil(quota / period)))
    return cpus


def _quota_and_period(cgroup: Path) -> list[str]:
    if (cgroup / "cpu.max").exists():
        return (cgroup / "cpu.max").read_text().split()
    return [(cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")]
