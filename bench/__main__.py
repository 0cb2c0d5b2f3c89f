"""Command line of the benchmarks: `python -m bench engine|compare`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from chattts_serving.errors import ServingError


def main() -> int:
    """Run one part; the exit status for the shell."""
    options = _parse()
    try:
        if options.part == "engine":
            from bench import engine  # noqa: PLC0415  # needs torch alone, and runs where nothing else is
            from chattts_serving.gpt import Precision  # noqa: PLC0415

            engine.run(
                batches=options.batches,
                contexts=options.contexts,
                steps=options.steps,
                precision=Precision(options.precision),
                threads=options.threads,
            )
        else:
            from bench import compare  # noqa: PLC0415

            compare.run(
                options.checkpoint,
                options.repository,
                tokens=options.tokens,
                concurrency=options.concurrency,
                rounds=options.rounds,
                precision=options.precision,
            )
    except ServingError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    engine = parts.add_parser("engine", help="decode steps alone")
    engine.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    engine.add_argument("--contexts", type=int, nargs="+", default=[300, 1500])
    engine.add_argument("--steps", type=int, default=20, help="timed steps of each point (default 20)")
    engine.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    compare = parts.add_parser("compare", help="beside the ChatTTS package, in turns")
    compare.add_argument("--checkpoint", type=Path, default=Path("checkpoints/synthetic"), metavar="DIR")
    compare.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="its export")
    compare.add_argument("--tokens", type=int, default=96, help="of each sentence (default 96: 2 s of audio)")
    compare.add_argument("--concurrency", type=int, default=16)
    compare.add_argument("--rounds", type=int, default=3, help="turns of each system (default 3)")
    for part in (engine, compare):
        part.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
