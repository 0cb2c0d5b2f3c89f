"""What to serve and where: the launcher's command line, checked once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from chattts_serving.errors import ConfigError, shown
from chattts_serving.launcher.addresses import LOOPBACK, joined
from chattts_serving.launcher.gpus import ALLOWED, check_gpus

MOST_SECONDS = 86400.0  # of a time that a flag sets
PORT_OPTIONS = {"http_port": "--http-port", "grpc_port": "--grpc-port", "metrics_port": "--metrics-port"}
SECONDS_OPTIONS = {
    "start_timeout_s": "how long loading may take",
    "hang_timeout_s": "restart a server that gives no good answer for so long; 0: never",
    "drain_timeout_s": "how long open requests may take to end when the server is stopped",
}
SWITCHES = ("local_http", "log_requests", "exit_with_parent")
OWN_FLAGS = {  # of tritonserver, set here
    *("--model-repository", "--model-store", "--model-control-mode", "--backend-directory", "--exit-timeout-secs"),
    *("--allow-http", "--http-address", "--grpc-address", "--metrics-address"),
    *PORT_OPTIONS.values(),
}
# Endpoints for whoever runs the server, not for whoever calls its models: they read and write any POSIX shared memory
# (that of the Python models, too), write files, and change the log.
RESTRICTED_APIS = "shared-memory,model-repository,trace,logging"
RESTRICTING_FLAGS = ("--http-restricted-api", "--grpc-restricted-protocol")


@dataclass(frozen=True)
class ServerOptions:
    """What to serve and where.

    Attributes:
        model_repository: folder of models, as `python -m export` writes it.
        host: address or name that all three services bind to.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        gpus: which get a server each, as `choose_gpus` takes it; "" is one server, on the first where there is any.
        local_http: bind HTTP to the loopback whatever `host` is; launcher and probe ask their questions there.
        log_file: file that tritonserver's log is appended to; None sends it to stderr.
        start_timeout_s: how long loading the models may take.
        hang_timeout_s: seconds without a good answer after which the server is started anew; 0: never.
        drain_timeout_s: seconds that open requests have to end when the server is to stop.
        lexicon: file of words and how to say them; None for none.
        log_requests: have the models log a line for each request.
        exit_with_parent: stop when the process that started this one ends.
        flags: further flags for tritonserver.

    Raises:
        ConfigError: a port, a time, a flag or what is said of GPUs is out of its range.
    """

    model_repository: Path = Path("model_repository")
    host: str = LOOPBACK
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    gpus: str = ""
    local_http: bool = False
    log_file: Path | None = None
    start_timeout_s: float = 600.0
    hang_timeout_s: float = 60.0
    drain_timeout_s: float = 5.0
    lexicon: Path | None = None
    log_requests: bool = False
    exit_with_parent: bool = False
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ports, times and flags."""
        check_gpus(self.gpus)
        ports = [getattr(self, name) for name in PORT_OPTIONS]
        for option, port in zip(PORT_OPTIONS.values(), ports, strict=True):
            if not 0 <= port <= 65535:
                raise ConfigError(f"{option} is {port}; allowed is 0 (a free port) to 65535")
        fixed = [port for port in ports if port]
        if len(set(fixed)) < len(fixed):
            raise ConfigError(f"{', '.join(PORT_OPTIONS.values())} are {ports}; they must differ")
        for option, seconds in (("--hang-timeout", self.hang_timeout_s), ("--drain-timeout", self.drain_timeout_s)):
            if not 0 <= seconds <= MOST_SECONDS:
                raise ConfigError(f"{option} is {seconds:g}; allowed is 0 to {MOST_SECONDS:g} seconds")
        if self.lexicon is not None and not os.access(self.lexicon, os.R_OK):
            raise ConfigError(f"--lexicon is {self.lexicon}; allowed is a file that this user may read")
        for flag in self.flags:
            if not flag.startswith("-"):
                raise ConfigError(f"{shown(flag)} is no flag; those for tritonserver are written --NAME=VALUE")
            if flag.split("=", maxsplit=1)[0] in OWN_FLAGS:
                raise ConfigError(f"{flag} cannot be passed on to tritonserver: it is set here (see --help)")

    @property
    def http_host(self) -> str:
        """What HTTP binds to."""
        return LOOPBACK if self.local_http else self.host

    def host_of(self, port: str) -> str:
        """What the service of `port` binds to; "http_port", "grpc_port" or "metrics_port"."""
        return self.http_host if port == "http_port" else self.host

    def arguments(self) -> list[str]:
        """The command line that `parse_arguments` makes this of."""
        names = (*PORT_OPTIONS, *SECONDS_OPTIONS, "model_repository", "host", "gpus", "log_file", "lexicon")
        values = {name.removesuffix("_s"): getattr(self, name) for name in names}
        switches = [name for name in SWITCHES if getattr(self, name)]
        return [
            *(f"{_option(name)}={value}" for name, value in values.items() if value not in (None, "")),
            *map(_option, switches),
            *(f"--triton-flag={flag}" for flag in self.flags),
        ]

    @property
    def endpoints(self) -> dict[str, str]:
        """The addresses "HOST:PORT" of http, grpc and metrics."""
        return {
            option.split("-")[2]: joined(self.host_of(name), getattr(self, name))
            for name, option in PORT_OPTIONS.items()
        }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def parse_arguments(arguments: Sequence[str] | None = None) -> ServerOptions:
    """The options of a command line; what is not known goes to tritonserver, as does all after `--`.

    Raises:
        ConfigError: a value is out of its range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chattts_serving.server",
        description="Run tritonserver in the foreground.",
        epilog="Further flags, all after --, and each --triton-flag go to tritonserver (for example --log-verbose=1). "
        f"Its endpoints for {RESTRICTED_APIS.replace(',', ', ')} are closed; "
        f"{' and '.join(RESTRICTING_FLAGS)} say otherwise.",
        allow_abbrev=False,  # an unknown flag is tritonserver's, not a shorter name of one of these
    )
    parser.add_argument("--version", action="version", version=f"chattts-triton {version('chattts-triton')}")
    default = ServerOptions()
    parser.add_argument("--model-repository", type=Path, default=default.model_repository, metavar="DIR")
    parser.add_argument("--host", default=default.host, help=f"address or name to bind (default {default.host})")
    for name, option in PORT_OPTIONS.items():
        port = getattr(default, name)
        parser.add_argument(option, type=int, default=port, metavar="N", help=f"default {port}; 0: a free one")
    parser.add_argument(
        "--gpus",
        default=default.gpus,
        metavar="WHICH",
        help=f"a server for each behind a balancer: {ALLOWED}; without it one server, on the first",
    )
    parser.add_argument("--local-http", action="store_true", help=f"HTTP on {LOOPBACK} alone, for launcher and probe")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append tritonserver's log here, not to stderr")
    for name, help_text in SECONDS_OPTIONS.items():
        seconds = getattr(default, name)
        parser.add_argument(
            _option(name.removesuffix("_s")),
            dest=name,
            type=float,
            default=seconds,
            metavar="SECONDS",
            help=f"{help_text} (default {seconds:.0f})",
        )
    parser.add_argument(
        "--triton-flag", action="append", default=[], metavar="FLAG", help="--triton-flag=--NAME=VALUE, again and again"
    )
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="words and how to say them, as a JSON object")
    parser.add_argument("--log-requests", action="store_true", help="log a line of JSON for each request")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when the process that started this ends")
    known, further = parser.parse_known_args(arguments)
    values = vars(known)
    flags = *values.pop("triton_flag"), *(flag for flag in further if flag != "--")
    return ServerOptions(**values, flags=flags)
