"""What the gateway costs: the same streams through it over HTTP and straight from Triton over gRPC, in turns.

The gateway has one core for itself and this client, the server the others. Each stream has the same sentence and tokens
both ways, and every sample of it is counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from tqdm import tqdm

from bench import report
from bench.load import Loaded, Speak, closed_loop, percentile, summarize
from bench.playback import summarize_streams
from bench.repository import FOLDER, sentence
from bench.server import Load, speaker
from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.server import running_server
from client import AsyncTTSClient, ConnectionFailedError, OverloadedError, ServerError
from gateway.process import running_gateway

Runs = dict[str, list[dict[str, Any]]]

WAYS = ("grpc", "gateway")
SAMPLE_BYTES = 2


@dataclass(frozen=True)
class Comparison:
    """What to send, each way.

    Attributes:
        clients: streams at once.
        streams: of each round.
        rounds: in which both ways take their turns.
        tokens: of each stream.
        pause_s: that a client makes before each stream, exponentially distributed with this mean; without pauses the
            server is saturated, and first audio tells of its queue alone.
    """

    clients: int = 64
    streams: int = 192
    rounds: int = 3
    tokens: int = 96
    pause_s: float = 0.0


def run(comparison: Comparison, repository: Path) -> Path:
    """Measure, print the table, write JSON; the path of that.

    Raises:
        ConfigError, SettingsError: a server does not start.
    """
    cores = sorted(os.sched_getaffinity(0))
    own, others = ({cores[-1]}, set(cores[:-1])) if len(cores) > 1 else (set(cores), set(cores))
    os.sched_setaffinity(0, others)  # what is started now inherits it
    with running_server(repository, log_path=FOLDER / "gateway_server.log") as server:
        os.sched_setaffinity(0, own)
        flags = ("--max-concurrent", str(comparison.clients))
        with running_gateway(server.grpc_url, FOLDER / "gateway.log", *flags) as gateway:
            runs = asyncio.run(measure(comparison, server.grpc_url, gateway.url))
    found = show(runs)
    where = {"repository": repository.name, "gateway_cores": sorted(own), "server_cores": sorted(others)}
    path = report.write("gateway", {"settings": asdict(comparison) | where, **found, "runs": runs})
    print(f"raw numbers: {path}")
    return path


def show(runs: Runs) -> dict[str, Any]:
    """Print what `measure` found; the differences, in milliseconds and in streams."""
    rows = [_row(way, runs[way]) for way in WAYS]
    print(report.table(("way", "streams", "errors", "first p50 ms", "p95 ms", "streams/s", "samples"), rows))
    added = {share: 1e3 * (_first(runs["gateway"], share) - _first(runs["grpc"], share)) for share in (0.5, 0.95)}
    rounds = zip(*(runs[way] for way in WAYS), strict=True)
    pairs = [pair for one, other in rounds for pair in zip(one["samples"], other["samples"], strict=True)]
    differing = sum(one != other for one, other in pairs)
    print(f"streams with another number of samples: {differing} of {len(pairs)}")
    print(f"the gateway adds p50 {added[0.5]:+.1f} ms, p95 {added[0.95]:+.1f} ms to first audio")
    return {"added_ms": {f"p{100 * share:g}": value for share, value in added.items()}, "differing": differing}


async def measure(comparison: Comparison, triton: str, url: str) -> Runs:
    """All rounds but the first, which warms up; of each way its rounds, with samples and seconds of every stream."""
    runs: Runs = {way: [] for way in WAYS}
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncTTSClient(triton) as client, aiohttp.ClientSession(url, connector=connector) as session:
        speak = {
            "grpc": speaker(client, Load(stream=True, tokens=comparison.tokens)),
            "gateway": _through(session, comparison.tokens),
        }
        with tqdm(desc="gateway", total=len(WAYS) * (comparison.rounds + 1) * comparison.streams, unit="stream") as bar:
            for number in range(comparison.rounds + 1):
                pauses = np.random.default_rng(number).exponential(comparison.pause_s, comparison.streams)
                for way in WAYS if number % 2 else reversed(WAYS):
                    loaded = await closed_loop(speak[way], comparison.clients, comparison.streams, bar.update, pauses)
                    if number:
                        runs[way].append(_summary(loaded))
    return runs


def _summary(loaded: Loaded) -> dict[str, Any]:
    samples = [round(sum(chunk.audio_s for chunk in one.chunks) * SAMPLE_RATE) for one in loaded.outcomes]
    whole = asdict(summarize(*loaded)) | asdict(summarize_streams(loaded.outcomes, buffer_s=0.0))
    return whole | {"samples": samples}


def _through(session: aiohttp.ClientSession, tokens: int) -> Speak:
    async def speak(number: int) -> AsyncIterator[float]:
        body = {
            "model": "chattts",
            "voice": "default",
            "input": sentence(number),
            "response_format": "pcm",
            "seed": number,
            "refine": False,
            "min_new_tokens": tokens,
            "max_new_tokens": tokens,
        }
        try:
            async with session.post("/v1/audio/speech", json=body) as answer:
                if answer.status == 503:
                    raise OverloadedError(await answer.text())
                if answer.status != 200:
                    raise ServerError(await answer.text(), str(answer.status))
                async for part in answer.content.iter_any():
                    yield len(part) / SAMPLE_BYTES / SAMPLE_RATE
        except aiohttp.ClientError as error:
            raise ConnectionFailedError(str(error)) from error

    return speak


def _first(runs: list[dict[str, Any]], share: float) -> float:
    return percentile([seconds for one in runs for seconds in one["first_s"]], share)


def _row(way: str, runs: list[dict[str, Any]]) -> list[object]:
    streams, errors = sum(one["requests"] for one in runs), sum(sum(one["errors"].values()) for one in runs)
    rate = sum(one["answered"] for one in runs) / sum(one["seconds"] for one in runs)
    samples = sum(sum(one["samples"]) for one in runs)
    return [way, streams, errors, 1e3 * _first(runs, 0.5), 1e3 * _first(runs, 0.95), rate, samples]
