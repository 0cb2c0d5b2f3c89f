"""Programs that a fleet runs side by side: their output line by line, their end, and what they leave behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import IO

from chattts_serving.launcher.processes import child_processes, end_with_parent
from chattts_serving.launcher.supervisor import SHARED_MEMORY

READY = b"ready http="  # how a launcher says it, once
ORPHANS_S = 2.0  # for the end of what was killed


class Child:
    """One program in a session of its own, so that Ctrl-C in a terminal reaches this process alone.

    Its output has to be read: call `pump` often.

    Attributes:
        name: of letters, digits and `_`.
        started: when it was, last, by `time.monotonic()`.
        is_ready: whether it has said so.
        restarts: how often it was started anew within a short time, and `due`, when it will be; for whoever does that.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        write: Callable[[bytes], object],
        *,
        cpus: Iterable[int] = (),
        ending: signal.Signals = signal.SIGTERM,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: as above.
            command: its program and arguments.
            env: its environment.
            write: takes each line of its output, with the name in front, but for lines of JSON.
            cpus: those that it may use; none stands for all.
            ending: the signal that has it end by itself.
        """
        self.name, self.started, self.restarts = name, 0.0, 0
        self.due: float | None = None
        self.is_ready = False
        self._command, self._env, self._write = command, env, write
        self._cpus, self._ending = frozenset(cpus), ending
        self._process: subprocess.Popen[bytes] | None = None
        # What it writes to, and the last line of each as far as it came: a launcher says on stdout that it is ready,
        # while tritonserver's log comes to its stderr in pieces.
        self._pipes: dict[IO[bytes], bytes] = {}

    @property
    def exit_status(self) -> int | None:
        """What it exited with (minus the signal's number); None while it runs, or was not started."""
        return self._process.poll() if self._process else None

    @property
    def pid(self) -> int:
        """Its process id; 0 where it was not started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start it, once or again."""
        self._close()
        self.started, self.due, self.is_ready = time.monotonic(), None, False
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=self._begin,  # noqa: PLW1509  # this process has one thread
        )
        self._pipes = {pipe: b"" for pipe in (self._process.stdout, self._process.stderr) if pipe}

    def _begin(self) -> None:
        end_with_parent()
        if self._cpus:
            os.sched_setaffinity(0, self._cpus)

    def terminate(self) -> None:
        """Have it end by itself."""
        if self._process:
            self._process.send_signal(self._ending)

    def kill(self) -> None:
        """End it, whatever it does, and pass on what it had still to say."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        while self._pipes and (readable := select.select(list(self._pipes), [], [], 0)[0]):
            for pipe in readable:
                self._read(pipe)
        for pipe in list(self._pipes):
            self._end(pipe)
        if self.pid:  # a launcher that was killed leaves the shared memory of its server
            for segment in SHARED_MEMORY.glob(f"chattts_{self.pid}_*"):
                segment.unlink(missing_ok=True)

    def _read(self, pipe: IO[bytes]) -> None:
        text = os.read(pipe.fileno(), 65536)
        if not text:
            self._end(pipe)
            return
        *lines, self._pipes[pipe] = (self._pipes[pipe] + text).split(b"\n")
        for line in lines:
            self._pass_on(line)

    def _end(self, pipe: IO[bytes]) -> None:
        partial = self._pipes.pop(pipe)
        pipe.close()
        if partial:
            self._pass_on(partial)

    def _pass_on(self, line: bytes) -> None:
        if line.startswith(READY):
            self.is_ready = True
            return
        with suppress(OSError):  # a full disk or a closed terminal does not end the service
            self._write((b"" if line.startswith(b"{") else f"{self.name} | ".encode()) + line + b"\n")

    @staticmethod
    def pump(children: Sequence[Child], timeout_s: float) -> None:
        """Pass on new lines of `children`; waits up to `timeout_s` for some."""
        pipes = {pipe: child for child in children for pipe in child._pipes}
        if not pipes:
            time.sleep(timeout_s)
            return
        for pipe in select.select(list(pipes), [], [], timeout_s)[0]:
            pipes[pipe]._read(pipe)


def end_orphans(but: Iterable[int]) -> None:
    """Kill the children of this process, all `but` those, and wait for their end: what killed launchers left to it."""
    kept, end = set(but), time.monotonic() + ORPHANS_S
    while time.monotonic() < end and (orphans := child_processes(os.getpid()).keys() - kept):
        for pid in orphans:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
