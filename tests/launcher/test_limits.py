"""Limits of a container: a real control group around the launcher, where this machine lets one be made."""

from __future__ import annotations

import os
import resource
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.launcher import limits
from chattts_serving.launcher.limits import MemoryLimit, check_threads, groups, threads_needed
from chattts_serving.launcher.tritonserver import ROOT

HOG = "b'x' * 2**30"


def group(controller: str) -> Iterator[Path]:
    """A control group below this process's own; skips where none can be made."""
    parents = list(groups(controller))
    folder = parents[0] / f"chattts-test-{secrets.token_hex(4)}" if parents else Path()
    try:
        folder.mkdir()
        limit = next(
            folder / name for name in ("pids.max", "memory.max", "memory.limit_in_bytes") if (folder / name).exists()
        )
    except (OSError, StopIteration):
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group of {controller} can be made here")
    limit.write_text(str(100 if controller == "pids" else 64 * 2**20))
    yield folder
    folder.rmdir()


@pytest.fixture
def pids_group() -> Iterator[Path]:
    yield from group("pids")


@pytest.fixture
def memory_group() -> Iterator[Path]:
    yield from group("memory")


def inside(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`command` of this Python in the control group `folder`."""
    entering = f'echo $$ > {folder / "cgroup.procs"}; exec "$@"'
    return subprocess.run(
        ["sh", "-c", entering, "sh", sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_server_that_may_have_too_few_threads_is_not_started(pids_group: Path, tmp_path: Path) -> None:
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "empty" / "config.pbtxt").touch()
    result = inside(pids_group, "-m", "chattts_serving.server", f"--model-repository={tmp_path}")
    assert result.returncode == 2
    needed = threads_needed(1, len(os.sched_getaffinity(0)))
    [error] = result.stderr.splitlines()
    assert error.startswith(f"error: a server needs {needed} processes and threads, and pids.max of the control group")
    assert " of 100: raise it (" in error
    assert "--pids-limit" in error


def test_what_is_allowed_is_not_refused() -> None:
    check_threads(1)


def test_the_limit_of_a_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, 300))
    with pytest.raises(
        ConfigError, match=r"needs 301 .* the user's RLIMIT_NPROC leaves 300 of 300: raise it \(ulimit -u"
    ):
        check_threads(301)
    check_threads(300)


def test_the_limit_of_the_machine_is_named() -> None:
    with pytest.raises(ConfigError, match=r"kernel.pid_max leaves \d+ of \d+: raise it \(sysctl\)"):
        check_threads(2**23)


def test_a_process_that_the_kernel_ended_for_memory_is_told_once(
    memory_group: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "groups", lambda _: iter([memory_group]))
    memory = MemoryLimit()
    assert memory.complaint() == ""
    assert inside(memory_group, "-c", HOG).returncode < 0
    assert "the container's limit, 0.07 GB, was used up: raise it, or lower kv_cache_gb" in memory.complaint()
    assert memory.complaint() == ""
