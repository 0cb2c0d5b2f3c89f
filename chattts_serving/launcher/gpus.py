"""Which GPUs get a server each, and which CPUs go with them."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.errors import ConfigError, shown
from chattts_serving.triton.device import VISIBLE, gpu_addresses

ALL = "all"
NUMBERS = re.compile(r"\d+(,\d+)*", re.ASCII)
ALLOWED = "all, how many, or their numbers with commas between them (0,2)"
SYSTEM = Path("/sys")
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Gpu:
    """One GPU for one server.

    Attributes:
        number: its place among those that this process sees.
        visible: what CUDA_VISIBLE_DEVICES calls it.
        cpus: those that its server may use.
    """

    number: int
    visible: str
    cpus: frozenset[int]

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"gpu{self.number}"


def check_gpus(text: str) -> None:
    """Check what a user wrote for `choose_gpus`.

    Raises:
        ConfigError: it is neither `all` nor a count nor a list.
    """
    if text and text != ALL and not NUMBERS.fullmatch(text):
        raise ConfigError(f"--gpus is {shown(text)}; allowed is {ALLOWED}")


def choose_gpus(text: str) -> list[Gpu]:
    """The GPUs that `text` means: "all", a number ("2" are the first two), or a list ("0,2").

    Numbers count those that this process sees, as CUDA does, so that CUDA_VISIBLE_DEVICES=4,5 makes them 0 and 1.

    Raises:
        ConfigError: there are not as many.
    """
    addresses = _asked()
    number = len(addresses)
    if text == ALL:
        chosen = list(range(number))
    elif "," in text:
        chosen = list(dict.fromkeys(map(int, text.split(","))))
    else:
        chosen = list(range(int(text)))
    if not chosen or max(chosen) >= number:
        there = f"shows {number}, numbered from 0" if number else "shows none"
        raise ConfigError(f"--gpus is {text}, and NVIDIA's driver {there} (see nvidia-smi and {VISIBLE})")
    given = os.environ.get(VISIBLE)
    names = given.split(",") if given else [str(one) for one in range(number)]
    cpus = cpus_near([addresses[one] for one in chosen], frozenset(os.sched_getaffinity(0)))
    return [Gpu(one, names[one].strip(), near) for one, near in zip(chosen, cpus, strict=True)]


def _asked() -> list[str]:
    """`gpu_addresses` in another process: the driver keeps files open and threads running in whoever asked it."""
    receiving, sending = _FORK.Pipe(duplex=False)
    asking = _FORK.Process(target=lambda: sending.send(gpu_addresses()))
    asking.start()
    sending.close()
    try:
        addresses: list[str] = receiving.recv()
    except EOFError:
        raise ConfigError("--gpus: NVIDIA's driver ended the process that asked it for its GPUs") from None
    finally:
        asking.join()
    return addresses


def first_gpu(visible: str | None) -> str:
    """CUDA_VISIBLE_DEVICES of a server that uses one GPU, from `visible`, its value so far: the first of them."""
    return "0" if visible is None else visible.split(",")[0]


def cpus_near(addresses: Sequence[str], cpus: frozenset[int], system: Path = SYSTEM) -> list[frozenset[int]]:
    """For the GPU at each PCI address those of `cpus` that are on its NUMA node; all where nobody knows.

    GPUs of one node get equal parts of it, in whole cores, where it has as many cores as GPUs.
    """
    neighbours: defaultdict[frozenset[int], list[int]] = defaultdict(list)
    result = [cpus] * len(addresses)
    for place, address in enumerate(addresses):
        near = (
            _listed(system / "bus" / "pci" / "devices" / address / "local_cpulist") & cpus if address else frozenset()
        )
        if near:
            neighbours[near].append(place)
    for near, places in neighbours.items():
        cores = sorted({tuple(sorted(_siblings(cpu, system) & near)) for cpu in near})
        ends = [len(cores) * index // len(places) for index in range(len(places) + 1)]
        for place, first, last in zip(places, ends, ends[1:], strict=False):
            part = cores[first:last] if len(cores) >= len(places) else cores
            result[place] = frozenset(cpu for core in part for cpu in core)
    return result


def _siblings(cpu: int, system: Path) -> frozenset[int]:
    """The CPUs that share a core with `cpu`."""
    folder = system / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
    return _listed(folder / "thread_siblings_list") | {cpu}


def _listed(file: Path) -> frozenset[int]:
    """The numbers of a list such as "0-3,8"; none where there is no such file."""
    numbers: set[int] = set()
    with suppress(OSError, ValueError):
        for part in file.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)
