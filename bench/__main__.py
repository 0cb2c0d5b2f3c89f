"""Command line of the benchmarks: `python -m bench server|overload|compare|engine|peers|gpu|pack|host|gateway|plot`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.peers.options import add_peers
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.errors import ServingError

PRECISIONS = [precision.value for precision in Precision]
TOKENS = 96  # 2 s of audio
HOST_TOKENS = 192
STREAM_TOKENS = 256  # 5.5 s: several chunks


def main() -> int:
    """Run one part; the exit status for the shell."""
    options = _parse()
    try:
        return PARTS[options.part](options) or 0
    except ServingError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


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


def _gpu(options: argparse.Namespace) -> int:
    from bench.gpu import command

    if options.until is not None:
        return command.work(options.out, options.seconds, options.until, dry_run=options.dry_run)
    return 0 if command.run(options.out, options.seconds, dry_run=options.dry_run) else 1


def _pack(options: argparse.Namespace) -> None:
    from bench import pack

    pack.pack(options.out, options.repository, python=options.with_python, more=options.wheels)


def _server(options: argparse.Namespace) -> None:
    from bench import server
    from bench.repository import parse_settings

    concurrency = options.concurrency
    if concurrency is None:
        concurrency = () if options.rate or options.soak else server.DEFAULT_CONCURRENCY
    tokens = options.tokens
    if tokens is None:
        tokens = STREAM_TOKENS if options.stream else TOKENS
    turns = options.turns
    if turns is None:
        turns = 2 if options.stream and options.rate else 1
    load = server.Load(
        protocol=options.protocol,
        tokens=tokens,
        timeout_s=options.timeout,
        concurrency=tuple(concurrency),
        rates=tuple(options.rate),
        seeds=options.seeds,
        turns=turns,
        requests=options.requests,
        soak=options.soak,
        stream=options.stream,
        mode=options.mode,
        buffer_ms=options.buffer,
        long_text=options.long_text,
        whole=options.whole,
    )
    settings = parse_settings(options.set)
    server.run(load, options.repository, options.precision, options.url, options.pid, settings=settings)


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


def _peers(options: argparse.Namespace) -> None:
    from bench.peers import command

    plan = command.Plan(
        batches=tuple(options.batches),
        contexts=tuple(options.contexts),
        precisions=tuple(options.precision),
        steps=options.steps,
        rounds=options.rounds,
        threads=options.threads,
        busy=options.busy,
    )
    command.run(plan, options.python)


def _gateway(options: argparse.Namespace) -> None:
    from bench import gateway

    comparison = gateway.Comparison(options.clients, options.streams, options.tokens, options.pause)
    gateway.run(comparison, options.repository)


def _host(options: argparse.Namespace) -> None:
    from bench import host

    load = host.HostLoad(
        pace=host.parse_pace(options.tokens, options.step_ms),
        max_sequences=options.max_sequences,
        rates=tuple(sorted(options.rate)),
        seconds=options.seconds,
        timeout_s=options.timeout,
    )
    host.run(load, None if options.engine_only else options.repository, options.answers)


def _plot(options: argparse.Namespace) -> None:
    from bench import plots

    print(plots.draw(options.files))


PARTS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "server": _server,
    "overload": _overload,
    "compare": _compare,
    "engine": _engine,
    "peers": _peers,
    "host": _host,
    "gpu": _gpu,
    "pack": _pack,
    "gateway": _gateway,
    "plot": _plot,
}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)

    server = _add_server(parts)
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

    add_peers(parts)
    _add_host(parts)
    _add_machine_parts(parts)

    plot = parts.add_parser("plot", help="redraw from the JSON of one run, or of several in one picture")
    plot.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    return parser.parse_args()


def _add_server(parts: Any) -> Any:
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
        "--rate", type=float, nargs="+", default=[], metavar="X", help="open loop: Poisson arrivals a second"
    )
    server.add_argument("--seeds", type=int, default=3, metavar="N", help="of the arrivals of each rate (default 3)")
    server.add_argument(
        "--turns",
        type=int,
        metavar="N",
        help="runs of each seed, one after the other, which differ by noise alone (default: streams 2, others 1)",
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
        "--whole", type=int, default=0, metavar="N", help="each closed level again, beside N callers of whole answers"
    )
    server.add_argument(
        "--tokens", type=int, metavar="N", help=f"of each sentence (default {TOKENS}: 2 s; streams {STREAM_TOKENS})"
    )
    server.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of gpt_decoder's config.pbtxt (max_sequences=128, kv_cache_gb=8), again and again",
    )
    server.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS", help="of a request (default 120)")
    server.add_argument("--soak", type=int, default=0, metavar="N", help="memory after every 50 of N requests")
    return server


def _add_host(parts: Any) -> None:
    host = parts.add_parser("host", help="what all but the model's computing costs: a language model that only waits")
    host.add_argument(
        "--repository",
        type=Path,
        default=Path("build/repositories/slim"),
        metavar="DIR",
        help="an export; of the checkpoint slim, decoder and vocoder compute next to nothing (default %(default)s)",
    )
    host.add_argument("--engine-only", action="store_true", help="the engine's thread alone, without a server")
    host.add_argument(
        "--tokens", type=int, default=HOST_TOKENS, metavar="N", help="of each sentence (default %(default)s: 4 s)"
    )
    host.add_argument(
        "--step-ms",
        nargs="+",
        default=["64:0.5", "256:1.0"],
        metavar="SEQUENCES:MS",
        help="how long a step of so many takes (default 64:0.5 256:1.0)",
    )
    host.add_argument("--max-sequences", type=int, default=256, metavar="N", help="of the batch (default 256)")
    host.add_argument(
        "--answers", nargs="+", choices=["whole", "streams"], default=["whole", "streams"], help="default: both"
    )
    host.add_argument(
        "--rate",
        type=float,
        nargs="+",
        default=[25.0, 50.0, 75.0, 100.0, 150.0, 200.0, 250.0],
        metavar="X",
        help="sentences a second, until the server no longer keeps up (default 25 50 75 100 150 200 250)",
    )
    host.add_argument("--seconds", type=float, default=10.0, metavar="S", help="of each rate (default 10)")
    host.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of a request (default 60)")


def _add_machine_parts(parts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """What is for a machine with a GPU."""
    gpu = parts.add_parser("gpu", help="whether the engine is right on this GPU, and where the time goes, in one run")
    gpu.add_argument("--out", type=Path, default=Path("build", "gpu"), metavar="DIR", help="default build/gpu")
    gpu.add_argument(
        "--seconds", type=float, default=240.0, metavar="N", help="for all of it; what does not fit is left out (240)"
    )
    gpu.add_argument(
        "--dry-run",
        action="store_true",
        help="every phase with the smallest counts; wrong numbers are noted and fail nothing (on a CPU: a tiny model)",
    )
    gpu.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of the process that does the work

    pack = parts.add_parser("pack", help="what the server needs on a machine with a GPU and without a network")
    pack.add_argument("--out", type=Path, default=Path("build", "pack"), metavar="DIR", help="default build/pack")
    pack.add_argument(
        "--repository",
        type=Path,
        default=Path("build", "repositories", "tiny"),
        metavar="DIR",
        help="an export to take along (default build/repositories/tiny)",
    )
    pack.add_argument(
        "--with-python", type=Path, metavar="PREFIX", help="a Python 3.12, where the machine's has no shared library"
    )
    pack.add_argument("--wheels", nargs="+", default=[], metavar="NAME", help="further wheels, as pip names them")


if __name__ == "__main__":
    sys.exit(main())
