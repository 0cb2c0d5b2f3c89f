"""A server for the length of a `with` block."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.options import PORT_OPTIONS
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.tritonserver import ROOT, check_repository, find_installation


@dataclass(frozen=True)
class RunningServer:
    """A server that `running_server` started; addresses are "HOST:PORT", as tritonclient takes them.

    Of several servers (`--gpus`) the first two are the balancer's, and `metrics_url` has one for each, with commas.
    """

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
