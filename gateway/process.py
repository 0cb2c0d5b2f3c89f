"""A gateway in a process of its own for the length of a block, as benchmarks and tests want it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gateway.settings import KEYS_VARIABLE, SettingsError

START_S = 60.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy of the environment has other loopbacks


@dataclass(frozen=True)
class RunningGateway:
    """Where it listens ("http://127.0.0.1:PORT"), its process, and the file of its log."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


@contextmanager
def running_gateway(triton: str, log: Path, *flags: str, keys: str = "") -> Iterator[RunningGateway]:
    """`python -m gateway` on a free port of 127.0.0.1.

    Args:
        triton: "HOST:PORT" of Triton's gRPC.
        log: file that its log is appended to.
        flags: further flags.
        keys: API keys, as the environment has them.

    Raises:
        SettingsError: it did not start; the message is its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "gateway", "--port", str(port), "--triton", triton, *flags]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, KEYS_VARIABLE: keys})  # noqa: S603
    gateway = RunningGateway(f"http://127.0.0.1:{port}", process, log)
    end = time.monotonic() + START_S
    try:
        while not answers(f"{gateway.url}/health"):
            if process.poll() is not None or time.monotonic() > end:
                raise SettingsError(f"the gateway did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield gateway
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens now."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with a good status within 2 s."""
    try:
        with _DIRECT.open(url, timeout=2):
            return True
    except OSError:
        return False
