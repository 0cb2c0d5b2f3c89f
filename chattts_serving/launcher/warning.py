"""What a launcher warns of before it starts anything."""

from __future__ import annotations

import os

from chattts_serving.launcher.addresses import is_loopback
from chattts_serving.launcher.supervisor import SHARED_MEMORY, say
from chattts_serving.launcher.tritonserver import Installation

LOW_SHM_BYTES = 256 * 2**20  # a process that finds no more is killed without a word
# Only the gateway belongs on a network; see SECURITY.md.
OF_THE_NETWORK = (
    "warning: other machines may reach this server, the Triton of nvidia-pytriton, which has known holes: whoever "
    "reaches its HTTP port may run code here. Listen on 127.0.0.1 behind the gateway, take NVIDIA's image, or let "
    "nobody else reach it; --local-http keeps HTTP on 127.0.0.1 (SECURITY.md)"
)


def warn_of_the_network(installation: Installation, address: str) -> None:
    """Say that others may reach the bundled tritonserver at `address`, if they may."""
    if installation.libraries is not None and not is_loopback(address):
        say(OF_THE_NETWORK)


def warn_of_little_shared_memory() -> None:
    """Say that Python models may find none, if there is little."""
    space = os.statvfs(SHARED_MEMORY)
    free = space.f_bavail * space.f_frsize
    if free < LOW_SHM_BYTES:
        say(
            f"warning: {SHARED_MEMORY} has {free // 2**20} MiB free, and Python models that fill it are killed: "
            "in a container raise it (docker run --shm-size=1g)"
        )
