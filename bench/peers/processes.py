"""The processes of a run: a worker for each system, loops that keep cores busy, and what the machine did meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chattts_serving.errors import ConfigError

ROOT = Path(__file__).parents[2]
PACKAGES = ("llama-cpp-python", "gguf", "openvino", "numpy")
LIST_VERSIONS = f"""
import json, platform
from importlib import metadata
found = {{"python": platform.python_version()}}
for name in {PACKAGES}:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""
BUSY_LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(10**6): pass"
BUSY_AT_ONCE_S = 0.3  # after which a loop has long begun
TICKS = os.sysconf("SC_CLK_TCK")
SHOWN_CHARACTERS = 2_000  # of a log


class Worker:
    """The process of one system."""

    def __init__(
        self,
        python: str,
        kind: str,
        number_format: str,
        *,
        folder: Path,
        threads: int,
        num_tokens: int,
        sleeps: bool = False,
    ) -> None:
        """Start it in `python`; the rest is for `bench.peers.worker`. Its log is in `folder`, where the weights are.

        With `sleeps` threads of OpenMP do so while they wait.
        """
        self._name, self._log = f"{kind} {number_format}", folder / f"{kind}-{number_format}-{sleeps}.log"
        environment = os.environ | ({"OMP_WAIT_POLICY": "passive"} if sleeps else {})
        command = [python, "-m", "bench.peers.worker", kind, number_format, str(folder), str(threads), str(num_tokens)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(  # noqa: S603
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until its model is loaded.

        Raises:
            ConfigError: it ended instead, with the end of its log.
        """
        self._answer()

    def ask(self, do: str, **order: Any) -> dict[str, Any]:
        """Let it do something; see `bench.peers.worker.Orders`.

        Raises:
            ConfigError: it ended instead, with the end of its log.
        """
        assert self._process.stdin is not None  # noqa: S101
        try:
            self._process.stdin.write(json.dumps({"do": do, **order}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # there will be no answer
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise ConfigError(f"{self._name} ended: {self._log.read_text()[-SHOWN_CHARACTERS:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def versions(python: str) -> dict[str, str]:
    """Versions of `python` and of the PACKAGES that it has.

    Raises:
        ConfigError: it does not run.
    """
    try:
        listed = subprocess.run([python, "-c", LIST_VERSIONS], capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigError(f"cannot run {python}: {error}") from error
    found: dict[str, str] = json.loads(listed.stdout)
    return found


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes do nothing, as fast as they can, for the length of a block."""
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(count)]  # noqa: S603
    try:
        if loops:
            time.sleep(BUSY_AT_ONCE_S)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def machine_seconds() -> float:
    """CPU seconds that all cores together were busy, or taken away by the host, since the machine started."""
    ticks = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    idle = (3, 4)  # and waiting for disks
    return sum(int(value) for place, value in enumerate(ticks) if place not in idle) / TICKS
