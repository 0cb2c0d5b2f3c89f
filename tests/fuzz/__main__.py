"""`python -m tests.fuzz`: thousands of right and wrong requests to a tiny server of its own, and what came of them.

The exit status: 0 no failure, 1 failures, 2 nothing was run. A seed makes the same requests again as long as the
sources are the same, from which Hypothesis takes constants.
"""

from __future__ import annotations

import argparse
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server
from chattts_serving.launcher.tritonserver import ROOT
from tests.fuzz import campaign, crashes

FOLDER = ROOT / "build" / "fuzz"  # the server's log


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the server, too
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        repository = options.repository or _exported()
        serve = partial(running_server, repository, log_path=FOLDER / "server.log")
        if options.known_crashes:
            return crashes.run(serve, _say)
        start = time.monotonic()
        is_wanted = re.compile(options.kind).search
        report = campaign.run(serve, options.requests, options.seed, lambda kind: bool(is_wanted(kind)), _say)
    except (ConfigError, subprocess.CalledProcessError) as error:
        _say(f"fuzz: {error}")
        return 2
    print(report.table())
    print(f"\nseed {options.seed}, {time.monotonic() - start:.0f} s, memory grew by {report.growth_mb:.0f} MB")
    for failure in report.failures:
        print(f"FAILED: {failure}")
    return 1 if report.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz a tiny server over real sockets.")
    parser.add_argument("--requests", type=int, default=2_000, metavar="N", help="about as many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), metavar="S", help="default random")
    parser.add_argument("--kind", default="", metavar="REGEX", help="only the kinds whose name it finds (default all)")
    parser.add_argument(
        "--repository", type=Path, metavar="DIR", help="an export of the tiny checkpoint (default: make it)"
    )
    parser.add_argument("--known-crashes", action="store_true", help="try what is left out, as it crashes Triton")
    return parser.parse_args(arguments)


def _exported() -> Path:
    repository = ROOT / "build" / "repositories" / "tiny"
    subprocess.run(
        [sys.executable, "-m", "export", "--checkpoint", "tiny", "--out", str(repository)], cwd=ROOT, check=True
    )
    return repository


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
