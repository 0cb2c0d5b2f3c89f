"""Load on the live server, as its users bring it: the project's client, over the network stack, text in, audio out.

Answers come whole, or as streams, which are played while they arrive (`bench.playback`).

Closed loop: so many callers, each of which sends its next sentence when it has the last one; this shows throughput.
Open loop: sentences come when they come (Poisson), however the server fares, and latency counts from the moment at
which each was due; this shows how long callers wait at a given load.

The client is the asyncio one: over gRPC it took 0.6 ms of CPU time a request, threads 0.7 (measured on 2 cores).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chattts_client import AsyncTTSClient, SynthesisOptions
from chattts_client.options import Mode
from chattts_client.transport import ProtocolName
from tqdm import tqdm

from bench import report
from bench.load import Loaded, Speak, Summary, closed_loop, open_loop, poisson_arrivals, slope, summarize
from bench.playback import summarize_streams
from bench.plots import draw_beside
from bench.repository import FOLDER, precision_of, sentence, with_precision
from bench.watch import MB, Gpu, Watch, memory_of
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server

DEFAULT_CONCURRENCY = (1, 4, 16, 64)
SOAK_CONCURRENCY = 16
SOAK_BLOCK = 50  # requests between two looks at the memory
LONG_TEXT = (
    "The old clock in the market square was slow again, and nobody had told the baker. "
    "今天天气真不错，我们一起去公园散步，好吗？"
) * 96  # 10,000 characters, 192 sentences
COLUMNS = {  # of the table, by field
    "answered": "answered",
    "errors": "errors",
    "sentences_per_s": "sentences/s",
    "audio_s_per_s": "audio s/s",
    "rtf": "RTF",
    "p50_s": "p50 s",
    "p90_s": "p90 s",
    "p99_s": "p99 s",
    "server_cpu_share": "CPU share",
    "client_cpu_cores": "client cores",
    "gpu_share": "GPU share",
    "gpu_memory_mb": "GPU MB",
    "peak_memory_mb": "peak MB",
    "memory_after_mb": "MB after",
}
STREAM_COLUMNS = {
    "answered": "answered",
    "errors": "errors",
    "first_p50_s": "first p50 s",
    "first_p90_s": "p90 s",
    "first_p95_s": "p95 s",
    "first_p99_s": "p99 s",
    "p50_s": "end p50 s",
    "p90_s": "p90 s",
    "p99_s": "p99 s",
    "audio_s_per_s": "audio s/s",
    "rtf": "RTF",
    "with_underruns": "with underruns",
    "underruns": "underruns",
    "silence_s": "silence s",
    "chunks_per_stream": "chunks",
    "server_cpu_share": "CPU share",
    "client_cpu_cores": "client cores",
    "gpu_share": "GPU share",
    "peak_memory_mb": "peak MB",
}


@dataclass(frozen=True)
class Target:
    """The server under test.

    Attributes:
        url: "HOST:PORT" of the protocol.
        root: process id of its launcher; None where its processes cannot be watched.
    """

    url: str
    root: int | None


@dataclass(frozen=True)
class Load:
    """What to send.

    Attributes:
        protocol: "grpc" or "http".
        tokens: audio tokens of each sentence.
        timeout_s: how long a request may take.
        concurrency: levels of the closed loop, requests at once.
        rates: levels of the open loop, requests a second.
        seeds: runs of each rate, each with its own arrivals.
        requests: of each level; None takes as many as the level needs (`num_closed`, `num_open`).
        soak: requests of the soak, 4 * SOAK_BLOCK or more; 0 leaves it out.
        stream: take the answers as streams.
        mode: of the streams.
        buffer_ms: audio that a stream's player waits for before it starts.
        long_text: run each closed level a second time, beside a stream of 10,000 characters.

    Raises:
        ConfigError: a number is out of its range.
    """

    protocol: ProtocolName = "grpc"
    tokens: int = 96
    timeout_s: float = 120.0
    concurrency: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()
    seeds: int = 3
    requests: int | None = None
    soak: int = 0
    stream: bool = False
    mode: Mode = "exact"
    buffer_ms: float = 0.0
    long_text: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        numbers = (self.tokens, self.timeout_s, *self.concurrency, *self.rates, self.seeds, self.requests or 1)
        if min(numbers) <= 0:
            raise ConfigError(f"tokens, timeout, concurrency, rates, seeds and requests must be above 0: {numbers}")
        if self.soak and self.soak < 4 * SOAK_BLOCK:
            raise ConfigError(f"--soak is {self.soak}; allowed is {4 * SOAK_BLOCK} or more, or 0 for none")
        if not 0 <= self.buffer_ms < math.inf:
            raise ConfigError(f"--buffer is {self.buffer_ms:g}; allowed is 0 ms or more")
        if not self.stream and (self.mode, self.buffer_ms) != ("exact", 0.0):
            raise ConfigError("--mode and --buffer are of streams: they need --stream")

    def num_closed(self, concurrency: int) -> int:
        """Requests of one closed level: four for each caller."""
        return self.requests or max(16, 4 * concurrency)

    def num_open(self, rate: float) -> int:
        """Requests of one open level: 20 s of them."""
        return self.requests or max(32, math.ceil(20 * rate))


def run(
    load: Load,
    repository: Path,
    precisions: Sequence[str],
    url: str | None,
    pid: int | None,
    *,
    settings: Mapping[str, str] | None = None,
) -> list[Path]:
    """Measure each precision, print the tables, write JSON and plots; the paths of the JSON files.

    Args:
        load: what to send.
        repository: an export, served here unless there is a `url`.
        precisions: of the GPT, each with a server of its own; empty is what `repository` says.
        url: "HOST:PORT" of a server that runs already.
        pid: process id of its launcher (or of tritonserver), to watch its CPU time and memory.
        settings: further parameters of the GPT, in place of those of `repository`.

    Raises:
        ConfigError: the server does not start, or what is to be measured cannot be seen.
    """
    if load.soak and url and pid is None:
        raise ConfigError("--soak looks at the server's memory: with --url it needs --pid too")
    if url and settings:
        raise ConfigError("--set is for a server that is started here: with --url there is none")
    if url:
        return [_measure(load, Target(url, pid), None)]
    paths = []
    for precision in precisions or [precision_of(repository)]:
        with _serving(with_precision(repository, precision, **settings or {}), precision, load.protocol) as target:
            paths.append(_measure(load, target, precision, settings))
    if len(paths) > 1:
        draw_beside(paths)
    return paths


@contextmanager
def _serving(repository: Path, precision: str, protocol: ProtocolName) -> Iterator[Target]:
    with running_server(repository, log_path=FOLDER / f"server_{precision}.log") as server:
        yield Target(server.http_url if protocol == "http" else server.grpc_url, server.launcher.pid)


def _measure(load: Load, target: Target, precision: str | None, changed: Mapping[str, str] | None = None) -> Path:
    gpu = _gpu()
    levels = asyncio.run(measure_levels(load, target, gpu))
    soak = asyncio.run(measure_soak(load, target)) if load.soak else None
    if levels:
        columns = STREAM_COLUMNS if load.stream else COLUMNS
        print(report.table(("load", *columns.values()), [_row(level, columns) for level in levels]))
    if soak:
        print(
            f"memory over {load.soak} requests: {soak['slope_mb_per_100']:+.2f} MB per 100 requests, "
            f"{soak['second_half_slope_mb_per_100']:+.2f} in the second half; {_errors(soak['errors'])} errors"
        )
    settings = {**asdict(load), "precision": precision, "set": changed or {}, "url": None if precision else target.url}
    path = report.write("server", {"settings": settings, "levels": levels, "soak": soak})
    print(f"raw numbers: {path}")
    draw_beside([path])
    return path


async def measure_levels(load: Load, target: Target, gpu: Gpu | None) -> list[dict[str, Any]]:
    """One dictionary a level: which it is ("loop", "concurrency", "rate", "seed"), `Summary` and `Usage`.

    For streams `StreamSummary` too.
    """
    closed = [(concurrency, load.num_closed(concurrency)) for concurrency in load.concurrency]
    opened = [(rate, seed, load.num_open(rate)) for rate in load.rates for seed in range(load.seeds)]
    levels = []
    async with AsyncTTSClient(target.url, load.protocol, timeout=load.timeout_s) as client:
        speak = speaker(client, load)
        warm = min(16, max(load.concurrency, default=16))
        total = warm + (1 + load.long_text) * sum(plan[-1] for plan in closed) + sum(plan[-1] for plan in opened)
        with tqdm(desc="server", total=total, unit="sentence") as bar:
            # Also refuses to measure a server that does not answer.
            _must_answer(summarize(*await closed_loop(speak, warm, warm, bar.update)), target)
            for concurrency, requests in closed:
                for beside in (False, True) if load.long_text else (False,):
                    async with _long_text_streams(client) if beside else nullcontext():
                        run = closed_loop(speak, concurrency, requests, bar.update)
                        where = {"loop": "closed", "concurrency": concurrency, "rate": None, "seed": None}
                        where["beside_long_text"] = beside
                        levels.append(where | await _watched(run, load, target, gpu))
            for rate, seed, requests in opened:
                run = open_loop(speak, poisson_arrivals(rate, requests, seed), bar.update)
                where = {"loop": "open", "concurrency": None, "rate": rate, "seed": seed}
                levels.append(where | await _watched(run, load, target, gpu))
    return levels


@asynccontextmanager
async def _long_text_streams(client: AsyncTTSClient) -> AsyncIterator[None]:
    """A long text is spoken and heard, again and again, for the length of a block; it has begun when the block does."""
    begun = asyncio.Event()

    async def listen() -> None:
        while True:
            async with client.stream(LONG_TEXT, seed=0, skip_refine=True) as stream:
                async for _ in stream:
                    begun.set()

    listening = asyncio.create_task(listen())
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([listening, waiting], return_when=asyncio.FIRST_COMPLETED)
    try:
        if listening.done():
            listening.result()
        yield
        if listening.done():
            listening.result()
    finally:
        waiting.cancel()
        listening.cancel()
        await asyncio.wait([listening])


async def measure_soak(load: Load, target: Target) -> dict[str, Any]:
    """Memory of the server at rest after every SOAK_BLOCK requests, and how what it holds grows (see `Memory.held`).

    Raises:
        ConfigError: `target.root` is not known.
    """
    if target.root is None:
        raise ConfigError("without the server's process id its memory cannot be seen")
    requests, memory, errors = [], [], Counter[str]()
    async with AsyncTTSClient(target.url, load.protocol, timeout=load.timeout_s) as client:
        speak = speaker(client, load)
        with tqdm(desc="soak", total=load.soak, unit="sentence") as bar:
            for start in range(0, load.soak, SOAK_BLOCK):
                block = min(SOAK_BLOCK, load.soak - start)
                errors.update(summarize(*await closed_loop(speak, SOAK_CONCURRENCY, block, bar.update)).errors)
                requests.append(start + block)
                memory.append(memory_of(target.root))
    held = [one.held / MB for one in memory]
    half = len(held) // 2
    return {
        "requests": requests,
        "memory_mb": [one.pss / MB for one in memory],
        "held_mb": held,
        "slope_mb_per_100": 100 * slope(requests, held),
        "second_half_slope_mb_per_100": 100 * slope(requests[half:], held[half:]),
        "errors": dict(errors),
    }


def speaker(client: AsyncTTSClient, load: Load) -> Speak:
    """Speaks sentences of `load.tokens` tokens, as one whole answer or as a stream."""

    def options(number: int) -> SynthesisOptions:
        return SynthesisOptions(seed=number, skip_refine=True, min_new_tokens=load.tokens, max_new_tokens=load.tokens)

    async def whole(number: int) -> AsyncIterator[float]:
        speech = await client.synthesize(sentence(number), options(number))
        _check_tokens(speech.num_tokens, load.tokens)
        yield speech.duration

    async def streamed(number: int) -> AsyncIterator[float]:
        num_tokens = 0
        async for chunk in client.stream(sentence(number), options(number), mode=load.mode):
            num_tokens += chunk.num_tokens
            yield chunk.duration
        _check_tokens(num_tokens, load.tokens)

    return streamed if load.stream else whole


def _check_tokens(made: int, wanted: int) -> None:
    if made != wanted:
        raise AssertionError(f"the server made {made} tokens, not {wanted}")


async def _watched(run: Awaitable[Loaded], load: Load, target: Target, gpu: Gpu | None) -> dict[str, Any]:
    with Watch(target.root, gpu) as watch:
        outcomes, seconds = await run
    streams = asdict(summarize_streams(outcomes, load.buffer_ms / 1e3)) if load.stream else {}
    return {**asdict(summarize(outcomes, seconds)), **streams, **asdict(watch.usage)}


def _must_answer(warm: Summary, target: Target) -> None:
    if not warm.answered:
        raise ConfigError(f"{target.url} answered none of {warm.requests} requests: {_errors(warm.errors)}")


def _gpu() -> Gpu | None:
    try:
        return Gpu()
    except ConfigError as error:
        print(f"GPU not watched: {error}")
        return None


def _row(level: dict[str, Any], columns: Mapping[str, str]) -> list[object]:
    name = f"{level['concurrency']} at once" if level["loop"] == "closed" else f"{level['rate']:g}/s, {level['seed']}"
    if level.get("beside_long_text"):
        name += " + long text"
    return [name, *(_errors(level[key]) if key == "errors" else level[key] for key in columns)]


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items())) or "0"
