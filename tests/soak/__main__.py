"""`python -m tests.soak`: a server of its own under mixed load, and an exit status that says whether it held.

The tables go to the terminal, a JSON file and a picture to build/soak/, with the server's log beside them.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server
from chattts_serving.launcher.tritonserver import ROOT
from tests.soak import report
from tests.soak.run import DECK, run, with_few_requests
from tests.soak.verdict import Limits, cache_mb, judge

FOLDER = ROOT / "build" / "soak"
# Of the run, and at most. In 15 minutes of this load the arenas of ONNX Runtime and the stacks of 3,000 threads have
# grown to what they stay at; a leak goes on.
WARM_UP_SHARE = 1 / 2
MOST_WARM_UP_S = 900.0
# A leak would hide in what glibc keeps of freed memory. With its defaults that lies in many arenas: tritonserver held
# 130 to 180 MB at rest, up and down from round to round, of which 20 were in use (measured). And each of its 2,900
# threads has a cache of small pieces; all of them together take many minutes to fill.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}


def main() -> int:
    """Run it; the exit status: 0 the server held, 1 it did not, 2 nothing was run."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the server, too
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ.update(MALLOC)
    try:
        return _soak(options)
    except (ConfigError, subprocess.CalledProcessError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2


def _soak(options: argparse.Namespace) -> int:
    repository = options.repository or _exported(options.checkpoint)
    served = with_few_requests(repository, FOLDER)
    log = FOLDER / "server.log"
    log.unlink(missing_ok=True)
    seconds = 60 * options.minutes
    limits = Limits(warm_up_s=min(MOST_WARM_UP_S, WARM_UP_SHARE * seconds))
    with running_server(served, log_path=log) as server:
        record = run(server, seconds, DECK, tokens=options.tokens, seed=options.seed)
    verdict = judge(record, DECK, limits, cache_mb(served))
    print(report.as_text(record, verdict))
    settings = {"repository": str(repository), "warm_up_s": limits.warm_up_s, "deck": DECK}
    settings |= {name: getattr(options, name) for name in ("minutes", "tokens", "seed")}
    paths = report.write(FOLDER, settings, record, verdict)
    print(f"raw numbers: {paths[0]}\nplot: {paths[1]}\nlog: {log}")
    for reason in verdict.reasons:
        print(f"FAILED: {reason}")
    return 0 if verdict.passed else 1


def _exported(checkpoint: str) -> Path:
    repository = ROOT / "build" / "repositories" / Path(checkpoint).name
    subprocess.run(
        [sys.executable, "-m", "export", "--checkpoint", checkpoint, "--out", str(repository)], cwd=ROOT, check=True
    )
    return repository


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="length of the run (default 30)")
    parser.add_argument("--checkpoint", default="tiny", metavar="NAME", help="exported and served (default tiny)")
    parser.add_argument("--repository", type=Path, metavar="DIR", help="an export, to be served instead")
    parser.add_argument(
        "--tokens", type=int, default=96, metavar="N", help="most audio tokens of a sentence (default 96: 2 s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order of the calls (default 0)")
    options = parser.parse_args()
    if options.minutes <= 0 or options.tokens < 1:
        parser.error("--minutes must be above 0, --tokens 1 or more")
    return options


if __name__ == "__main__":
    sys.exit(main())
