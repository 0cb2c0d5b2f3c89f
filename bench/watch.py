"""What a server takes while it works: memory and CPU time of all its processes, use and memory of the GPU.

Memory is the proportional set size (PSS): a page that n processes share counts 1/n in each, so that the sum over the
processes counts it once. The sum of resident sizes would count shared memory and libraries several times.
"""

from __future__ import annotations

import importlib
import os
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.processes import model_of

if TYPE_CHECKING:
    from typing_extensions import Self

INTERVAL_S = 0.5  # between two samples
MEMORY_EVERY = 4  # samples: reading it takes 50 ms of CPU time for a server of 3 GB (measured)
MB = 1e6
_GONE = (FileNotFoundError, ProcessLookupError)  # the process ended meanwhile


@dataclass(frozen=True)
class Usage:
    """What was used from start to end; None for what could not be seen.

    Attributes:
        server_cpu_share: of the CPU time of all cores that this process may use, 0 to 1.
        client_cpu_cores: cores that this process, the client, kept busy; it runs on one at most.
        peak_memory_mb, memory_after_mb: PSS of all processes of the server, 10**6 bytes: the most seen, and at the end.
        gpu_share: mean share of the time in which the first GPU ran a kernel, 0 to 1.
        gpu_memory_mb: the most memory seen in use on it, by whomever.
    """

    server_cpu_share: float | None
    client_cpu_cores: float
    peak_memory_mb: float | None
    memory_after_mb: float | None
    gpu_share: float | None
    gpu_memory_mb: float | None


class Memory(NamedTuple):
    """Memory of several processes, bytes.

    Attributes:
        pss: all of it.
        held: without pages of files, which the kernel drops and reads again as it likes; what leaks is in here.
    """

    pss: int
    held: int


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants; empty when it is gone."""
    children: dict[int, list[int]] = {}
    pids = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(*_GONE):
                pids.add(int(entry.name))
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    tree = [root] if root in pids else []
    for pid in tree:  # grows while it is walked
        tree += children.get(pid, [])
    return tree


def memory_of(root: int) -> Memory:
    """What `root` and its descendants take, shared pages counted once.

    Raises:
        ConfigError: this system does not tell, or not to this user.
    """
    pss = held = 0
    for pid in process_tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except _GONE:
            if Path(f"/proc/{pid}").exists() and not Path("/proc/self/smaps_rollup").exists():
                raise ConfigError("memory cannot be measured: this kernel has no /proc/PID/smaps_rollup") from None
            continue
        except PermissionError as error:
            raise ConfigError(f"memory cannot be measured: process {pid} belongs to another user") from error
        sizes = {name: 1024 * int(size) for name, size in re.findall(r"^(Pss\w*):\s+(\d+) kB$", text, re.MULTILINE)}
        pss += sizes.get("Pss", 0)  # a zombie has none
        held += sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0)
    return Memory(pss, held)


def cpu_seconds(root: int) -> float:
    """CPU time that `root` and its descendants have taken so far; those that have ended do not count."""
    ticks = 0
    for pid in process_tree(root):
        with suppress(*_GONE):
            ticks += sum(map(int, _stat(pid)[11:13]))  # utime, stime
    return ticks / os.sysconf("SC_CLK_TCK")


def process_cpu_seconds(root: int) -> dict[tuple[int, str], float]:
    """CPU time so far of `root` and each descendant that lives, by process id and name.

    A process that runs a model is called as that, others as their program; further ones of a name get a number.
    """
    found: dict[tuple[int, str], float] = {}
    seen: Counter[str] = Counter()
    for pid in process_tree(root):
        with suppress(*_GONE):
            ticks = sum(map(int, _stat(pid)[11:13]))  # utime, stime
            name = model_of(pid) or Path(f"/proc/{pid}/comm").read_text().strip()
            seen[name] += 1
            name = f"{name} {seen[name]}" if seen[name] > 1 else name
            found[pid, name] = ticks / os.sysconf("SC_CLK_TCK")
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third, the state, on; the second is a name that may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


class Gpu:
    """The first NVIDIA GPU, seen through nvidia-ml-py."""

    def __init__(self) -> None:
        """Open it.

        Raises:
            ConfigError: there is none, or no nvidia-ml-py.
        """
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            raise ConfigError("nvidia-ml-py is not installed") from None
        try:
            self._nvml.nvmlInit()
            self._device = self._nvml.nvmlDeviceGetHandleByIndex(0)
        except self._nvml.NVMLError as error:
            raise ConfigError(f"no NVIDIA GPU ({error})") from error

    def sample(self) -> tuple[float, float]:
        """Share of NVML's last period (a second or less) in which a kernel ran, 0 to 1; bytes in use."""
        return (
            self._nvml.nvmlDeviceGetUtilizationRates(self._device).gpu / 100,
            self._nvml.nvmlDeviceGetMemoryInfo(self._device).used,
        )


class Watch:
    """Samples while its block runs, in a thread; `usage` has what it saw once the block has ended.

    with Watch(pid, gpu) as watch:
        ...
    print(watch.usage.peak_memory_mb)
    """

    usage: Usage

    def __init__(self, root: int | None, gpu: Gpu | None) -> None:
        """Watch the processes from `root` down, and `gpu`; None leaves them out."""
        self._root, self._gpu = root, gpu
        self._memory: list[int] = []
        self._gpu_samples: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def __enter__(self) -> Self:
        """Start."""
        self._sample()  # here an error reaches the caller
        self._started = self._clocks()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, and take stock."""
        wall, client, server = (end - start for start, end in zip(self._started, self._clocks(), strict=True))
        self._end.set()
        self._thread.join()
        if kind is not None:
            return
        self._sample()
        if self._error is not None:
            raise self._error
        use, used = zip(*self._gpu_samples, strict=True) if self._gpu_samples else ((), ())
        self.usage = Usage(
            server_cpu_share=server / wall / len(os.sched_getaffinity(0)) if self._root else None,
            client_cpu_cores=client / wall,
            peak_memory_mb=max(self._memory) / MB if self._memory else None,
            memory_after_mb=self._memory[-1] / MB if self._memory else None,
            # The first sample is from before the block, the last from after it.
            gpu_share=sum(use[1:-1]) / len(use[1:-1]) if use[1:-1] else None,
            gpu_memory_mb=max(used) / MB if used else None,
        )

    def _clocks(self) -> tuple[float, float, float]:
        """Seconds: wall clock, CPU of this process, CPU of the server."""
        return time.perf_counter(), time.process_time(), cpu_seconds(self._root) if self._root else 0.0

    def _sample(self) -> None:
        self._sample_memory()
        self._sample_gpu()

    def _sample_memory(self) -> None:
        if self._root:
            self._memory.append(memory_of(self._root).pss)

    def _sample_gpu(self) -> None:
        if self._gpu:
            self._gpu_samples.append(self._gpu.sample())

    def _run(self) -> None:
        number = 0
        while not self._end.wait(INTERVAL_S):
            number += 1
            try:
                self._sample_gpu()
                if number % MEMORY_EVERY == 0:
                    self._sample_memory()
            except Exception as error:  # raised at the end of the block
                self._error = error
                return
