"""Which device the language model runs on."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

DRIVER = "libcuda.so.1"


def num_gpus() -> int:
    """The GPUs that NVIDIA's driver shows this process, of those in CUDA_VISIBLE_DEVICES; 0 without a driver."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def device_of(instance: Mapping[str, str]) -> str:
    """ "cpu" or "cuda:N" for what Triton tells a model of its instance.

    KIND_MODEL leaves the choice to the model, which takes the first GPU where there is one.
    """
    kind = instance["model_instance_kind"]
    if kind == "MODEL":
        return "cuda:0" if num_gpus() else "cpu"
    return f"cuda:{instance['model_instance_device_id']}" if kind == "GPU" else "cpu"
