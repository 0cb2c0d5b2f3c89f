"""The flags that the load test adds to locust's, and their ranges."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from tests.load.limits import Limits
from tests.load.scenarios import SCENARIOS
from tests.load.target import target

SETTINGS = (  # those that say what was sent, for the report
    *("scenario", "num_users", "run_time", "rate", "host", "mode"),
    *("max_new_tokens", "refine", "timeout", "patience", "seed"),
)


def add_flags(parser: Any) -> None:
    """Add ours to locust's."""
    default = Limits()
    flags = parser.add_argument_group("Load test of ChatTTS")
    flags.add_argument("--scenario", choices=list(SCENARIOS), default="steady", help=_scenarios())
    flags.add_argument(
        "--grpc-url", default="", metavar="HOST:PORT", help="default: host of --host, port that follows its port"
    )
    flags.add_argument(
        "--rate",
        type=float,
        default=0.0,
        metavar="X",
        help="open loop: Poisson arrivals a second of all users together",
    )
    flags.add_argument(
        "--max-new-tokens", type=int, default=192, metavar="N", help="audio tokens of a sentence at most (192 is 4 s)"
    )
    flags.add_argument("--refine", action="store_true", help="refine the texts first")
    flags.add_argument("--mode", choices=["exact", "low_latency"], default="exact", help="of streams")
    flags.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request")
    flags.add_argument(
        "--patience", type=float, default=2.0, metavar="SECONDS", help="mean time until a stream is left (abandon)"
    )
    flags.add_argument("--seed", type=int, default=0, metavar="N", help="of texts, arrivals and speech")
    flags.add_argument("--max-errors", type=float, default=default.errors, metavar="SHARE", help="limit: 0 to 1")
    flags.add_argument(
        "--max-first-audio", type=float, default=default.first_audio_s, metavar="SECONDS", help="limit: p95 of streams"
    )
    flags.add_argument("--max-latency", type=float, default=default.latency_s, metavar="SECONDS", help="limit: p95")
    flags.add_argument("--max-rtf", type=float, default=default.rtf, metavar="X", help="limit: p95 of the requests")
    flags.add_argument("--report", default="", metavar="FILE.json", help="write entries, summary and limits here")


def limits_of(options: Namespace) -> Limits:
    """The limits that the flags set; raises ValueError for a wrong one."""
    return Limits(options.max_errors, options.max_first_audio, options.max_latency, options.max_rtf)


def check(options: Namespace) -> None:
    """Raise ValueError for a flag out of its range."""
    target(options.host, options.grpc_url)
    limits_of(options)
    if options.rate < 0:
        raise ValueError(f"--rate is {options.rate:g}; allowed is above 0 requests a second, or 0 for a closed loop")
    for name in ("timeout", "patience", "max_new_tokens"):
        value = getattr(options, name)
        if value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value:g}; allowed is above 0")


def _scenarios() -> str:
    return "; ".join(f"{name}: {scenario.about}" for name, scenario in SCENARIOS.items())
