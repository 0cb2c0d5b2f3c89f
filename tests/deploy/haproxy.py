"""HAProxy with the shipped configuration, on the loopback."""

from __future__ import annotations

import http.client
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from chattts_serving.launcher.processes import end_with_parent

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "docker" / "haproxy"
NEWER = ROOT / "build" / "haproxy" / "haproxy"  # as newer_haproxy.sh makes it
POLICY = FOLDER / "haproxy.cfg"
CLUSTER = FOLDER / "servers.cfg"
# Servers by address, as docker/README.md shows them for machines without a name service.
BACKEND = """
backend {protocol}_servers from {protocol}-servers
{servers}
"""


@dataclass(frozen=True)
class Addresses:
    """Where a server, or HAProxy, listens: "HOST:PORT"; the last two are HAProxy's alone."""

    http_url: str
    grpc_url: str
    metrics_url: str = ""
    pid: int = 0


def program() -> str:
    """Where HAProxy is; skips the test where it is not installed."""
    found = shutil.which("haproxy", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if not found:
        pytest.skip("HAProxy is not installed (on Debian: apt-get install haproxy)")
    return found


def newer_program() -> str:
    """The HAProxy of a later Debian; skips the test where it was not fetched."""
    if not NEWER.exists():
        pytest.skip("a newer HAProxy is not there (tests/deploy/newer_haproxy.sh build/haproxy)")
    return str(NEWER)


def check_configuration(servers: Path, variables: Mapping[str, str], binary: str = "") -> None:
    """Have HAProxy (`binary`, or the installed one) parse the shipped policy with `servers`; warnings count."""
    command = [binary or program(), "-c", "-V", "-dW", "-f", str(POLICY), "-f", str(servers)]
    result = subprocess.run(command, env=os.environ | dict(variables), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@contextmanager
def balancer(servers: list[Addresses], folder: Path) -> Iterator[Addresses]:
    """HAProxy in front of `servers`; its files and its log lie in `folder`."""
    with running("".join(_backend(protocol, servers) for protocol in ("grpc", "http")), folder) as addresses:
        yield addresses


@contextmanager
def running(servers: str, folder: Path, variables: Mapping[str, str] = {}, binary: str = "") -> Iterator[Addresses]:
    """HAProxy with the shipped policy and the configuration `servers`, which may need `variables`.

    `binary` is the program, where it is not to be the installed one.
    """
    file = folder / "servers.cfg"
    file.write_text(servers, encoding="utf-8")
    ports = free_ports(3)
    variables = dict(variables) | {
        "HAPROXY_ADDRESS": "127.0.0.1",
        **{f"HAPROXY_{name}_PORT": str(port) for name, port in zip(("HTTP", "GRPC", "METRICS"), ports, strict=True)},
    }
    check_configuration(file, variables, binary)
    command = [binary or program(), "-db", "-f", str(POLICY), "-f", str(file)]
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            wait_for_port(ports[0], process)
            yield Addresses(*(f"127.0.0.1:{port}" for port in ports), process.pid)
        finally:
            process.terminate()
            process.wait()


def servers_up(addresses: Addresses, protocol: str) -> set[str]:
    """The servers of a backend that HAProxy sends requests to."""
    connection = http.client.HTTPConnection(addresses.metrics_url, timeout=5)
    connection.request("GET", "/metrics")
    metrics = connection.getresponse().read().decode()
    connection.close()
    line = rf'^haproxy_server_status\{{proxy="{protocol}_servers",server="(\w+)",state="UP"\}} 1$'
    return set(re.findall(line, metrics, re.MULTILINE))


def _backend(protocol: str, servers: list[Addresses]) -> str:
    lines = []
    for number, server in enumerate(servers):
        address = server.grpc_url if protocol == "grpc" else server.http_url
        lines.append(f"    server server{number} {address} port {server.http_url.rpartition(':')[2]}")
    return BACKEND.format(protocol=protocol, servers="\n".join(lines))


def free_ports(number: int) -> list[int]:
    """`number` ports of 127.0.0.1 that follow each other and are free.

    They lie below those that the kernel hands out by itself, so that no connection and no other server takes them
    between this and their use.
    """
    handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    while True:
        first = random.randrange(10_000, handed_out - number)
        ports = list(range(first, first + number))
        try:
            with ExitStack() as held:
                for port in ports:
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return ports


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until HAProxy listens on `port` of 127.0.0.1."""
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
