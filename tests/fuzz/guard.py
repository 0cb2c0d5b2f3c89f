"""What must hold of a server after anything that a caller sends: the same processes, idle, and the same speech."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from chattts_serving.errors import ConfigError
from chattts_serving.launcher import probe
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer
from tests.fuzz.answers import OK, Answer
from tests.fuzz.calls import Call, Tensor, text_tensor
from tests.fuzz.wires import LIMIT_S, SilenceError, Wires
from tests.metrics import exposition

IDLE_WITHIN_S = 60.0  # a whole answer that nobody waits for any more is still made
MOST_GROWTH_MB = 1_000  # shared memory and heaps keep the size of the largest text that came
TOLERANCE = 1e-4
CONTROL = (
    text_tensor("text", "The same words every time. And again."),
    Tensor("seed", "INT64", (1, 1), (7,)),
    Tensor("skip_refine", "BOOL", (1, 1), (True,)),
    Tensor("max_new_tokens", "INT32", (1, 1), (40,)),
)


class BrokenError(AssertionError):
    """The server is no longer what it was; the message says in what."""


class Guard:
    """Knows a server as it was at first."""

    def __init__(self, server: RunningServer, wires: Wires) -> None:
        """Have the server speak, and remember it."""
        self._server, self._wires = server, wires
        self._speech = self._control()
        self._pids = self._processes()
        self._memory_mb = self.memory_mb()

    def is_same(self) -> bool:
        """Whether no process of the server has ended or was started anew."""
        return self._processes() == self._pids

    def growth_mb(self) -> float:
        """Memory that the server's processes have taken since then, in MB."""
        return self.memory_mb() - self._memory_mb

    def memory_mb(self) -> float:
        """Resident memory of the server's processes together, in MB."""
        pages = 0
        for pid in self._processes():
            pages += int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def check(self) -> None:
        """Look at everything.

        Raises:
            BrokenError: something is not as it was.
        """
        if not self.is_same():
            raise BrokenError(f"the processes were {sorted(self._pids)} and are {sorted(self._processes())}")
        try:
            probe.check(self._server.http_url, LIMIT_S)
            self._wait_idle()
            speech = self._control()
        except (probe.ProbeError, SilenceError, OSError) as error:
            raise BrokenError(f"the server does not work: {error}") from error
        for name, samples in speech.items():
            if samples.shape != self._speech[name].shape or np.abs(samples - self._speech[name]).max() > TOLERANCE:
                raise BrokenError(f"the control sentence sounds different over {name}")
        if self.growth_mb() > MOST_GROWTH_MB:
            raise BrokenError(f"the server has taken {self.growth_mb():.0f} MB more")

    def _processes(self) -> frozenset[int]:
        """Process ids of tritonserver and its stubs; none where it has ended."""
        try:
            pid = self._server.pid
        except ConfigError:
            return frozenset()
        return frozenset({pid, *child_processes(pid)})

    def _wait_idle(self) -> None:
        end = time.monotonic() + IDLE_WITHIN_S
        while True:
            num_open = probe.open_requests(exposition(self._server))
            if not num_open:
                return
            if time.monotonic() > end:
                raise BrokenError(
                    f"{num_open} requests are still open {IDLE_WITHIN_S:.0f} s after the last caller left"
                )
            time.sleep(0.05)

    def _control(self) -> dict[str, np.ndarray]:
        """The samples of the control sentence, by the way they came."""
        return {
            "chattts": _samples(self._wires.whole["grpc"](Call("chattts", CONTROL))),
            "chattts_stream": _samples(self._wires.streams["http, stream"](Call("chattts_stream", CONTROL))),
        }


def _samples(answer: Answer) -> np.ndarray:
    if answer.status != OK:
        raise BrokenError(f"the control sentence was refused: {answer.status}: {answer.message}")
    return np.concatenate([response["audio"][0] for response in answer.responses])
