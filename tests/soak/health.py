"""What a server holds: memory, descriptors and threads of each of its processes, shared memory, open requests."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.watch import MB, memory_of, process_tree
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer
from chattts_serving.launcher.supervisor import SHARED_MEMORY
from chattts_serving.launcher.tritonserver import STUB_NAME
from tests.metrics import AT_REST, scrape

LAUNCHER, TRITONSERVER = "launcher", "tritonserver"
DEAD = "Z"  # state of a process that nobody has waited for
SETTLED = 2  # looks in a row that see as many descriptors: connections that were closed end a little later
LOOK_S = 0.25
MOST_LOOKS = 40


@dataclass(frozen=True)
class Process:
    """One process of the server.

    Attributes:
        pid: its process id.
        held_mb: memory without pages of files (`bench.watch.Memory.held`), 10**6 bytes.
        descriptors, threads: how many it has.
    """

    pid: int
    held_mb: float
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Rest:
    """The server when it has nothing to do.

    Attributes:
        at_s: since the run began.
        requests: that had been sent.
        processes: by name: "launcher", "tritonserver", and each Python model's.
        shm_mb: of its segments in /dev/shm, what takes memory.
    """

    at_s: float
    requests: int
    processes: dict[str, Process]
    shm_mb: float

    @property
    def held_mb(self) -> float:
        """Of all processes."""
        return sum(process.held_mb for process in self.processes.values())


@dataclass(frozen=True)
class Busy:
    """The server under load.

    Attributes:
        at_s: since the run began.
        held_mb: memory of all its processes, as `Process.held_mb`.
        requests_open, sequences_running: as the engine reports them.
    """

    at_s: float
    held_mb: float
    requests_open: int
    sequences_running: int


def look_at_rest(server: RunningServer, started: float, requests: int) -> Rest:
    """What the server holds; connections that were closed have `SETTLED` looks to end."""
    pids = named_processes(server)
    before, same, looks = _descriptors(pids), 1, 0
    while same < SETTLED and looks < MOST_LOOKS:
        time.sleep(LOOK_S)
        now, looks = _descriptors(pids), looks + 1
        same = same + 1 if now == before else 1
        before = now
    held = _held_mb(server, pids)
    processes = {
        name: Process(pid, held[name], before[name], _count(Path(f"/proc/{pid}/task"))) for name, pid in pids.items()
    }
    return Rest(time.monotonic() - started, requests, processes, _shared_memory_mb(server.launcher.pid))


def _held_mb(server: RunningServer, pids: dict[str, int]) -> dict[str, float]:
    """Memory of each process without those below it; looked at while the launcher has no further child.

    It has one now and then: a copy of itself that asks the server whether it works, and shares the launcher's pages.
    """
    for _ in range(MOST_LOOKS):
        held = {name: memory_of(pid).held / MB for name, pid in pids.items()}
        if set(process_tree(server.launcher.pid)) == set(pids.values()):
            break
        time.sleep(LOOK_S)
    models = sum(of for name, of in held.items() if name not in (LAUNCHER, TRITONSERVER))
    below = {LAUNCHER: held.get(TRITONSERVER, 0.0), TRITONSERVER: models}
    return {name: of - below.get(name, 0.0) for name, of in held.items()}


def look_under_load(server: RunningServer, started: float) -> Busy:
    """What the server holds while it works. Raises OSError or KeyError where it does not tell."""
    engine = scrape(server)
    held_mb = memory_of(server.launcher.pid).held / MB
    return Busy(time.monotonic() - started, held_mb, engine.requests_open, engine.sequences_running)


def named_processes(server: RunningServer) -> dict[str, int]:
    """The ids of the server's processes by name: the launcher, tritonserver, each model's; of instances with a number.

    Those that have ended are missing; when the launcher has, all are.
    """
    if server.launcher.poll() is not None:
        return {}
    names = {LAUNCHER: server.launcher.pid}
    with suppress(ConfigError):  # tritonserver has ended
        triton = server.pid
        if child_processes(server.launcher.pid).get(triton) not in (None, DEAD):
            names[TRITONSERVER] = triton
        seen: Counter[str] = Counter()
        for pid in sorted(pid for pid, state in child_processes(triton).items() if state != DEAD):
            model = _model_of(pid)
            seen[model] += 1
            names[model if seen[model] == 1 else f"{model} {seen[model]}"] = pid
    return names


def rests_within(server: RunningServer, within_s: float) -> str | None:
    """Wait until the engine holds nothing; None, or what it still holds after `within_s` seconds.

    Raises OSError or KeyError where it does not tell.
    """
    end = time.monotonic() + within_s
    while (engine := scrape(server)) != AT_REST:
        if time.monotonic() > end:
            return str(engine)
        time.sleep(LOOK_S)
    return None


def last_lines(log: Path, number: int = 40) -> str:
    """The end of a server's log."""
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-number:])


def _model_of(pid: int) -> str:
    """The model that a Python backend's process runs: STUB .../MODEL/VERSION/FILE ..."""
    with suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if Path(arguments[0]).name == STUB_NAME:
            return Path(arguments[1]).parent.parent.name
    return "unknown"


def _descriptors(pids: dict[str, int]) -> dict[str, int]:
    return {name: _count(Path(f"/proc/{pid}/fd")) for name, pid in pids.items()}


def _count(folder: Path) -> int:
    """Entries of `folder`, 0 when its process has ended."""
    with suppress(FileNotFoundError):
        return sum(1 for _ in folder.iterdir())
    return 0


def _shared_memory_mb(launcher: int) -> float:
    """What the segments of the server that `launcher` runs take, 10**6 bytes; most of their size is never written."""
    blocks = 0
    for segment in SHARED_MEMORY.glob(f"chattts_{launcher}_*"):
        with suppress(FileNotFoundError):
            blocks += segment.stat().st_blocks
    return 512 * blocks / MB
