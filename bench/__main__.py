"""Command line of the benchmarks: `python -m bench server|overload|compare|engine|gateway|plot`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from chattts_serving.engine.gpt_config import Precision
from chattts_serving.errors import ServingError

PRECISIONS = [precision.value for precision in Precision]
TOKENS = 96  # 2 s of audio
STREAM_TOKENS = 256  # 5.5 s: several chunks


def main() -> int:
    """Run one part; the exit status for the shell."""
    options = _parse()
    try:
        PARTS[options.part](options)
    except ServingError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


# Each part imports what it needs when it is chosen: the engine's runs where there is torch and little else.
# ruff: noqa: PLC0415


def _engine(options: argparse.Namespace) -> None:
    from bench import engine

    variants = [(), *map(tuple, options.variant)]
    for variant in variants:
        engine.check_variant(variant)
    for variant in variants:
        if options.variant:
            print(f"variant: {' '.join(variant) or 'default'}")
        engine.run(
            batches=options.batches,
            contexts=options.contexts,
            steps=options.steps,
            precision=Precision(options.precision),
            threads=options.threads,
            variant=variant,
        )


def _server(options: argparse.Namespace) -> None:
    from bench import server

    concurrency = options.concurrency
    if concurrency is None:
        concurrency = () if options.rate or options.soak else server.DEFAULT_CONCURRENCY
    tokens = options.tokens
    if tokens is None:
        tokens = STREAM_TOKENS if options.stream else TOKENS
    load = server.Load(
        protocol=options.protocol,
        tokens=tokens,
        timeout_s=options.timeout,
        concurrency=tuple(concurrency),
        rates=tuple(options.rate),
        requests=options.requests,
        soak=options.soak,
        stream=options.stream,
        mode=options.mode,
        buffer_ms=options.buffer,
        long_text=options.long_text,
    )
    server.run(load, options.repository, options.precision, options.url, options.pid)


def _overload(options: argparse.Namespace) -> None:
    from bench import overload

    load = overload.Overload(
        protocol=options.protocol,
        tokens=options.tokens,
        timeout_s=options.timeout,
        callers=options.callers,
        max_requests=options.max_requests,
        factor=options.factor,
        seconds=options.seconds,
        batch_share=options.batch_share,
    )
    overload.run(load, options.repository, options.precision)


def _compare(options: argparse.Namespace) -> None:
    from bench import compare

    compare.run(
        options.checkpoint,
        options.repository,
        tokens=options.tokens,
        concurrency=options.concurrency,
        rounds=options.rounds,
        precisions=options.precision,
    )


def _gateway(options: argparse.Namespace) -> None:
    from bench import gateway

    comparison = gateway.Comparison(options.clients, options.streams, options.tokens, options.pause)
    gateway.run(comparison, options.repository)


def _plot(options: argparse.Namespace) -> None:
    from bench import plots

    print(plots.draw(options.files))


PARTS = {
    "server": _server,
    "overload": _overload,
    "compare": _compare,
    "engine": _engine,
    "gateway": _gateway,
    "plot": _plot,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)

    server = parts.add_parser("server", help="load on the live server: whole answers, or streams")
    server.add_argument("--url", metavar="HOST:PORT", help="of a server that runs; default: serve --repository")
    server.add_argument("--pid", type=int, help="of that server's launcher, to watch its memory and CPU time")
    server.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    server.add_argument(
        "--concurrency",
        type=int,
        nargs="+",
        metavar="N",
        help="closed loop: requests at once (default 1 4 16 64, unless there is --rate or --soak)",
    )
    server.add_argument(
        "--rate", type=float, nargs="+", default=[], metavar="X", help="open loop: Poisson arrivals a second, 3 seeds"
    )
    server.add_argument(
        "--requests",
        type=int,
        metavar="N",
        help="of each level (default: closed loop 4 a caller and 16 at least, open loop 20 s and 32 at least)",
    )
    server.add_argument("--stream", action="store_true", help="take the answers as streams: first audio, underruns")
    server.add_argument("--mode", choices=["exact", "low_latency"], default="exact", help="of streams (default exact)")
    server.add_argument(
        "--buffer", type=float, default=0.0, metavar="MS", help="audio that a stream's player waits for (default 0)"
    )
    server.add_argument(
        "--long-text", action="store_true", help="each closed level again, beside a stream of 10,000 characters"
    )
    server.add_argument(
        "--tokens", type=int, metavar="N", help=f"of each sentence (default {TOKENS}: 2 s; streams {STREAM_TOKENS})"
    )
    server.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request (default 120)")
    server.add_argument("--soak", type=int, default=0, metavar="N", help="memory after every 50 of N requests")

    door = parts.add_parser("gateway", help="what the gateway adds to first audio, beside gRPC without it")
    door.add_argument("--clients", type=int, default=64, metavar="N", help="each way (default 64)")
    door.add_argument("--streams", type=int, default=512, metavar="N", help="each way (default 512)")
    door.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"of each stream (default {TOKENS})")
    door.add_argument(
        "--pause", type=float, default=20.0, metavar="SECONDS", help="of a client before each stream (mean; default 20)"
    )

    overload = parts.add_parser("overload", help="more than the server can: who is refused how soon, and recovery")
    overload.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    overload.add_argument(
        "--callers", type=int, metavar="N", help="at once at capacity (default: looked for, on a server of its own)"
    )
    overload.add_argument(
        "--max-requests", type=int, metavar="N", help="that the server takes at once (default 1.25 x callers)"
    )
    overload.add_argument(
        "--factor", type=float, default=4.0, metavar="X", help="arrivals, as a multiple of capacity (default 4)"
    )
    overload.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="of overload, once the server is full (default 60)"
    )
    overload.add_argument(
        "--batch-share", type=float, default=0.0, metavar="X", help="of the arrivals with priority batch (default 0)"
    )
    overload.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"of each sentence (default {TOKENS}: 2 s of audio)"
    )
    overload.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request (default 120)")

    compare = parts.add_parser("compare", help="beside the ChatTTS package, in turns")
    compare.add_argument("--checkpoint", type=Path, default=Path("checkpoints/synthetic"), metavar="DIR")
    compare.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"of each sentence (default {TOKENS}: 2 s of audio)"
    )
    compare.add_argument("--concurrency", type=int, default=16, metavar="N")
    compare.add_argument("--rounds", type=int, default=3, metavar="N", help="turns of each system (default 3)")

    for part in (server, overload, compare, door):
        part.add_argument("--repository", type=Path, default=Path("model_repository"), metavar="DIR", help="an export")
    for part in (server, overload, compare):
        part.add_argument(
            "--precision",
            nargs="+",
            choices=PRECISIONS,
            default=[],
            help="of the GPT; several: a server each (default: the repository's)",
        )

    engine = parts.add_parser("engine", help="decode steps alone")
    engine.add_argument(
        "--batches", type=int, nargs="+", default=[], metavar="N", help="default: 1 2 4 ... 256, on a CPU 1 4 16 64"
    )
    engine.add_argument(
        "--contexts", type=int, nargs="+", default=[], metavar="N", help="default: 300 1500, on a CPU 300"
    )
    engine.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each point (default 20)")
    engine.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N")
    engine.add_argument("--precision", choices=PRECISIONS, default="fp32")
    engine.add_argument(
        "--variant",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="another way to compute a step on a GPU (chattts_serving/engine/gpu/variants.py), measured after the "
        "default; may be repeated",
    )

    plot = parts.add_parser("plot", help="redraw from the JSON of one run, or of several in one picture")
    plot.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
