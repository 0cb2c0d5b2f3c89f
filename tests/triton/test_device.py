"""The choice of the language model's device; the driver is a stand-in."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from chattts_serving.triton import device as gpus
from chattts_serving.triton.device import device_of, num_gpus

DRIVER = """
int cuInit(unsigned flags) { return %d; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
"""


def driver(folder: Path, status: int) -> str:
    """A driver that shows two GPUs, or that does not start."""
    source, library = folder / "driver.c", folder / f"libcuda-{os.getpid()}.so"
    source.write_text(DRIVER % status, encoding="utf-8")
    subprocess.run(["cc", "-shared", "-o", library, source], check=True)
    return str(library)


@pytest.mark.parametrize(("status", "number"), [(0, 2), (100, 0)])
def test_gpus_are_counted_by_the_driver(
    status: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", driver(tmp_path, status))
    assert num_gpus() == number


def test_there_are_none_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", "libno-such-driver.so.1")
    with pytest.raises(OSError, match="no-such-driver"):
        ctypes.CDLL(gpus.DRIVER)
    assert num_gpus() == 0


@pytest.mark.parametrize(
    ("kind", "number", "device"),
    [("MODEL", 2, "cuda:0"), ("MODEL", 0, "cpu"), ("CPU", 2, "cpu"), ("GPU", 2, "cuda:1")],
)
def test_a_model_that_may_choose_takes_the_first_gpu(
    kind: str, number: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "num_gpus", lambda: number)
    assert device_of({"model_instance_kind": kind, "model_instance_device_id": "1"}) == device
