"""What the gateway costs: the same streams through it over HTTP and straight from Triton over gRPC, side by side.

Both ways have callers of their own, who are at work at the same time, so that whatever the machine does happens to
both. The gateway has one core for itself and all callers, the server the others. Each stream has the same sentence and
tokens both ways, and every sample of it is counted.
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
from chattts_client import AsyncTTSClient, ConnectionFailedError, OverloadedError, ServerError
from tqdm import tqdm

from bench import report
from bench.load import Loaded, Speak, closed_loop, percentile, summarize
from bench.playback import summarize_streams
from bench.repository import FOLDER, sentence
from bench.server import Load, speaker
from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.launcher.running import running_server
from gateway.process import running_gateway

Runs = dict[str, dict[str, Any]]

WAYS = ("grpc", "gateway")
SHARES = (0.5, 0.95)  # percentiles of first audio
RESAMPLES = 2_000
SAMPLE_BYTES = 2


@dataclass(frozen=True)
class Comparison:
    """What to send, each way.

    Attributes:
        clients: that speak at once.
        streams: of all of them together, after the first one of each.
        tokens: of each stream.
        pause_s: that a client makes before each stream, evenly distributed up to twice this mean; without pauses the
            server is saturated, and first audio tells of its queue alone.
    """

    clients: int = 64
    streams: int = 512
    tokens: int = 96
    pause_s: float = 20.0


def run(comparison: Comparison, repository: Path) -> Path:
    """Measure, print the table, write JSON; the path of that.

    Raises:
        ConfigError, SettingsError: a server does not start.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
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
    pairs = list(zip(*(runs[way]["samples"] for way in WAYS), strict=True))
    differing = sum(one != other for one, other in pairs)
    print(f"streams with another number of samples: {differing} of {len(pairs)}")
    added = {f"p{100 * share:g}": _added(runs, share) for share in SHARES}
    for name, found in added.items():
        print(
            "the gateway adds {ms:+.1f} ms ({low:+.1f} to {high:+.1f}) to the {name} of first audio".format(
                name=name, **found
            )
        )
    return {"added": added, "differing": differing}


async def measure(comparison: Comparison, triton: str, url: str) -> Runs:
    """Of each way what came of its streams, with the samples of every one.

    First audio is that of the streams after each caller's first: without pauses those begin in one moment, and the last
    of them is served last.
    """
    connector = aiohttp.TCPConnector(limit=0)
    streams = comparison.clients + comparison.streams
    pauses = np.random.default_rng(0).uniform(0, 2 * comparison.pause_s, (len(WAYS), streams))
    async with AsyncTTSClient(triton) as client, aiohttp.ClientSession(url, connector=connector) as session:
        speak = {
            "grpc": speaker(client, Load(stream=True, tokens=comparison.tokens)),
            "gateway": _through(session, comparison.tokens),
        }
        with tqdm(desc="gateway", total=len(WAYS) * streams, unit="stream") as bar:
            both = zip(speak.values(), pauses, strict=True)
            loops = (closed_loop(one, comparison.clients, streams, bar.update, some) for one, some in both)
            loaded = await asyncio.gather(*loops)
    return {way: _summary(one, comparison.clients) for way, one in zip(speak, loaded, strict=True)}


def _summary(loaded: Loaded, num_first: int) -> dict[str, Any]:
    samples = [round(sum(chunk.audio_s for chunk in one.chunks) * SAMPLE_RATE) for one in loaded.outcomes]
    whole = asdict(summarize(*loaded)) | asdict(summarize_streams(loaded.outcomes[num_first:], buffer_s=0.0))
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


def _added(runs: Runs, share: float) -> dict[str, float]:
    """Milliseconds that the gateway adds to percentile `share` of first audio, and a 95 % interval by the bootstrap."""
    first_ms = [1e3 * np.asarray(runs[way]["first_s"]) for way in WAYS]
    generator = np.random.default_rng(0)
    samples = [generator.choice(values, (RESAMPLES, len(values))) for values in first_ms]
    direct, through = (np.quantile(sample, share, axis=1, method="inverted_cdf") for sample in samples)
    low, high = np.quantile(through - direct, (0.025, 0.975))
    direct_ms, through_ms = (percentile(list(values), share) for values in first_ms)
    return {"ms": float(through_ms - direct_ms), "low": float(low), "high": float(high)}


def _row(way: str, run: dict[str, Any]) -> list[object]:
    errors, rate = sum(run["errors"].values()), run["answered"] / run["seconds"]
    first = [1e3 * percentile(run["first_s"], share) for share in SHARES]
    return [way, run["requests"], errors, *first, rate, sum(run["samples"])]
