"""What the host costs: the whole server under load, with a language model that only waits (`bench.paced`).

Sentences come when they come (Poisson), first as whole answers, then as streams, at one rate after the other until the
server no longer keeps up. CPU time is that of its processes and hardly depends on what else the machine does.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chattts_client import AsyncTTSClient, SynthesisOptions
from tqdm import tqdm

from bench import host_engine, report, silence
from bench.load import Speak, closed_loop, open_loop, poisson_arrivals, summarize
from bench.paced import Pace
from bench.repository import FOLDER, sentence, with_settings
from bench.watch import process_cpu_seconds
from chattts_serving.engine.gpt_config import GPTConfig
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import running_server

ENGINE_BATCHES = [64, 256]
WAYS = ("whole", "streams")
WARM_REQUESTS = 32
KEPT_UP = 0.9  # of the sentences offered a second, answered
PROFILE_HZ = 200
MOST_FUNCTIONS = 25
COLUMNS = {  # of the table, by field
    "way": "answers",
    "rate": "offered/s",
    "sentences_per_s": "answered/s",
    "p50_s": "p50 s",
    "p99_s": "p99 s",
    "errors": "errors",
    "cpu_ms": "CPU ms a sentence",
    "sentences_a_core": "sentences/s a core",
    "busiest": "busiest process",
    "busiest_share": "% of a core",
    "client_cores": "client cores",
}


@dataclass(frozen=True)
class HostLoad:
    """What to send, and what to pretend.

    Attributes:
        pace: of the language model.
        max_sequences: of its batch.
        rates: sentences a second, ascending.
        seconds: of each rate.
        timeout_s: of a request.

    Raises:
        ConfigError: a number is out of its range.
    """

    pace: Pace
    max_sequences: int
    rates: tuple[float, ...]
    seconds: float
    timeout_s: float

    def __post_init__(self) -> None:
        """Check the numbers."""
        numbers = (self.pace.tokens, self.max_sequences, self.seconds, self.timeout_s, *self.rates)
        if min(numbers) <= 0:
            raise ConfigError(f"tokens, lanes, rates, seconds and timeout must be above 0: {numbers}")


def parse_pace(tokens: int, steps: Sequence[str]) -> Pace:
    """The pace of "SEQUENCES:MILLISECONDS" texts.

    Raises:
        ConfigError: one of them is no such text, or there is none.
    """
    try:
        pairs = sorted((int(size), float(ms)) for size, ms in (step.split(":") for step in steps))
    except ValueError:
        pairs = []
    if not pairs or min(size for size, _ in pairs) < 1 or min(ms for _, ms in pairs) < 0:
        raise ConfigError(f"--step-ms is '{' '.join(steps)}'; allowed is SEQUENCES:MILLISECONDS, once or more")
    return Pace(tokens, tuple(pairs))


def run(load: HostLoad, repository: Path | None, ways: Sequence[str]) -> Path:
    """Measure the engine's thread and, where there is a `repository`, the server in each of `ways`; the JSON's path.

    Raises:
        ConfigError: the repository is not whole, or the server does not start.
    """
    with tqdm(desc="engine", total=host_engine.num_rows(ENGINE_BATCHES), unit="row") as bar:
        engine = host_engine.measure(ENGINE_BATCHES, load.pace.tokens, bar.update)
    columns = host_engine.COLUMNS
    print(report.table(columns, [[row[column] for column in columns] for row in engine]))
    results: dict[str, object] = {"settings": {**asdict(load), "repository": str(repository)}, "engine": engine}
    if repository is not None:
        results |= _measure_server(load, repository, ways)
    path = report.write("host", results)
    print(f"raw numbers: {path}")
    return path


def _measure_server(load: HostLoad, repository: Path, ways: Sequence[str]) -> dict[str, object]:
    print("language model, decoder and vocoder compute nothing: what they cost on a GPU is not in here")
    levels: list[dict[str, Any]] = []
    with running_server(paced_repository(load, repository), log_path=FOLDER / "server_host.log") as server:
        for way in ways:
            levels += asyncio.run(_measure_way(load, way, server.grpc_url, server.launcher.pid))
        print(report.table(tuple(COLUMNS.values()), [[_shown(level, key) for key in COLUMNS] for level in levels]))
        knees = {way: _knee(levels, way) for way in ways}
        for way, knee in knees.items():
            print(_words(way, knee))
        functions = {
            way: asyncio.run(_profile(load, way, knee["rate"], server.grpc_url, server.launcher.pid))
            for way, knee in knees.items()
            if knee
        }
    return {"models_compute": False, "levels": levels, "knees": knees, "functions": functions}


def paced_repository(load: HostLoad, repository: Path) -> Path:
    """A copy of `repository` in FOLDER whose gpt_decoder only waits, and whose decoder and vocoder compute nothing.

    Raises:
        ConfigError: as `with_settings`.
    """
    copy = with_settings(
        repository,
        FOLDER / "repository_host",
        max_sequences=load.max_sequences,
        max_requests=4 * load.max_sequences,
        max_batch_requests=load.max_sequences,
    )
    folder, here = copy / "gpt_decoder" / "1", Path(__file__).parent
    (folder / "model.py").rename(folder / "served.py")
    shutil.copyfile(here / "paced_model.py", folder / "model.py")
    shutil.copyfile(here / "paced.py", folder / "paced.py")
    load.pace.write(folder)
    silence.write(copy, GPTConfig.load(folder).hidden_size)
    return copy


async def _measure_way(load: HostLoad, way: str, url: str, root: int) -> list[dict[str, Any]]:
    levels: list[dict[str, Any]] = []
    async with AsyncTTSClient(url, "grpc", timeout=load.timeout_s) as client:
        speak = _speaker(client, way, load.pace.tokens)
        await closed_loop(speak, WARM_REQUESTS, WARM_REQUESTS, lambda: None)
        for rate in load.rates:
            level = await _measure_level(load, way, rate, speak, root)
            levels.append(level)
            if not level["kept_up"]:
                break
    return levels


async def _measure_level(load: HostLoad, way: str, rate: float, speak: Speak, root: int) -> dict[str, Any]:
    arrivals = poisson_arrivals(rate, max(1, round(rate * load.seconds)), seed=0)
    before, started, client = process_cpu_seconds(root), time.perf_counter(), time.process_time()
    with tqdm(desc=f"{way}, {rate:g}/s", total=len(arrivals), unit="sentence") as bar:
        outcomes, seconds = await open_loop(speak, arrivals, bar.update)
    wall, client = time.perf_counter() - started, time.process_time() - client
    used = {name: cpu - before.get((pid, name), 0.0) for (pid, name), cpu in sorted(process_cpu_seconds(root).items())}
    summary = summarize(outcomes, seconds)
    answered = max(1, summary.answered)
    cpu_ms = {name: 1e3 * cpu / answered for name, cpu in used.items()}
    busiest = max(used, key=used.__getitem__)
    return {
        "way": way,
        "rate": rate,
        "kept_up": bool(summary.answered == len(arrivals) and KEPT_UP * seconds <= arrivals[-1] - arrivals[0]),
        **asdict(summary),
        "cpu_ms": sum(cpu_ms.values()),
        "cpu_ms_by_process": cpu_ms,
        "core_share_by_process": {name: cpu / wall for name, cpu in used.items()},
        "sentences_a_core": 1e3 / sum(cpu_ms.values()),
        "busiest": busiest,
        "busiest_share": 100 * used[busiest] / wall,
        "client_cores": client / wall,
    }


def _speaker(client: AsyncTTSClient, way: str, tokens: int) -> Speak:
    """Speaks sentences that end where `Pace` says."""

    def check(made: int) -> None:
        if made != tokens:
            raise AssertionError(f"the server made {made} tokens, not {tokens}")

    async def whole(number: int) -> AsyncIterator[float]:
        speech = await client.synthesize(sentence(number), SynthesisOptions(seed=number, skip_refine=True))
        check(speech.num_tokens)
        yield speech.duration

    async def streamed(number: int) -> AsyncIterator[float]:
        made = 0
        async for chunk in client.stream(sentence(number), SynthesisOptions(seed=number, skip_refine=True)):
            made += chunk.num_tokens
            yield chunk.duration
        check(made)

    return streamed if way == "streams" else whole


def _knee(levels: Sequence[dict[str, Any]], way: str) -> dict[str, Any] | None:
    """The last level that the server kept up with."""
    kept_up = [level for level in levels if level["way"] == way and level["kept_up"]]
    return kept_up[-1] if kept_up else None


def _words(way: str, knee: dict[str, Any] | None) -> str:
    if knee is None:
        return f"{way}: the server kept up with none of the rates"
    parts = sorted(knee["cpu_ms_by_process"].items(), key=lambda part: -part[1])
    named = ", ".join(f"{name} {ms:.2f}" for name, ms in parts if ms >= 0.01)
    return f"{way}, {knee['rate']:g}/s, kept up with; CPU ms a sentence: {named}"


def _shown(level: dict[str, Any], key: str) -> object:
    if key == "errors":
        return ", ".join(f"{count} {kind}" for kind, count in sorted(level[key].items())) or "0"
    return level[key]


async def _profile(load: HostLoad, way: str, rate: float, url: str, root: int) -> dict[str, list[list[object]]]:
    """Where Python processes spend their time: by process, [function, CPU ms a sentence], the most first.

    Functions are counted with what they call that is no Python. {} without py-spy, which slows what it looks at, so
    that the level is run once more.
    """
    program = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        print("functions not looked at: py-spy is not installed")
        return {}
    names = {pid: name for pid, name in process_cpu_seconds(root) if "." not in name}
    with ExitStack() as stack:
        async with AsyncTTSClient(url, "grpc", timeout=load.timeout_s) as client:
            speak = _speaker(client, way, load.pace.tokens)
            paths, watching = {}, []
            for pid, name in names.items():
                paths[name] = FOLDER / f"functions_{way}_{name}.txt"
                command = [program, "record", "--format=raw", f"--rate={PROFILE_HZ}", f"--pid={pid}", "--nonblocking"]
                command += [f"--duration={round(load.seconds)}", f"--output={paths[name]}"]
                watching.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # noqa: S603
                stack.callback(watching[-1].wait)
            level = await _measure_level(load, way, rate, speak, root)
    found = {}
    for name, path in paths.items():
        with suppress(FileNotFoundError):  # no Python in it, or py-spy may not look
            found[name] = _functions(path.read_text(), level["cpu_ms_by_process"][name])
    return found


def _functions(text: str, cpu_ms: float) -> list[list[object]]:
    """The innermost functions of collapsed stacks, one "A;B;C COUNT" a line, which share `cpu_ms` by their counts."""
    counts: Counter[str] = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        counts[stack.rpartition(";")[2]] += int(count)
    total = sum(counts.values())
    return [[name, cpu_ms * count / total] for name, count in counts.most_common(MOST_FUNCTIONS)]
