"""Runs tritonserver as a child: its log, its end, its shared memory, and a new start where one is due.

A Python model runs in a process of its own, a "stub". Triton never starts one anew: requests of one that died hang, and
later ones fail. Up to 25.11 it does not notice, and goes on saying that server and model are ready; later versions say
that the model is not, and from about 26.07 on that the server is not. So `Supervisor` looks after the stubs, and starts
the whole server anew when one died, when tritonserver itself died, and when it does not answer any more.

One thread does everything: it waits on the log's pipe for POLL_S at a time and looks at the rest in between.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import IO

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.draining import Drain
from chattts_serving.launcher.limits import MemoryLimit
from chattts_serving.launcher.processes import UNKNOWN, child_processes, end_with_parent, model_of, state_and_parent
from chattts_serving.launcher.signals import Signals
from chattts_serving.launcher.watchdog import Watchdog

EXIT_FAILED = 1  # the server never got ready, or was not to be kept running
POLL_S = 0.2
STUB_CHECK_S = 0.5
LOADING_CHECK_S = 2.0  # likewise while models load
PROGRESS_S = 5.0  # between two progress lines while nothing changes
STOP_TIMEOUT_S = 7.0  # from SIGTERM to SIGKILL
ABORT_TIMEOUT_S = 1.0  # likewise, of a server that cannot answer any more: some callers still get an error
MAX_RESTARTS = 5
FIRST_BACKOFF_S = 1.0  # doubles with each restart
STEADY_S = 600.0  # a server that ran this long has its restarts forgiven
MAX_COMPLAINTS = 20  # lines of the log shown when tritonserver failed
INFORMATION = re.compile(rb"I\d{4} |[|+]|\s*$")  # a log line of level INFO, a table, nothing
# POSIX shared memory: the Python backend keeps its tensors there.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108


def say(message: str) -> None:
    """One message to the user: stderr, as stdout has the ready line only."""
    print(message, file=sys.stderr, flush=True)


def open_log(file: Path | None, stack: ExitStack) -> Callable[[bytes], object]:
    """What appends to `file`, or where there is none to stderr; `stack` closes it.

    Raises:
        ConfigError: it cannot be written.
    """
    if file is None:
        return lambda text: os.write(sys.stderr.fileno(), text)
    try:
        return stack.enter_context(file.open("ab", buffering=0)).write
    except OSError as error:
        raise ConfigError(f"--log-file is {file}, which cannot be written: {error.strerror}") from error


class TritonProcess:
    """One run of tritonserver, in a process group of its own.

    Nothing reads its log in the background: the owner calls `pump` often, else the server blocks on a full pipe.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        shm_prefix: str,
        log: Callable[[bytes], object],
    ) -> None:
        """Start `command` in `folder`; its log goes to `log`, names of its shared memory begin with `shm_prefix`."""
        self.num_loaded = 0  # models, as the log says
        self.complaints: deque[str] = deque(maxlen=MAX_COMPLAINTS)  # the log's last lines that are no information
        self._shm_prefix = shm_prefix
        self._log = log
        self._partial = b""  # the log's last line as far as it came: `log` gets whole ones, between which others fit
        self._stubs: dict[int, str] = {}  # process ids of Python models, and the models' names
        self._process = subprocess.Popen(  # noqa: S603
            command,
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Runs Python between fork and exec, which is safe in a process of one thread.
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        self._pipe: IO[bytes] | None = self._process.stdout

    @property
    def pid(self) -> int:
        """Process id of tritonserver, and of its process group."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """What tritonserver exited with (minus the signal's number); None while it runs."""
        return self._process.poll()

    def pump(self, timeout_s: float) -> None:
        """Pass new lines of the log on; waits up to `timeout_s` for some."""
        if self._pipe is None:
            time.sleep(timeout_s)
            return
        if not select.select([self._pipe], [], [], timeout_s)[0]:
            return
        text = os.read(self._pipe.fileno(), 65536)
        *lines, self._partial = (self._partial + text).split(b"\n")
        if not text:
            self._pipe.close()
            self._pipe = None
            lines, self._partial = [self._partial] if self._partial else [], b""
        if lines:
            with suppress(OSError):  # a full disk or a closed terminal does not end the service
                self._log(b"\n".join([*lines, b""]))
        self.num_loaded += sum(b"successfully loaded '" in line for line in lines)
        self.complaints.extend(line.decode(errors="replace") for line in lines if not INFORMATION.match(line))

    def remember_stubs(self) -> None:
        """Note the processes of the Python models that there are now."""
        children = child_processes(self.pid)
        models = {pid: self._stubs.get(pid) or model_of(pid) for pid in children}
        self._stubs = {pid: model or UNKNOWN for pid, model in models.items() if model or children[pid] == "Z"}

    def dead_stubs(self) -> dict[int, str]:
        """Those of them that have ended: process ids, and the names of their models.

        One may be gone at once: asked whether a model is ready, Triton waits for its dead (from 25.12 on).
        """
        states = {pid: state_and_parent(pid) for pid in self._stubs}
        return {pid: self._stubs[pid] for pid, state in states.items() if state[0] == "Z" or state[1] != self.pid}

    def stop(self, timeout_s: float) -> None:
        """End the server and all it started, and give back its shared memory.

        It gets `timeout_s` seconds to end by itself; at most 2 s more pass.
        """
        deadline = time.monotonic() + timeout_s
        self._process.terminate()
        while self.exit_status is None and time.monotonic() < deadline:
            self.pump(POLL_S)
        self._kill_group()
        while self._pipe is not None and select.select([self._pipe], [], [], 0)[0]:
            self.pump(0)
        for segment in SHARED_MEMORY.glob(f"{self._shm_prefix}*"):
            segment.unlink(missing_ok=True)

    def _kill_group(self) -> None:
        """SIGKILL to every process of the group, until none is left."""
        deadline = time.monotonic() + 2.0
        with suppress(ProcessLookupError):  # that is the end
            while time.monotonic() < deadline:
                os.killpg(self.pid, signal.SIGKILL)
                if self.exit_status is not None:
                    with suppress(ChildProcessError):
                        os.waitpid(-self.pid, os.WNOHANG)  # an adopted orphan
                time.sleep(0.02)


class Ending(Enum):
    """Why one run of the server ended."""

    STOPPED = auto()  # by a signal to the launcher
    EXITED = auto()
    TIMED_OUT = auto()  # did not get ready
    STUB_DIED = auto()
    HANGS = auto()


@dataclass(frozen=True)
class Supervision:
    """What `Supervisor` must know of the server.

    Attributes:
        health: address and port of its HTTP service.
        metrics: those of its metrics, which start last; None where it has none.
        ready_line: printed on stdout once, when it is ready first.
        num_models: that it loads.
        start_timeout_s: how long that may take.
        repeat_complaints: tell what the log complains of when the server fails (the user does not see the log).
        ask: as `Watchdog` takes it.
        hang_timeout_s: seconds without a good answer after which the server is started anew; 0: never.
        drain: how it ends.
        memory: tells whether it ended for want of it.
    """

    health: tuple[str, int]
    metrics: tuple[str, int] | None
    ready_line: str
    num_models: int
    start_timeout_s: float
    repeat_complaints: bool
    ask: Callable[[float], None]
    hang_timeout_s: float
    drain: Drain
    memory: MemoryLimit


class Supervisor:
    """Keeps tritonserver running until SIGINT, SIGTERM or SIGHUP; a second one does not let open requests end."""

    def __init__(self, start: Callable[[], TritonProcess], supervision: Supervision) -> None:
        """`start` starts one run of the server."""
        self._start = start
        self._supervision = supervision
        self._signals = Signals()
        self._announced = False  # the server was ready once
        self._is_serving = False  # this run of it was

    def run(self) -> int:
        """Serve until stopped; the exit status for the shell."""
        with self._signals:
            return self._run()

    def _run(self) -> int:
        restarts = 0
        while True:
            started = time.monotonic()
            if self._run_once() is Ending.STOPPED:
                return 0
            if not self._announced:  # what is wrong from the start stays wrong
                return EXIT_FAILED
            restarts = 1 if time.monotonic() - started > STEADY_S else restarts + 1
            if restarts > MAX_RESTARTS:
                say(f"error: the server failed again after {MAX_RESTARTS} restarts; giving up")
                return EXIT_FAILED
            backoff_s = FIRST_BACKOFF_S * 2 ** (restarts - 1)
            say(f"restart {restarts} of {MAX_RESTARTS} in {backoff_s:.0f} s")
            self._sleep(backoff_s)

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._signals.count and time.monotonic() < end:
            time.sleep(POLL_S)

    def _run_once(self) -> Ending:
        if self._signals.count:
            return Ending.STOPPED
        server = self._start()
        self._is_serving = False
        timeout_s = STOP_TIMEOUT_S
        try:
            ending = self._wait_until_ready(server) or self._watch(server)
            if ending in (Ending.STUB_DIED, Ending.HANGS):
                timeout_s = ABORT_TIMEOUT_S
        finally:
            server.stop(timeout_s)
        if ending is Ending.EXITED:
            self._report_exit(server)
        if complaint := self._supervision.memory.complaint():
            say(complaint)
        return ending

    def _wait_until_ready(self, server: TritonProcess) -> Ending | None:
        """None once the server is ready, else why it will not be."""
        started = told = checked = time.monotonic()
        shown, dead = -1, dict[int, str]()
        while not self._is_ready():
            if self._signals.count:
                say(f"{self._signals.name} received: stopping")
                return Ending.STOPPED
            if server.exit_status is not None:
                return Ending.EXITED
            now = time.monotonic()
            if now - started > self._supervision.start_timeout_s:
                say(f"error: not ready after {now - started:.0f} s (--start-timeout); stopping")
                return Ending.TIMED_OUT
            if server.num_loaded != shown or now - told > PROGRESS_S:
                say(f"loading: {server.num_loaded} of {self._supervision.num_models} models, {now - started:.0f} s")
                shown, told = server.num_loaded, now
            server.pump(POLL_S)
            server.remember_stubs()
            if now - checked > LOADING_CHECK_S:
                # Triton waits for ever for a model whose process died; one that only told its configuration may be
                # found dead once, but not twice.
                before, dead, checked = dead, server.dead_stubs(), now
                if before.keys() & dead.keys():
                    self._repeat_complaints(server)
                    return self._report_dead(dead)
        server.remember_stubs()
        self._is_serving = True
        if self._announced:
            say(f"ready again after {time.monotonic() - started:.0f} s")
        else:
            print(self._supervision.ready_line, flush=True)
            self._announced = True
        return None

    def _watch(self, server: TritonProcess) -> Ending:
        """Stay with a server that is ready, until it ends or must."""
        checked = time.monotonic()
        watchdog = Watchdog(self._supervision.ask, self._supervision.hang_timeout_s)
        try:
            while not self._signals.count:
                server.pump(POLL_S)
                if server.exit_status is not None:
                    return Ending.EXITED
                if time.monotonic() - checked > STUB_CHECK_S:
                    checked = time.monotonic()
                    # Triton itself ends stubs with their models, at its own end, when HTTP is closed already.
                    dead = server.dead_stubs()
                    if dead and self._health_status() is not None:
                        return self._report_dead(dead)
                if watchdog.hangs():
                    say(f"error: no good answer for {self._supervision.hang_timeout_s:.0f} s (--hang-timeout)")
                    return Ending.HANGS
        finally:
            watchdog.close()
        self._drain(server)
        return Ending.STOPPED

    def _drain(self, server: TritonProcess) -> None:
        """Let open requests end, until a second signal."""
        drain = self._supervision.drain
        say(f"{self._signals.name} received: stopping; open requests have {drain.limit_s:.0f} s to end")
        drain.begin()
        while self._signals.count == 1 and server.exit_status is None and not drain.is_over():
            server.pump(POLL_S)

    def _is_ready(self) -> bool:
        """Whether the server says that it and all its models are ready, and its last service has started."""
        if self._health_status() != http.client.OK:
            return False
        if self._supervision.metrics is not None:
            try:
                socket.create_connection(self._supervision.metrics, timeout=1.0).close()
            except OSError:
                return False
        return True

    def _health_status(self) -> int | None:
        """What the server says of its health, as a status of HTTP; None where it says nothing."""
        connection = http.client.HTTPConnection(*self._supervision.health, timeout=1.0)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _report_dead(self, stubs: Mapping[int, str]) -> Ending:
        say(f"error: a Python model's process died: {', '.join(sorted(set(stubs.values())))}")
        return Ending.STUB_DIED

    def _repeat_complaints(self, server: TritonProcess) -> None:
        if self._supervision.repeat_complaints and server.complaints:
            say("\n".join(server.complaints))

    def _report_exit(self, server: TritonProcess) -> None:
        self._repeat_complaints(server)
        status = server.exit_status or 0
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        say(f"error: tritonserver {how} {'while serving' if self._is_serving else 'before it was ready'}")
