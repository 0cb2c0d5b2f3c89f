"""A server for each of several GPUs, behind one pair of addresses: `python -m chattts_serving.server --gpus all`.

Each server is a launcher of its own, which looks after its tritonserver as ever, with one GPU, the CPUs next to it, and
ports on the loopback. This process starts them, and HAProxy in front; starts anew, alone, what ended; and hands on the
signal to stop.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.addresses import LOOPBACK, joined
from chattts_serving.launcher.balancer import (
    Backend,
    balancer_command,
    balancer_environment,
    is_ready,
    servers_configuration,
)
from chattts_serving.launcher.child import Child, end_orphans
from chattts_serving.launcher.gpus import Gpu
from chattts_serving.launcher.options import ServerOptions
from chattts_serving.launcher.ports import bound, choose_ports, hold_ports
from chattts_serving.launcher.processes import adopt_orphans, end_with_parent
from chattts_serving.launcher.signals import Signals
from chattts_serving.launcher.supervisor import (
    EXIT_FAILED,
    FIRST_BACKOFF_S,
    MAX_RESTARTS,
    POLL_S,
    STEADY_S,
    STOP_TIMEOUT_S,
    open_log,
    say,
)
from chattts_serving.launcher.tritonserver import ROOT, check_repository, find_installation
from chattts_serving.launcher.warning import warn_of_the_network
from chattts_serving.triton.device import VISIBLE

MOST_BACKOFF_S = 60.0
BALANCER_STARTS_S = 30.0
BALANCER_STOPS_S = 2.0  # for the last bytes of answers
TLS_FLAG = "--grpc-use-ssl"  # of tritonserver
STOP_MARGIN_S = 10.0  # of a launcher, past what it gives open requests and tritonserver
# Lines that are no tritonserver's.
OF_A_LAUNCHER = re.compile(rb"\w+ \| (?:error|warning|loading|restart|ready again)\b")


@dataclass(frozen=True)
class Front:
    """What callers see.

    Attributes:
        options: of the fleet; its ports are chosen.
        metrics_ports: of the servers.
        own_metrics_port: of the balancer itself.
    """

    options: ServerOptions
    metrics_ports: list[int]
    own_metrics_port: int

    @property
    def ready_line(self) -> str:
        """That of a server, with the metrics of each."""
        metrics = ",".join(joined(self.options.host, port) for port in self.metrics_ports)
        endpoints = self.options.endpoints | {"metrics": metrics}
        return " ".join(["ready", *(f"{name}={address}" for name, address in endpoints.items())])


class Fleet:
    """Several servers and the balancer."""

    def __init__(self, servers: Sequence[Child], balancer: Child, answers: Callable[[], bool], ready_line: str) -> None:
        """Nothing is started yet; `answers` says whether the balancer has a server that is ready."""
        self._servers, self._balancer = list(servers), balancer
        self._everybody = [*servers, balancer]
        self._answers, self._ready_line = answers, ready_line
        self._signals = Signals()

    def run(self, stop_timeout_s: float) -> int:
        """Serve until stopped; the exit status for the shell. Servers have `stop_timeout_s` to end."""
        with self._signals:
            try:
                if self._start():
                    self._watch()
                return 0 if self._signals.count else EXIT_FAILED
            finally:
                self._stop(stop_timeout_s)

    def _start(self) -> bool:
        """Whether all got ready: what is wrong from the start stays wrong."""
        for server in self._servers:
            server.start()
        if not self._wait_for(lambda: all(server.is_ready for server in self._servers)):
            return False
        self._balancer.start()
        end, answers = time.monotonic() + BALANCER_STARTS_S, False

        def is_over() -> bool:
            nonlocal answers
            answers = self._answers()
            return answers or time.monotonic() > end

        if not self._wait_for(is_over):
            return False
        if not answers:
            say(f"error: {self._balancer.name} finds no server ready after {BALANCER_STARTS_S:.0f} s")
            return False
        print(self._ready_line, flush=True)
        return True

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition` came true before a signal, or the end of anybody."""
        while not condition():
            for child in self._everybody:
                if child.exit_status is not None:
                    say(f"error: {child.name} ended with status {child.exit_status} before all were ready")
                    return False
            if self._signals.count:
                return False
            Child.pump(self._everybody, POLL_S)
        return True

    def _watch(self) -> None:
        """Stay until a signal, or until nothing works any more."""
        while not self._signals.count:
            Child.pump(self._everybody, POLL_S)
            for child in self._everybody:
                self._tend(child)
            if self._is_hopeless(self._servers) or self._is_hopeless([self._balancer]):
                say(f"error: failed again after {MAX_RESTARTS} restarts; giving up")
                return

    @staticmethod
    def _is_hopeless(children: Sequence[Child]) -> bool:
        return all(one.exit_status is not None and one.restarts > MAX_RESTARTS for one in children)

    def _tend(self, child: Child) -> None:
        """Start `child` anew where it ended and its pause is over."""
        now = time.monotonic()
        if child.exit_status is None:
            return
        if child.due is None:
            child.restarts = 1 if now - child.started > STEADY_S else child.restarts + 1
            pause_s = min(MOST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (child.restarts - 1))
            child.due = now + pause_s
            say(f"error: {child.name} ended with status {child.exit_status}; it is started anew in {pause_s:.0f} s")
        elif now >= child.due:
            end_orphans(one.pid for one in self._everybody)
            child.start()

    def _stop(self, timeout_s: float) -> None:
        """Let the servers end by themselves, and then the balancer, through which their last answers go."""
        if self._signals.count:
            say(f"{self._signals.name} received: stopping all servers")
        told, end = 0, time.monotonic() + timeout_s
        while any(one.pid and one.exit_status is None for one in self._servers) and time.monotonic() < end:
            if told < max(1, self._signals.count):  # a second signal does not let open requests end: theirs to know
                told += 1
                for server in self._servers:
                    server.terminate()
            Child.pump(self._everybody, POLL_S)
        self._balancer.terminate()
        end = time.monotonic() + BALANCER_STOPS_S
        while self._balancer.pid and self._balancer.exit_status is None and time.monotonic() < end:
            Child.pump(self._everybody, POLL_S)
        for child in self._everybody:
            child.kill()
        end_orphans([])


def serve_each(options: ServerOptions, gpus: Sequence[Gpu]) -> int:
    """A server on each of `gpus`, behind the addresses of `options`; the exit status for the shell.

    The metrics of the first server are on the port for metrics, those of the others on the ports after it, and the
    balancer's own on the port after those.

    Raises:
        ConfigError: something is missing or taken; nothing was started.
    """
    if options.local_http:
        raise ConfigError("--local-http is of one server; several GPUs have a balancer on --host: leave it out")
    if any(flag.startswith(TLS_FLAG) for flag in options.flags):
        raise ConfigError(f"{TLS_FLAG} is of one server; the balancer of several GPUs speaks no TLS: put it in front")
    if options.exit_with_parent:
        end_with_parent()
    adopt_orphans()
    installation = find_installation()
    check_repository(options.model_repository)
    with ExitStack() as stack:
        front = _choose_front(options, len(gpus), stack)
        warn_of_the_network(installation, front.options.host)
        write = _writer(options, stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chattts_fleet_")))
        backends = [
            Backend(gpu.name, _behind(options, stack), port)
            for gpu, port in zip(gpus, front.metrics_ports, strict=True)
        ]
        configuration = folder / "servers.cfg"
        configuration.write_text(servers_configuration(backends), encoding="utf-8")
        env = os.environ | balancer_environment(front.options, front.own_metrics_port)
        balancer = Child("balancer", balancer_command(configuration), env, write, ending=signal.SIGUSR1)
        servers = [_server(gpu, backend, write) for gpu, backend in zip(gpus, backends, strict=True)]
        own = joined(front.options.host, front.own_metrics_port)
        say(f"a server for each of {', '.join(gpu.name for gpu in gpus)}; the balancer's own metrics are on {own}")
        fleet = Fleet(servers, balancer, lambda: is_ready(front.options), front.ready_line)
        return fleet.run(options.drain_timeout_s + STOP_TIMEOUT_S + STOP_MARGIN_S)


def _choose_front(options: ServerOptions, number: int, stack: ExitStack) -> Front:
    first = options.metrics_port
    options = choose_ports(options)
    hold_ports(options, stack)
    wanted = [first + place if first else 0 for place in range(1, number + 1)]
    further = [stack.enter_context(bound(options.host, port, "--metrics-port")) for port in wanted]
    *ports, own = options.metrics_port, *(one.getsockname()[1] for one in further)
    return Front(options, ports, own)


def _behind(options: ServerOptions, stack: ExitStack) -> ServerOptions:
    """What the launcher of one server gets."""
    any_port = replace(options, host=LOOPBACK, http_port=0, grpc_port=0, metrics_port=0)
    behind = choose_ports(replace(any_port, gpus="", log_file=None, exit_with_parent=True))
    hold_ports(behind, stack)
    return behind


def _server(gpu: Gpu, backend: Backend, write: Callable[[bytes], object]) -> Child:
    search_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "chattts_serving.server", *backend.options.arguments()]
    env = os.environ | {"PYTHONPATH": search_path, VISIBLE: gpu.visible}
    return Child(gpu.name, command, env, write, cpus=gpu.cpus)


def _writer(options: ServerOptions, stack: ExitStack) -> Callable[[bytes], object]:
    """Where lines of all go: to the log; where that is a file, those of launchers to stderr, too."""
    log = open_log(options.log_file, stack)

    def write(line: bytes) -> None:
        log(line)
        if options.log_file is not None and OF_A_LAUNCHER.match(line):
            os.write(sys.stderr.fileno(), line)

    return write
