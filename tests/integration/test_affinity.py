"""Host policies on a live server: which CPUs and memory each process and thread may use, as /proc has it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.repository import with_settings
from chattts_serving.engine.cpu.cpus import available_cpus
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer, running_server
from tests import streams
from tests.conftest import Deployment

CPUS = sorted(os.sched_getaffinity(0))
# The first: threads that ONNX Runtime places by itself go to the cores after it, where the test would see them.
SOUND_CPU, ENGINE_CPU = CPUS[0], CPUS[-1]
SOUND_MODELS = {"dvae_decoder", "dvae_encoder", "vocos"}
NO_SUCH_CPU = 1023  # the last one that a mask has room for
SYS_SET_MEMPOLICY, MPOL_DEFAULT = 238, 0  # of x86-64; <linux/mempolicy.h>

Masks = set[int]
"""CPUs as the bits of a number, one number for each different set of CPUs."""


def why_not() -> str:
    """Why there is nothing to test here; "" where there is."""
    if len(CPUS) < 2:
        return "one CPU: there is nothing to choose from"
    # Triton puts the memory policy back after each start of an instance that has a host policy.
    refused = ctypes.CDLL(None).syscall(SYS_SET_MEMPOLICY, MPOL_DEFAULT, None, 0)
    return "no memory policy can be set, as in a container without CAP_SYS_NICE" if refused else ""


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


def mask(*cpus: int) -> Masks:
    return {sum(1 << cpu for cpu in cpus)}


def masks(pid: int) -> Masks:
    """The CPUs that the threads of a process may use."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it ended meanwhile
            status = (thread / "status").read_text(errors="replace")
            found.add(int(re.search(r"^Cpus_allowed:\s+(\S+)$", status, re.MULTILINE)[1].replace(",", ""), 16))
    return found


def models(server: RunningServer) -> dict[int, str]:
    """Process ids of the Python and ONNX models, and their names."""
    found = {}
    for pid in child_processes(server.pid):
        model_file = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1].decode()
        found[pid] = Path(model_file).parent.parent.name
    return found


def masks_of_models(server: RunningServer) -> dict[str, Masks]:
    result: dict[str, Masks] = {}
    for pid, name in models(server).items():
        result[name] = result.get(name, set()) | masks(pid)
    return result


def memory_node() -> int:
    """The first NUMA node with memory."""
    return int(re.match(r"\d+", Path("/sys/devices/system/node/has_memory").read_text())[0])


def speak(server: RunningServer) -> None:
    """Have every thread of the models start that starts with the first request."""
    assert streams.speak(server.grpc_url, text="hello there", skip_refine=True, max_new_tokens=8)["num_tokens"]


def only(model: str, repository: Path, folder: Path) -> Path:
    """A repository of one model of `repository`."""
    folder.mkdir()
    (folder / model).symlink_to(repository / model)
    return folder


@pytest.fixture(scope="module")
def repository(tiny: Deployment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's, whose engine takes as many threads as it may."""
    return with_settings(tiny.repository, tmp_path_factory.mktemp("affinity") / "models", num_threads=0)


@pytest.fixture(scope="module")
def pinned(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The tiny model with a CPU for the language model, one for the sound, and none for what is left."""
    flags = [
        f"--host-policy=engine,cpu-cores={ENGINE_CPU}-{ENGINE_CPU}",
        f"--host-policy=engine,numa-node={memory_node()}",
        f"--host-policy=sound,cpu-cores={SOUND_CPU}-{SOUND_CPU}",
    ]
    log = tmp_path_factory.mktemp("pinned") / "server.log"
    with running_server(repository, log_path=log, flags=flags) as server:
        speak(server)
        yield server


def test_without_policies_every_thread_may_use_every_cpu(tiny: Deployment, onnx_models_are_processes: bool) -> None:
    speak(tiny.server)
    if onnx_models_are_processes:  # inside tritonserver ONNX Runtime binds each of its threads to a core of its own
        assert masks(tiny.server.pid) == mask(*CPUS)
    assert all(found == mask(*CPUS) for found in masks_of_models(tiny.server).values())


def test_every_thread_stays_on_the_cpus_of_its_models_policy(
    pinned: RunningServer, onnx_models_are_processes: bool
) -> None:
    expected = {
        name: mask(ENGINE_CPU) if name == "gpt_decoder" else mask(SOUND_CPU) if name in SOUND_MODELS else mask(*CPUS)
        for name in models(pinned).values()
    }
    sound_models = SOUND_MODELS if onnx_models_are_processes else ()
    assert {"gpt_decoder", "text_frontend", "speech", "chattts_stream", *sound_models} <= set(expected)
    assert masks_of_models(pinned) == expected


def test_the_threads_of_the_server_that_work_for_a_model_are_on_its_cpus(pinned: RunningServer) -> None:
    assert masks(pinned.pid) == mask(*CPUS) | mask(ENGINE_CPU) | mask(SOUND_CPU)


def test_the_language_model_takes_a_thread_for_each_of_its_cpus(
    pinned: RunningServer, repository: Path, tmp_path: Path
) -> None:
    def threads(server: RunningServer) -> set[str]:
        return set(re.findall(r"cpu\.runner: \w+ on (\d+) threads", server.log_path.read_text(encoding="utf-8")))

    assert threads(pinned) == {"1"}
    with running_server(only("gpt_decoder", repository, tmp_path / "models"), log_path=tmp_path / "log") as server:
        assert threads(server) == {str(available_cpus())}
        assert masks_of_models(server) == {"gpt_decoder": mask(*CPUS)}


def test_a_numa_node_binds_the_memory_of_its_models_alone(pinned: RunningServer) -> None:
    for pid, name in models(pinned).items():
        policies = {line.split()[1] for line in Path(f"/proc/{pid}/numa_maps").read_text().splitlines()}
        assert (f"bind:{memory_node()}" in policies) == (name == "gpt_decoder"), (name, policies)


def test_what_names_no_policy_has_the_policy_cpu(tiny: Deployment, tmp_path: Path) -> None:
    repository = only("text_frontend", tiny.repository, tmp_path / "models")
    flags = [f"--host-policy=cpu,cpu-cores={ENGINE_CPU}-{ENGINE_CPU}"]
    with running_server(repository, log_path=tmp_path / "log", flags=flags) as server:
        assert masks_of_models(server) == {"text_frontend": mask(ENGINE_CPU)}


def test_a_cpu_that_is_not_there_stops_the_start(tiny: Deployment, tmp_path: Path) -> None:
    repository = only("gpt_decoder", tiny.repository, tmp_path / "models")
    flags = [f"--host-policy=engine,cpu-cores={NO_SUCH_CPU}-{NO_SUCH_CPU}"]
    with (
        pytest.raises(ConfigError, match=r"did not start \(exit status 1\)"),
        running_server(repository, log_path=tmp_path / "log", flags=flags),
    ):
        pass
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert "failed to load 'gpt_decoder' version 1: Internal: Unable to set NUMA thread affinity" in log
