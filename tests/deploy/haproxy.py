"""HAProxy with the shipped configuration, on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chattts_serving.launcher.supervisor import end_with_parent

POLICY = Path(__file__).resolve().parent.parent.parent / "docker" / "haproxy" / "haproxy.cfg"
# Servers by address, as docker/README.md shows them for machines without a name service.
BACKEND = """
backend {protocol}_servers from {protocol}-servers
{servers}
"""


@dataclass(frozen=True)
class Addresses:
    """Where a server, or HAProxy, listens: "HOST:PORT"."""

    http_url: str
    grpc_url: str


def program() -> str:
    """Where HAProxy is; skips the test where it is not installed."""
    found = shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if not found:
        pytest.skip("HAProxy is not installed (on Debian: apt-get install haproxy)")
    return found


def check_configuration(servers: Path, variables: Mapping[str, str]) -> None:
    """Have HAProxy parse the shipped policy with the file `servers`; warnings count."""
    command = [program(), "-c", "-V", "-dW", "-f", str(POLICY), "-f", str(servers)]
    result = subprocess.run(command, env=os.environ | dict(variables), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@contextmanager
def balancer(servers: list[Addresses], folder: Path) -> Iterator[Addresses]:
    """HAProxy in front of `servers`; its files and its log lie in `folder`."""
    file = folder / "servers.cfg"
    file.write_text("".join(_backend(protocol, servers) for protocol in ("grpc", "http")), encoding="utf-8")
    ports = _free_ports(3)
    variables = {"HAPROXY_ADDRESS": "127.0.0.1"} | {
        f"HAPROXY_{name}_PORT": str(port) for name, port in zip(("HTTP", "GRPC", "METRICS"), ports, strict=True)
    }
    check_configuration(file, variables)
    command = [program(), "-db", "-f", str(POLICY), "-f", str(file)]
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            _wait_for(ports[0], process)
            yield Addresses(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
        finally:
            process.terminate()
            process.wait()


def _backend(protocol: str, servers: list[Addresses]) -> str:
    lines = []
    for number, server in enumerate(servers):
        address = f"{server.grpc_url} check-proto h1" if protocol == "grpc" else server.http_url
        lines.append(f"    server server{number} {address} port {server.http_url.rpartition(':')[2]}")
    return BACKEND.format(protocol=protocol, servers="\n".join(lines))


def _free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
        return [one.getsockname()[1] for one in sockets]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 10
    while True:
        assert process.poll() is None, "HAProxy ended"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < end, "HAProxy does not listen"
            time.sleep(0.02)
        else:
            return
