"""Which GPUs are chosen, and which CPUs go with them; the driver and /sys are made up."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.gpus import choose_gpus, cpus_near, first_gpu
from chattts_serving.launcher.server import main
from chattts_serving.triton import device
from chattts_serving.triton.device import VISIBLE
from tests.launcher.stand_in import driver

CPUS = frozenset(range(16))


@pytest.fixture
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], list[str]]:
    """What is chosen by a text, where CUDA_VISIBLE_DEVICES has a value: the values for each server."""
    library = driver(tmp_path)
    monkeypatch.setattr(device, "DRIVER", str(library))

    def chosen(text: str, visible: str | None) -> list[str]:
        monkeypatch.delenv(VISIBLE, raising=False)
        if visible is not None:
            monkeypatch.setenv(VISIBLE, visible)
        return [f"{gpu.name}={gpu.visible}" for gpu in choose_gpus(text)]

    return chosen


@pytest.mark.parametrize(
    ("text", "visible", "chosen"),
    [
        ("all", None, ["gpu0=0", "gpu1=1"]),
        ("all", "4,5,7", ["gpu0=4", "gpu1=5", "gpu2=7"]),
        ("all", "GPU-1f2e", ["gpu0=GPU-1f2e"]),
        ("1", None, ["gpu0=0"]),
        ("2", "4,5,7", ["gpu0=4", "gpu1=5"]),
        ("0,2", "4,5,7", ["gpu0=4", "gpu2=7"]),
        ("2,0,2", "4,5,7", ["gpu2=7", "gpu0=4"]),
    ],
)
def test_gpus_are_chosen_among_those_that_are_seen(
    gpus: Callable[[str, str | None], list[str]], text: str, visible: str | None, chosen: list[str]
) -> None:
    assert gpus(text, visible) == chosen


@pytest.mark.parametrize(
    ("text", "visible", "message"),
    [
        ("3", None, r"--gpus is 3, and NVIDIA's driver shows 2, numbered from 0"),
        ("0,5", "4,5,7", r"--gpus is 0,5, and NVIDIA's driver shows 3"),
        ("0", None, r"--gpus is 0, and NVIDIA's driver shows 2"),
        ("all", "", r"--gpus is all, and NVIDIA's driver shows none"),
    ],
)
def test_gpus_that_are_not_there_are_named(
    gpus: Callable[[str, str | None], list[str]], text: str, visible: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        gpus(text, visible)


@pytest.mark.parametrize("text", ["some", "-1", "1,", "0;2", "0, 2", "²"])
def test_what_is_no_choice_is_refused_before_anything_is_asked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--gpus={text}"]) == 2
    assert f"--gpus is '{text}'; allowed is all, how many, or their numbers" in capsys.readouterr().err


def test_without_a_driver_there_are_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "DRIVER", "libno-such-driver.so.1")
    assert main(["--gpus=all"]) == 2
    assert "--gpus is all, and NVIDIA's driver shows none" in capsys.readouterr().err


def test_a_driver_that_crashes_ends_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chattts_serving.launcher.gpus.gpu_addresses", lambda: os._exit(3))
    with pytest.raises(ConfigError, match="NVIDIA's driver ended the process that asked it"):
        choose_gpus("all")


@pytest.mark.parametrize(("visible", "first"), [(None, "0"), ("", ""), ("3", "3"), ("GPU-1f2e,GPU-77", "GPU-1f2e")])
def test_a_server_that_nobody_chose_for_takes_the_first(visible: str | None, first: str) -> None:
    assert first_gpu(visible) == first


def system(folder: Path, nodes: dict[str, str]) -> Path:
    """A /sys with the CPUs next to each device, and eight cores of two CPUs each."""
    for address, cpus in nodes.items():
        (folder / "bus" / "pci" / "devices" / address).mkdir(parents=True)
        (folder / "bus" / "pci" / "devices" / address / "local_cpulist").write_text(f"{cpus}\n", encoding="ascii")
    for cpu in CPUS:
        topology = folder / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu % 8},{cpu % 8 + 8}\n", encoding="ascii")
    return folder


def test_gpus_of_a_node_get_equal_parts_of_it_in_whole_cores(tmp_path: Path) -> None:
    folder = system(tmp_path, {"a": "0-3,8-11", "b": "0-3,8-11", "c": "4-7,12-15"})
    shares = cpus_near(["a", "c", "b"], CPUS, folder)
    assert shares == [{0, 1, 8, 9}, {4, 5, 6, 7, 12, 13, 14, 15}, {2, 3, 10, 11}]


def test_no_core_is_left_out(tmp_path: Path) -> None:
    folder = system(tmp_path, dict.fromkeys("abc", "0-15"))
    shares = cpus_near(["a", "b", "c"], CPUS, folder)
    assert frozenset().union(*shares) == CPUS
    assert sorted(map(len, shares)) == [4, 6, 6]


def test_only_cpus_that_this_process_may_use_are_given(tmp_path: Path) -> None:
    folder = system(tmp_path, {"a": "0-3,8-11", "b": "4-7,12-15"})
    assert cpus_near(["a", "b"], frozenset({1, 2, 3}), folder) == [{1, 2, 3}, {1, 2, 3}]


def test_gpus_share_where_there_are_fewer_cores_or_nobody_knows(tmp_path: Path) -> None:
    folder = system(tmp_path, {"a": "0,8", "b": "0,8", "c": ""})
    assert cpus_near(["a", "b", "c", "d", ""], CPUS, folder) == [{0, 8}, {0, 8}, CPUS, CPUS, CPUS]
