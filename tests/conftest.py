"""Checkpoints, model repositories, live servers and ChatTTS itself, each made once for all tests and only when used.

The official-size checkpoint and both model repositories stay on disk (`checkpoints/`, `build/`), so that only the first
run pays for them; the export notices when they are out of date.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.repository import with_settings
from chattts_serving.launcher.running import RunningServer, running_server
from chattts_serving.launcher.tritonserver import find_installation, has_onnx_backend
from export.__main__ import DEMO

ROOT = Path(__file__).resolve().parent.parent

# Two run at once (`make test`), each in one thread: threads that wait for each other on a core that is taken cost most.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# For the same reason engines have one thread; engine/cpu/test_runner.py has that their number changes no bit. Many
# servers are made of the tiny repository, and a gigabyte takes two seconds to allocate.
SETTINGS: dict[str, dict[str, object]] = {
    "tiny": {"kv_cache_gb": 0.1, "num_threads": 1},
    "demo": {"num_threads": 1},
    "synthetic": {"num_threads": 1},
}
# Processes that the tests start: gRPC's threads, which the child has not, complain into the child's log otherwise.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
# Caches of what the tests run (matplotlib, uv, Chromium, Triton's kernels) lie in the checkout; HOME stays as it was.
CACHES = ROOT / "build" / "caches"
os.environ |= {"XDG_CACHE_HOME": str(CACHES), "TRITON_CACHE_DIR": str(CACHES / "triton")}
# What the tests ask for themselves is on this machine, whatever proxy it has.
NO_PROXY = ("no_proxy", "NO_PROXY")
os.environ |= dict.fromkeys(NO_PROXY, "127.0.0.1,localhost,::1")
PROXIES = [f"{kind}_proxy" for kind in ("http", "https", "all", "grpc")]

# Files that ask a server of official size, which is large: all by one process.
OFFICIAL = {
    "tests/engine/cpu/test_runner.py",
    "tests/integration/test_concurrency.py",
    "tests/integration/test_oracle.py",
    "tests/integration/test_streaming.py",
    "tests/integration/test_voices.py",
}
# Files that take about a minute: begun first, so that none of them is left to one worker at the end.
LONGEST = (
    "integration/test_intelligibility.py",
    "deploy/test_requirements.py",
    "integration/test_faults.py",
    "engine/gpu/test_triton_kernels.py",
    "gateway/test_page.py",
    "gateway/test_page_for_everybody.py",
    "soak/test_soak.py",
    "integration/test_oracle.py",
    "integration/test_streaming.py",
    "engine/cpu/test_runner.py",
    "test_distributions.py",
    "deploy/test_gpu_image.py",
    "integration/test_server_process.py",
    "integration/test_overload.py",
    "engine/gpu/test_triton_compiles.py",
)

# A shell's background jobs ignore interrupts, and so would the processes that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Whole files are handed out, so that what a module makes is made once."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415 - not where one process runs all

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "official" if file in OFFICIAL else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of LONGEST first."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what went wrong in tests that failed once and then passed (`--reruns`): each is a fault somewhere."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"failed at first: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.fixture(scope="session", autouse=True)
def as_quick_as_before() -> Iterator[None]:
    """Models that compute make their processes yield to others; those that run in the tests' own do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "nice", lambda increment: increment)
        yield


@pytest.fixture
def behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a proxy, on which nobody listens, and no exception for this machine."""
    for name in NO_PROXY:
        monkeypatch.delenv(name)
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")


@dataclass(frozen=True)
class Deployment:
    """A checkpoint, its export, and a server that serves it."""

    checkpoint: Path
    repository: Path
    server: RunningServer


def export(checkpoint: str, out: Path) -> None:
    """Run the export as a user does."""
    command = [sys.executable, "-m", "export", "--checkpoint", checkpoint, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)


def deploy(name: str, folder: Path) -> Iterator[Deployment]:
    """`folder` is for the server's log."""
    repository = ROOT / "build" / "repositories" / name
    export(name, repository)
    repository = with_settings(repository, folder / "repository", **SETTINGS[name])
    with running_server(repository, log_path=folder / "server.log") as server:
        yield Deployment(DEMO if name == "demo" else ROOT / "checkpoints" / name, repository, server)


@pytest.fixture(scope="session")
def onnx_models_are_processes() -> bool:
    """Whether ONNX models are processes of their own, as with our backend, or tritonserver's, as with the C++ one."""
    return not has_onnx_backend(find_installation())


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Iterator[Deployment]:
    """The tiny checkpoint behind a live server."""
    yield from deploy("tiny", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Iterator[Deployment]:
    """The checkpoint that speaks English, behind a live server."""
    yield from deploy("demo", tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def official(tmp_path_factory) -> Iterator[Deployment]:
    """The synthetic checkpoint of official size behind a live server."""
    yield from deploy("synthetic", tmp_path_factory.mktemp("official"))
