"""The choice of the language model's device; the driver is a stand-in."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from chattts_serving.triton import device as gpus
from chattts_serving.triton.device import device_of, gpu_addresses, num_gpus
from tests.launcher.stand_in import driver


@pytest.mark.parametrize(("status", "number"), [(0, 2), (100, 0)])
def test_gpus_are_counted_by_the_driver(
    status: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "DRIVER", str(driver(tmp_path, status=status)))
    assert num_gpus() == number
    assert gpu_addresses() == ["0000:a0:00.0", "0000:b0:00.0"][:number]


def test_there_are_none_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", "libno-such-driver.so.1")
    with pytest.raises(OSError, match="no-such-driver"):
        ctypes.CDLL(gpus.DRIVER)
    assert num_gpus() == 0
    assert gpu_addresses() == []


@pytest.mark.parametrize(
    ("kind", "number", "device"),
    [("MODEL", 2, "cuda:0"), ("MODEL", 0, "cpu"), ("CPU", 2, "cpu"), ("GPU", 2, "cuda:1")],
)
def test_a_model_that_may_choose_takes_the_first_gpu(
    kind: str, number: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "num_gpus", lambda: number)
    assert device_of({"model_instance_kind": kind, "model_instance_device_id": "1"}) == device
