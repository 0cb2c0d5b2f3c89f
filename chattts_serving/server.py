"""Runs tritonserver in the foreground: `python -m chattts_serving.server --model-repository DIR`.

Checks all that can be checked before it starts anything, waits until the server is ready, prints one line on stdout,
and stays until it is told to stop. Behind it no process and no shared memory stays.

`running_server` does the same for the length of a `with` block.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from chattts_serving.draining import Drain
from chattts_serving.errors import ConfigError, shown
from chattts_serving.probe import check
from chattts_serving.supervisor import (
    SHARED_MEMORY,
    Supervision,
    Supervisor,
    TritonProcess,
    adopt_orphans,
    child_processes,
    end_with_parent,
    say,
)
from chattts_serving.triton_io import CALLS_AT_ONCE, LOG_VARIABLE
from chattts_serving.tritonserver import (
    ROOT,
    check_repository,
    environment,
    find_installation,
    has_onnx_backend,
    lay_out_backends,
)

LOOPBACK = "127.0.0.1"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104
EXIT_CONFIG = 2  # nothing was started
EXIT_TIMEOUT_S = 5  # that tritonserver takes to end, within supervisor.STOP_TIMEOUT_S
PROBED_MODELS = {"text_frontend", "gpt_decoder", "speech", "chattts_stream"}  # that chattts_serving.probe asks
# Per process of a Python model, taken from /dev/shm at the start and where an answer is longer (measured).
SHM_DEFAULT_BYTES = 16 * 2**20  # two sentences of 2,048 hidden states of 768 float32
SHM_GROWTH_BYTES = 16 * 2**20
LOW_SHM_BYTES = 256 * 2**20  # a process that finds no more is killed without a word
MOST_SECONDS = 86400.0  # of a time that a flag sets
PORT_OPTIONS = {"http_port": "--http-port", "grpc_port": "--grpc-port", "metrics_port": "--metrics-port"}
SECONDS_OPTIONS = {
    "start_timeout_s": "how long loading may take",
    "hang_timeout_s": "restart a server that gives no good answer for so long; 0: never",
    "drain_timeout_s": "how long open requests may take to end when the server is stopped",
}
OWN_FLAGS = {  # of tritonserver, set here
    *("--model-repository", "--model-store", "--model-control-mode", "--backend-directory", "--exit-timeout-secs"),
    *("--allow-http", "--http-address", "--grpc-address", "--metrics-address"),
    *PORT_OPTIONS.values(),
}
NO_METRICS = "--allow-metrics=false"  # of tritonserver
# Endpoints for whoever runs the server, not for whoever calls its models: they read and write any POSIX shared memory
# (that of the Python models, too), write files, and change the log.
RESTRICTED_APIS = "shared-memory,model-repository,trace,logging"
RESTRICTING_FLAGS = ("--http-restricted-api", "--grpc-restricted-protocol")


@dataclass(frozen=True)
class ServerOptions:
    """What to serve and where.

    Attributes:
        model_repository: folder of models, as `python -m export` writes it.
        host: IPv4 address or name that all three services bind to.
        http_port, grpc_port, metrics_port: 0 takes a free one.
        log_file: file that tritonserver's log is appended to; None sends it to stderr.
        start_timeout_s: how long loading the models may take.
        hang_timeout_s: seconds without a good answer after which the server is started anew; 0: never.
        drain_timeout_s: seconds that open requests have to end when the server is to stop.
        log_requests: have the models log a line for each request.
        exit_with_parent: stop when the process that started this one ends.
        flags: further flags for tritonserver.

    Raises:
        ConfigError: a port, a time or a flag is out of its range.
    """

    model_repository: Path = Path("model_repository")
    host: str = LOOPBACK
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    log_file: Path | None = None
    start_timeout_s: float = 600.0
    hang_timeout_s: float = 60.0
    drain_timeout_s: float = 5.0
    log_requests: bool = False
    exit_with_parent: bool = False
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check ports, times and flags."""
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
        for flag in self.flags:
            if not flag.startswith("-"):
                raise ConfigError(f"{shown(flag)} is no flag; those for tritonserver are written --NAME=VALUE")
            if flag.split("=", maxsplit=1)[0] in OWN_FLAGS:
                raise ConfigError(f"{flag} cannot be passed on to tritonserver: it is set here (see --help)")

    @property
    def endpoints(self) -> dict[str, str]:
        """The addresses "HOST:PORT" of http, grpc and metrics."""
        return {option.split("-")[2]: f"{self.host}:{getattr(self, name)}" for name, option in PORT_OPTIONS.items()}


def parse_arguments(arguments: Sequence[str] | None = None) -> ServerOptions:
    """The options of a command line; what is not known goes to tritonserver, as does all after `--`.

    Raises:
        ConfigError: a value is out of its range.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chattts_serving.server",
        description="Run tritonserver in the foreground.",
        epilog="Further flags, or all after --, go to tritonserver (for example --log-verbose=1). Its endpoints for "
        f"{RESTRICTED_APIS.replace(',', ', ')} are closed; {' and '.join(RESTRICTING_FLAGS)} say otherwise.",
        allow_abbrev=False,  # an unknown flag is tritonserver's, not a shorter name of one of these
    )
    default = ServerOptions()
    parser.add_argument("--model-repository", type=Path, default=default.model_repository, metavar="DIR")
    parser.add_argument("--host", default=default.host, help=f"address to bind (default {default.host})")
    for name, option in PORT_OPTIONS.items():
        port = getattr(default, name)
        parser.add_argument(option, type=int, default=port, metavar="N", help=f"default {port}; 0: a free one")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append tritonserver's log here, not to stderr")
    for name, help_text in SECONDS_OPTIONS.items():
        seconds = getattr(default, name)
        parser.add_argument(
            f"--{name.removesuffix('_s').replace('_', '-')}",
            dest=name,
            type=float,
            default=seconds,
            metavar="SECONDS",
            help=f"{help_text} (default {seconds:.0f})",
        )
    parser.add_argument("--log-requests", action="store_true", help="log a line of JSON for each request")
    parser.add_argument("--exit-with-parent", action="store_true", help="stop when the process that started this ends")
    known, further = parser.parse_known_args(arguments)
    return ServerOptions(**vars(known), flags=tuple(flag for flag in further if flag != "--"))


def choose_ports(options: ServerOptions) -> ServerOptions:
    """`options` with a free port in place of each 0.

    Raises:
        ConfigError: a port is taken, or `host` cannot be bound.
    """
    try:
        address = socket.gethostbyname(options.host)  # IPv4, which tritonserver's three services write alike
    except OSError as error:
        raise ConfigError(f"--host is {options.host}, which is no IPv4 address and no known name") from error
    with ExitStack() as held:  # all three at once, so that none is chosen twice
        ports = [
            held.enter_context(_bound(address, getattr(options, name), option, listening=True)).getsockname()[1]
            for name, option in PORT_OPTIONS.items()
        ]
    return replace(options, http_port=ports[0], grpc_port=ports[1], metrics_port=ports[2])


def hold_ports(options: ServerOptions, held: ExitStack) -> None:
    """Keep the ports while `held` is open: tritonserver gets them, and nobody to whom any port is right.

    Else one may be gone when the models are loaded, or after a restart (seen on a busy machine).
    """
    for name, option in PORT_OPTIONS.items():
        held.enter_context(_bound(socket.gethostbyname(options.host), getattr(options, name), option))


def _bound(address: str, port: int, option: str, *, listening: bool = False) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # As tritonserver has it: connections of a server that has ended do not count, nor do sockets that only have a port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
        if listening:
            listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} on {address} cannot be used ({error.strerror}): choose another {option}, or 0 for a free one"
        ) from error
    return listener


def has_gpu() -> bool:
    """Whether an NVIDIA device is there; without one Triton's GPU metrics only fill the log with warnings."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/dxg").exists()


def tritonserver_flags(options: ServerOptions, models: Path, backends: Path, shm_prefixes: dict[str, str]) -> list[str]:
    """The flags of tritonserver; `shm_prefixes` has how the shared memory of each Python-based backend is named."""
    flags = [
        f"--model-repository={models}",
        f"--backend-directory={backends}",
        "--model-control-mode=none",  # no model ends before the server does: see supervisor.py
        "--exit-on-error=true",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--http-address={options.host}",
        f"--grpc-address={options.host}",
        f"--metrics-address={options.host}",
        *(f"{option}={getattr(options, name)}" for name, option in PORT_OPTIONS.items()),
        f"--allow-gpu-metrics={str(has_gpu()).lower()}",
        # By default Triton keeps eight whole answers and eight chunks for reuse, each as large as its largest was.
        "--grpc-infer-allocation-pool-size=0",
    ]
    for backend, prefix in shm_prefixes.items():
        flags += [
            f"--backend-config={backend},shm-region-prefix-name={prefix}",
            f"--backend-config={backend},shm-default-byte-size={SHM_DEFAULT_BYTES}",
            f"--backend-config={backend},shm-growth-byte-size={SHM_GROWTH_BYTES}",
            f"--backend-config={backend},thread-pool-size={CALLS_AT_ONCE}",
        ]
    given = {flag.split("=", maxsplit=1)[0] for flag in options.flags}
    # Restricted to callers that send this header with a value that nobody is told. The syntax is that of Triton 2.51's
    # parser; its --help has another.
    restriction = f"{RESTRICTED_APIS}:restricted-key={secrets.token_hex(16)}"
    flags += [f"{flag}={restriction}" for flag in RESTRICTING_FLAGS if flag not in given]
    return [*flags, *options.flags]  # last, so that they win


def serve(options: ServerOptions) -> int:
    """Check, start, wait, supervise; the exit status for the shell.

    Raises:
        ConfigError: something is missing or taken; nothing was started.
    """
    if options.exit_with_parent:
        end_with_parent()
    adopt_orphans()
    installation = find_installation()
    models = check_repository(options.model_repository)
    options = choose_ports(options)
    _warn_of_little_shared_memory()
    with ExitStack() as stack:
        hold_ports(options, stack)
        log = _open_log(options, stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chattts_server_")))
        shm_prefix = f"chattts_{os.getpid()}_{secrets.token_hex(8)}_"  # no name that a caller could guess
        python_based = ["python"] if has_onnx_backend(installation) else ["python", "onnxruntime"]
        flags = tritonserver_flags(
            options,
            _shell_safe(options.model_repository.resolve(), folder),
            lay_out_backends(installation, folder / "backends"),
            {backend: f"{shm_prefix}{backend}_" for backend in python_based},
        )
        command = [str(installation.binary), *flags]
        host = LOOPBACK if options.host == ANY_ADDRESS else options.host
        drain = Drain(folder / "drain", options.drain_timeout_s, (host, options.metrics_port))
        env = {**environment(installation, folder / "lib"), **drain.environment()}
        if options.log_requests:
            env[LOG_VARIABLE] = "1"

        def start() -> TritonProcess:
            # In the checkout: Python models have their working directory first on their path, for chattts_serving.
            return TritonProcess(command, env, ROOT, shm_prefix, log)

        supervision = Supervision(
            health=(host, options.http_port),
            metrics=None if NO_METRICS in options.flags else drain.metrics,
            ready_line=" ".join(["ready", *(f"{name}={url}" for name, url in options.endpoints.items())]),
            num_models=len(models),
            start_timeout_s=options.start_timeout_s,
            repeat_complaints=options.log_file is not None,
            ask=partial(check, f"{host}:{options.http_port}"),
            hang_timeout_s=options.hang_timeout_s if set(models) >= PROBED_MODELS else 0.0,
            drain=drain,
        )
        return Supervisor(start, supervision).run()


def _warn_of_little_shared_memory() -> None:
    space = os.statvfs(SHARED_MEMORY)
    free = space.f_bavail * space.f_frsize
    if free < LOW_SHM_BYTES:
        say(
            f"warning: {SHARED_MEMORY} has {free // 2**20} MiB free, and Python models that fill it are killed: "
            "in a container raise it (docker run --shm-size=1g)"
        )


def _open_log(options: ServerOptions, stack: ExitStack) -> Callable[[bytes], object]:
    if options.log_file is None:
        return lambda text: os.write(sys.stderr.fileno(), text)
    try:
        return stack.enter_context(options.log_file.open("ab", buffering=0)).write
    except OSError as error:
        raise ConfigError(f"--log-file is {options.log_file}, which cannot be written: {error.strerror}") from error


def _shell_safe(repository: Path, folder: Path) -> Path:
    """`repository`, or a link to it in `folder`: the Python backend hands the path to a shell without quotes."""
    if re.fullmatch(r"[\w./+@%=:,-]+", str(repository), re.ASCII):
        return repository
    link = folder / "models"
    link.symlink_to(repository)
    return link


@dataclass(frozen=True)
class RunningServer:
    """A server that `running_server` started; addresses are "HOST:PORT", as tritonclient takes them."""

    http_url: str
    grpc_url: str
    metrics_url: str
    log_path: Path
    launcher: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Process id of tritonserver, the only child of the launcher that leads a process group.

        Raises:
            ConfigError: it is not running.
        """
        for pid in child_processes(self.launcher.pid):
            with suppress(ProcessLookupError):  # it ended meanwhile
                if os.getpgid(pid) == pid:
                    return pid
        raise ConfigError(f"tritonserver is not running; its log is {self.log_path}")

    def stop(self) -> int:
        """Stop the server and wait for its end; the launcher's exit status."""
        if self.launcher.poll() is None:
            self.launcher.send_signal(signal.SIGTERM)
        return self.launcher.wait()


@contextmanager
def running_server(
    model_repository: Path,
    *,
    log_path: Path,
    flags: Sequence[str] = (),
    launcher_flags: Sequence[str] = (),
    start_timeout_s: float = 600.0,
) -> Iterator[RunningServer]:
    """A server on free ports of 127.0.0.1 for the length of the block; it ends with the calling thread, too.

    Args:
        model_repository: folder of models, as `python -m export` writes it.
        log_path: file that tritonserver's log is appended to; progress goes to stderr.
        flags: further flags for tritonserver.
        launcher_flags: further flags for the launcher.
        start_timeout_s: how long loading the models may take.

    Raises:
        ConfigError: something is missing, or the server did not get ready.
    """
    find_installation()  # both again in the launcher, but here the error has its type
    check_repository(model_repository)
    command = [sys.executable, "-m", "chattts_serving.server", f"--model-repository={model_repository}"]
    command += [f"{option}=0" for option in PORT_OPTIONS.values()]
    command += [f"--log-file={log_path}", f"--start-timeout={start_timeout_s}", "--exit-with-parent"]
    command += [*launcher_flags, "--", *flags]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as launcher:  # noqa: S603
        try:
            line = launcher.stdout.readline() if launcher.stdout else ""
            ready = re.fullmatch(r"ready http=(\S+) grpc=(\S+) metrics=(\S+)\n", line)
            if not ready:
                raise ConfigError(f"the server did not start (exit status {launcher.wait()}); its log is {log_path}")
            yield RunningServer(ready[1], ready[2], ready[3], log_path, launcher)
        finally:
            if launcher.poll() is None:
                launcher.send_signal(signal.SIGTERM)
            launcher.wait()  # here, as Popen's own exit does not wait after Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status: 0 stopped, 1 the server failed, 2 nothing was started."""
    try:
        return serve(parse_arguments(arguments))
    except ConfigError as error:
        say(f"error: {error}")
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
