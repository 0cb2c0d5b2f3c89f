"""HAProxy in front of several servers of this machine, with the project's configuration."""

from __future__ import annotations

import http.client
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.addresses import joined, to_call
from chattts_serving.launcher.options import ServerOptions
from chattts_serving.shipped import shipped

PROGRAM = "haproxy"
PLACES = "/usr/sbin:/usr/local/sbin"  # where packages put it, which is on the PATH of root alone
CONFIGURATION = "docker/haproxy/haproxy.cfg"
REQUESTS_OF_A_SERVER = 256  # at once, over one connection of a caller: as the configuration has it for one
METRICS_OF_A_SERVER = """
frontend {name}_metrics from common
    bind "${{HAPROXY_ADDRESS}}:{port}"
    default_backend {name}_metrics

backend {name}_metrics from common
    server {name} {address}
"""


@dataclass(frozen=True)
class Backend:
    """A server behind the balancer.

    Attributes:
        name: of letters, digits and `_`.
        options: where it listens.
        metrics_port: where the balancer hands its metrics on.
    """

    name: str
    options: ServerOptions
    metrics_port: int


def find_haproxy() -> str:
    """HAProxy's program.

    Raises:
        ConfigError: there is none.
    """
    found = shutil.which(PROGRAM, path=os.pathsep.join([os.environ.get("PATH", ""), PLACES]))
    if found is None:
        raise ConfigError(
            "several GPUs have a server each, behind HAProxy, which is not installed: on Debian and Ubuntu the package "
            "haproxy, 2.6 or newer; or choose one GPU (--gpus 1)"
        )
    return found


def servers_configuration(backends: Sequence[Backend]) -> str:
    """What HAProxy has to know of them besides CONFIGURATION."""
    parts = [f"global\n    tune.h2.max-concurrent-streams {REQUESTS_OF_A_SERVER * len(backends)}\n"]
    for protocol in ("grpc", "http"):
        lines = [
            f"    server {one.name} {one.options.endpoints[protocol]} port {one.options.http_port}\n"
            for one in backends
        ]
        parts.append(f"\nbackend {protocol}_servers from {protocol}-servers\n{''.join(lines)}")
    parts += [
        METRICS_OF_A_SERVER.format(name=one.name, port=one.metrics_port, address=one.options.endpoints["metrics"])
        for one in backends
    ]
    return "".join(parts)


def balancer_command(servers: Path) -> list[str]:
    """HAProxy in the foreground, with CONFIGURATION and the file `servers`.

    Raises:
        ConfigError: one of its files is not there.
    """
    return [find_haproxy(), "-db", "-f", str(shipped(CONFIGURATION)), "-f", str(servers)]


def balancer_environment(options: ServerOptions, own_metrics_port: int) -> Mapping[str, str]:
    """The variables of CONFIGURATION: where it listens, in place of the server that `options` describe."""
    return {
        "HAPROXY_ADDRESS": options.host,
        "HAPROXY_HTTP_PORT": str(options.http_port),
        "HAPROXY_GRPC_PORT": str(options.grpc_port),
        "HAPROXY_METRICS_PORT": str(own_metrics_port),
        "HAPROXY_LOG_LEVEL": "notice",  # which servers come and go, and not each request
    }


def is_ready(options: ServerOptions) -> bool:
    """Whether one of the servers takes requests, as the balancer has it."""
    address = joined(to_call(options.host), options.http_port)
    connection = http.client.HTTPConnection(address, timeout=1.0)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
