"""Load on the live server, as its users bring it: the project's client, over the network stack, text in, audio out.

Answers come whole, or as streams, which are played while they arrive (`bench.playback`) and tell where the time to
first audio went (`bench.first_audio`).

Closed loop: so many callers, each of which sends its next sentence when it has the last one; this shows throughput.
Open loop: sentences come when they come (Poisson), however the server fares, and latency counts from the moment at
which each was due; this shows how long callers wait at a given load.

The client is the asyncio one: over gRPC it took 0.6 ms of CPU time a request, threads 0.7 (measured on 2 cores).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chattts_client import AsyncTTSClient, SynthesisOptions
from chattts_client.options import Mode
from chattts_client.transport import ProtocolName
from tqdm import tqdm

from bench import first_audio, report
from bench.beside import Beside, long_text_streams, whole_answers
from bench.first_audio import Notes
from bench.load import Loaded, Speak, Summary, closed_loop, open_loop, poisson_arrivals, slope, summarize
from bench.playback import summarize_streams
from bench.plots import draw_beside
from bench.repository import FOLDER, precision_of, sentence, with_precision
from bench.spans import SpanReceiver, receiving
from bench.watch import MB, Gpu, Watch, memory_of
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server
from chattts_serving.variables import TRACES_URL

DEFAULT_CONCURRENCY = (1, 4, 16, 64)
SOAK_CONCURRENCY = 16
SOAK_BLOCK = 50  # requests between two looks at the memory
WHOLE_TOKENS = 96  # of a whole answer beside streams: 2 s
WHOLE_FIRST = 65_536  # the sentence of the first of them, far from those of streams
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
    "audible_p50_s": "audible p50 s",
    "audible_p95_s": "p95 s",
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
        spans: where its models send the spans of traces, if that can be seen.
    """

    url: str
    root: int | None
    spans: SpanReceiver | None = None


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
        whole: callers of whole answers of WHOLE_TOKENS beside each closed level of streams, run another time; 0: none.
        turns: how often each seed of a rate is run, one time after the other: what differs between them is noise.

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
    whole: int = 0
    turns: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        numbers = (self.tokens, self.timeout_s, *self.concurrency, *self.rates, self.seeds, self.turns)
        numbers += () if self.requests is None else (self.requests,)
        if min(numbers) <= 0:
            raise ConfigError(
                f"tokens, timeout, concurrency, rates, seeds, turns and requests must be above 0: {numbers}"
            )
        if self.soak and self.soak < 4 * SOAK_BLOCK:
            raise ConfigError(f"--soak is {self.soak}; allowed is {4 * SOAK_BLOCK} or more, or 0 for none")
        if not 0 <= self.buffer_ms < math.inf:
            raise ConfigError(f"--buffer is {self.buffer_ms:g}; allowed is 0 ms or more")
        if not self.stream and (self.mode, self.buffer_ms) != ("exact", 0.0):
            raise ConfigError("--mode and --buffer are of streams: they need --stream")
        if self.whole and (self.whole < 0 or not self.stream):
            raise ConfigError(f"--whole is {self.whole}; allowed is 0 or more, beside streams: it needs --stream")

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
        with _serving(with_precision(repository, precision, **settings or {}), precision, load) as target:
            paths.append(_measure(load, target, precision, settings))
    if len(paths) > 1:
        draw_beside(paths)
    return paths


@contextmanager
def _serving(repository: Path, precision: str, load: Load) -> Iterator[Target]:
    with ExitStack() as stack:
        spans = None
        if load.stream and load.protocol == "grpc":  # over HTTP Triton would have to trace, too
            spans = stack.enter_context(receiving())
            os.environ[TRACES_URL] = spans.url  # which the server inherits
            stack.callback(os.environ.pop, TRACES_URL)
        server = stack.enter_context(running_server(repository, log_path=FOLDER / f"server_{precision}.log"))
        yield Target(server.http_url if load.protocol == "http" else server.grpc_url, server.launcher.pid, spans)


def _measure(load: Load, target: Target, precision: str | None, changed: Mapping[str, str] | None = None) -> Path:
    gpu = _gpu()
    levels = asyncio.run(measure_levels(load, target, gpu))
    soak = asyncio.run(measure_soak(load, target)) if load.soak else None
    if levels:
        columns = STREAM_COLUMNS if load.stream else COLUMNS
        print(report.table(("load", *columns.values()), [_row(level, columns) for level in levels]))
        if load.stream:
            print(first_audio.show(levels))
        for level in levels:
            if whole := level.get("whole"):
                print(
                    f"beside {level['concurrency']} streams {level['beside_whole']} callers of whole answers got "
                    f"{whole['sentences_per_s']:.3g} sentences/s; p50 {whole['p50_s'] or math.nan:.3g} s"
                )
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
    """One dictionary a level: which it is (`_plan`), `Summary` and `Usage`.

    For streams `StreamSummary` too, and "first_parts_ms" where the target's spans can be seen: of each stream that was
    answered the parts of its time to first audio (`bench.first_audio.parts_of`).
    """
    plan = _plan(load)
    levels = []
    async with AsyncTTSClient(target.url, load.protocol, timeout=load.timeout_s) as client:
        said = min(16, max(load.concurrency, default=16))  # to warm up; no text comes twice
        with tqdm(desc="server", total=said + sum(where["requests"] for where in plan), unit="sentence") as bar:
            # Also refuses to measure a server that does not answer.
            _must_answer(summarize(*await closed_loop(speaker(client, load), said, said, bar.update)), target)
            for where in plan:
                notes = Notes()
                speak = speaker(client, load, notes, first=said, is_traced=target.spans is not None)
                said += where["requests"]
                async with _beside(where, client, load) as beside:
                    run = _loaded(where, speak, bar.update)
                    level = where | await _watched(run, load, target, gpu, notes)
                levels.append(level | ({"whole": asdict(beside.summary)} if beside and beside.summary else {}))
    return levels


def _beside(where: Mapping[str, Any], client: AsyncTTSClient, load: Load) -> AbstractAsyncContextManager[Beside | None]:
    if where["beside_whole"]:
        whole = replace(load, tokens=WHOLE_TOKENS, stream=False, mode="exact", buffer_ms=0.0, whole=0)
        return whole_answers(speaker(client, whole, first=WHOLE_FIRST), where["beside_whole"])
    return long_text_streams(client) if where["beside_long_text"] else nullcontext()


def _plan(load: Load) -> list[dict[str, Any]]:
    """What each level is: "loop" ("closed" or "open"), "concurrency" or "rate", "seed", "turn" and so on."""
    nothing = dict.fromkeys(("concurrency", "rate", "seed", "turn")) | {"beside_long_text": False, "beside_whole": 0}
    plan = []
    for concurrency in load.concurrency:
        where = nothing | {"loop": "closed", "concurrency": concurrency, "requests": load.num_closed(concurrency)}
        plan += [where | {"beside_long_text": beside} for beside in ((False, True) if load.long_text else (False,))]
        plan += [where | {"beside_whole": load.whole}] if load.whole else []
    for rate in load.rates:
        where = nothing | {"loop": "open", "rate": rate, "requests": load.num_open(rate)}
        plan += [where | {"seed": seed, "turn": turn} for seed in range(load.seeds) for turn in range(load.turns)]
    return plan


def _loaded(where: Mapping[str, Any], speak: Speak, advance: Callable[[], object]) -> Awaitable[Loaded]:
    if where["loop"] == "closed":
        return closed_loop(speak, where["concurrency"], where["requests"], advance)
    return open_loop(speak, poisson_arrivals(where["rate"], where["requests"], where["seed"]), advance)


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


def speaker(
    client: AsyncTTSClient, load: Load, notes: Notes | None = None, *, first: int = 0, is_traced: bool = False
) -> Speak:
    """Speaks sentences of `load.tokens` tokens, as one whole answer or as a stream.

    Args:
        client: by which it speaks.
        load: the tokens, and how the answer comes.
        notes: takes what there is to be noted of streams.
        first: the sentence of request 0; those that follow have the next ones.
        is_traced: whether streams are part of traces.
    """
    noted = notes or Notes()

    def options(number: int) -> SynthesisOptions:
        return SynthesisOptions(seed=number, skip_refine=True, min_new_tokens=load.tokens, max_new_tokens=load.tokens)

    async def whole(number: int) -> AsyncIterator[float]:
        speech = await client.synthesize(sentence(first + number), options(number))
        _check_tokens(speech.num_tokens, load.tokens)
        yield speech.duration

    async def streamed(number: int) -> AsyncIterator[float]:
        num_tokens, heard_s = 0, 0.0
        text, trace = sentence(first + number), noted.send(number)
        trace = trace if is_traced else ""
        async for chunk in client.stream(text, options(number), mode=load.mode, traceparent=trace):
            num_tokens += chunk.num_tokens
            yield chunk.duration
            noted.hear(number, chunk.audio, heard_s, chunk.sample_rate)
            heard_s += chunk.duration
        _check_tokens(num_tokens, load.tokens)

    return streamed if load.stream else whole


def _check_tokens(made: int, wanted: int) -> None:
    if made != wanted:
        raise AssertionError(f"the server made {made} tokens, not {wanted}")


async def _watched(run: Awaitable[Loaded], load: Load, target: Target, gpu: Gpu | None, notes: Notes) -> dict[str, Any]:
    with Watch(target.root, gpu) as watch:
        outcomes, seconds = await run
    streams: dict[str, Any] = {}
    if load.stream:
        streams = asdict(summarize_streams(outcomes, load.buffer_ms / 1e3, notes.onset_s))
        if target.spans is not None:
            streams["first_parts_ms"] = await first_audio.parts_of_all(target.spans, notes, outcomes)
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
    name += f" + {level['beside_whole']} whole" * bool(level["beside_whole"])
    name += " + long text" * level["beside_long_text"] + ", again" * bool(level["turn"])
    return [name, *(_errors(level[key]) if key == "errors" else level[key] for key in columns)]


def _errors(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items())) or "0"
