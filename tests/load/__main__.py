"""`python -m tests.load`: a server, locust without its web page against it, the report, and an exit status.

With `--url` the server is one that runs already. What is not known here goes to locust; `locust -f
tests/load/locustfile.py --help` lists it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server
from chattts_serving.launcher.tritonserver import ROOT

FOLDER = ROOT / "build" / "load"  # reports, and the server's log
LOCUSTFILE = Path(__file__).parent / "locustfile.py"
STOP_TIMEOUT_S = 120  # at the end, for requests under way: cutting them off would leave out the slow ones


def main() -> int:
    """Run one scenario; the exit status: 0 within the limits, 1 beyond, 2 nothing was run."""
    options, further = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends locust and the server, too
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with _server(options) as addresses:
            return _run([*_locust(options), *addresses, *further])
    except ConfigError as error:
        print(f"load: {error}", file=sys.stderr)
        return 2


def _parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__, allow_abbrev=False)
    parser.add_argument("--scenario", default="steady", help="default steady; tests/load/README.md has all")
    parser.add_argument("--users", type=int, default=4, metavar="N", help="callers at once (default 4)")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="length of the run (default 1)")
    parser.add_argument(
        "--url", metavar="HOST:PORT", help="HTTP address of a server that runs; default: serve --repository"
    )
    parser.add_argument(
        "--repository", type=Path, default=ROOT / "model_repository", metavar="DIR", help="an export, to be served"
    )
    parser.add_argument(
        "--out", type=Path, metavar="NAME", help="write NAME.html and NAME.json (default build/load/...)"
    )
    options, further = parser.parse_known_args()
    if options.users < 1 or options.minutes <= 0:
        parser.error(f"--users is {options.users}, --minutes {options.minutes:g}; allowed are 1 or more, and above 0")
    return options, further


@contextmanager
def _server(options: argparse.Namespace) -> Iterator[Sequence[str]]:
    """Where the server is, as locust's flags."""
    if options.url:
        yield [f"--host={options.url}"]
        return
    with running_server(options.repository, log_path=FOLDER / "server.log") as server:
        yield [f"--host={server.http_url}", f"--grpc-url={server.grpc_url}"]


def _locust(options: argparse.Namespace) -> list[str]:
    name = (
        options.out.resolve()
        if options.out
        else FOLDER / f"{options.scenario}-{datetime.now(timezone.utc):%Y%m%d-%H%M%S}"
    )
    return [
        *(sys.executable, "-m", "locust", f"--locustfile={LOCUSTFILE}", "--headless", "--skip-log-setup"),
        *("--only-summary", f"--stop-timeout={STOP_TIMEOUT_S}", f"--html={name}.html", f"--report={name}.json"),
        *(f"--scenario={options.scenario}", f"--users={options.users}", f"--run-time={options.minutes * 60:.0f}s"),
    ]


def _run(command: Sequence[str]) -> int:
    """The exit status of `command`, run in the checkout; it hears Ctrl-C itself and ends in its own time."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            return process.wait()
        finally:
            process.kill()  # does nothing to one that has ended


if __name__ == "__main__":
    sys.exit(main())
