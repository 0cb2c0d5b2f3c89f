"""Which GPUs there are, and which device the language model runs on."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

DRIVER = "libcuda.so.1"
VISIBLE = "CUDA_VISIBLE_DEVICES"  # a variable of CUDA's: the GPUs that a process sees, by number or name, with commas
_ADDRESS_BYTES = 32


def num_gpus() -> int:
    """The GPUs that NVIDIA's driver shows this process, of those in CUDA_VISIBLE_DEVICES; 0 without a driver."""
    cuda = _driver()
    count = ctypes.c_int()
    if cuda is None or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def gpu_addresses() -> list[str]:
    """Where they are on the PCI bus, as /sys/bus/pci/devices has it; "" for one of which the driver does not say."""
    cuda = _driver()
    addresses = []
    for number in range(num_gpus()):
        text, device = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_int()
        unknown = (
            cuda is None
            or cuda.cuDeviceGet(ctypes.byref(device), number)
            or cuda.cuDeviceGetPCIBusId(text, _ADDRESS_BYTES, device)
        )
        addresses.append("" if unknown else text.value.decode("ascii").lower())
    return addresses


def _driver() -> ctypes.CDLL | None:
    """NVIDIA's driver, where there is one that starts."""
    try:
        cuda = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    return None if cuda.cuInit(0) else cuda


def device_of(instance: Mapping[str, str]) -> str:
    """ "cpu" or "cuda:N" for what Triton tells a model of its instance.

    KIND_MODEL leaves the choice to the model, which takes the first GPU where there is one.
    """
    kind = instance["model_instance_kind"]
    if kind == "MODEL":
        return "cuda:0" if num_gpus() else "cpu"
    return f"cuda:{instance['model_instance_device_id']}" if kind == "GPU" else "cpu"
