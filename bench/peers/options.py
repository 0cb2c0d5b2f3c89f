"""The flags of `python -m bench peers`."""

from __future__ import annotations

import argparse
import os
import sys

PRECISIONS = ("int8", "bf16", "fp32")


def add_peers(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the part."""
    peers = parts.add_parser("peers", help="decode steps on a CPU beside llama.cpp and OpenVINO, in turns")
    peers.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="default 1 4 16")
    peers.add_argument("--contexts", type=int, nargs="+", default=[150, 300], metavar="N", help="default 150 300")
    peers.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="of ours (default: all)"
    )
    peers.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of a turn (default 20)")
    peers.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each system (default 3)")
    peers.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="for the time that a step takes (default: all cores); CPU time is measured with one",
    )
    peers.add_argument("--busy", type=int, default=0, metavar="N", help="all of it again, beside N busy loops")
    peers.add_argument(
        "--python", default=sys.executable, metavar="FILE", help="the one that has the extra 'peers' (default: this)"
    )
