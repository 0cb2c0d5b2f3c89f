"""Made-up results of each part, as `bench.report.write` leaves them."""

from dataclasses import asdict

from bench.load import Chunk, Outcome, summarize
from bench.peers.table import Group, Point, Turn
from bench.playback import summarize_streams
from bench.watch import Usage

USAGE = Usage(0.5, 0.1, 700.0, 690.0, None, None)


def level(loop, at, *, seed=None, stream=False):
    """A level at which each of 20 requests took a hundredth of `at` seconds more than the last.

    Half of a stream's audio is there after half of that time.
    """
    latencies = [0.01 * at * (n + 1) for n in range(20)]
    outcomes = [Outcome(s, 0.0, (Chunk(s / 2, 1.0 / at), Chunk(s, 1.0 / at)), None) for s in latencies]
    where = {"loop": loop, "concurrency": at if loop == "closed" else None}
    where |= {"rate": at if loop == "open" else None, "seed": seed}
    streams = asdict(summarize_streams(outcomes, 0.0)) if stream else {}
    return where | asdict(summarize(outcomes, 20.0 / at**0.5)) | streams | asdict(USAGE)


def server_run(precision="fp32", *, soak=True, rates=(2, 4), mode=None):
    """Of whole answers, or of streams in `mode`."""
    stream = {"stream": True, "mode": mode} if mode else {}
    requests = list(range(50, 501, 50))
    memory = {
        "requests": requests,
        "memory_mb": [900.0 - number / 100 for number in requests],
        "held_mb": [700.0 + number / 100 for number in requests],
        "slope_mb_per_100": 1.0,
        "second_half_slope_mb_per_100": 1.0,
        "errors": {},
    }
    return {
        "settings": {"protocol": "grpc", "tokens": 96, "precision": precision, "url": None, **stream},
        "levels": [
            *(level("closed", concurrency, stream=bool(mode)) for concurrency in (1, 4, 16, 64)),
            *(level("open", rate, seed=seed, stream=bool(mode)) for rate in rates for seed in range(3)),
        ],
        "soak": memory if soak else None,
    }


def engine_run(precision="fp32"):
    points = [
        {
            "sequences": batch,
            "context": context,
            "ms/step": 10.0 + batch + context / 100,
            "tokens/s": 1e3 * batch / (10.0 + batch + context / 100),
            "% of bandwidth limit": 50.0,
            "% of limit": 60.0,
            "bandwidth_limit_ms": 8.0,
            "compute_limit_ms": 0.7 * batch,
        }
        for context in (300, 1500)
        for batch in (1, 4, 16, 64)
    ]
    return {"settings": {"precision": precision, "device": "cpu"}, "points": points}


def compare_run():
    turns = [
        {"system": system, "concurrency": count, "seconds": seconds * (count**0.7) * spread}
        for system, seconds in (("ChatTTS", 5.0), ("server fp32", 2.5), ("server int8", 1.5))
        for count in (1, 16)
        for spread in (0.9, 1.0, 1.2)
    ]
    settings = {"tokens": 96, "concurrency": 16, "rounds": 3, "precisions": ["fp32", "int8"], "chattts_batch": 4}
    return {"settings": settings, "turns": turns, "ratios": {}}


def peers_run():
    group = Group("int8", ("llama.cpp Q8_0", "OpenVINO int8"))
    turns = [
        asdict(Turn(system, Point(threads, busy, 300, sequences), ms * sequences**0.5 * (1 + busy), ms, 0.1))
        for system, ms in zip(group.systems, (5.0, 11.0, 17.0), strict=True)
        for threads in (1, 2)
        for busy in (0, 2)
        for sequences in (1, 4, 16)
    ]
    settings = {"contexts": [150, 300], "rounds": 3, "steps": 20, "threads": 2, "precisions": ["int8"]}
    return {"settings": settings, "groups": [asdict(group)], "turns": turns}


RUNS = {"server": server_run, "engine": engine_run, "compare": compare_run, "peers": peers_run}
