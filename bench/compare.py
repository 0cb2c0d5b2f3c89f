"""ChatTTS and this server on the same checkpoint, sentences and token counts, taking turns in one run.

ChatTTS runs in this process with its defaults (batches of 4), through the methods that its `infer` calls, so that no
text is refined or split; the server runs as users run it. Both make audio from text; refining is off in both.
Each precision has a server of its own; all are up all the time, and one system at a time computes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from chattts_client import TTSClient
from tqdm import tqdm

from bench import report
from bench.chattts import CHATTTS_BATCH, load_chattts, speak_by_chattts
from bench.plots import draw_beside
from bench.repository import FOLDER, precision_of, sentence, with_precision
from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.launcher.running import running_server

CHATTTS = "ChatTTS"


@dataclass(frozen=True)
class Turn:
    """One measurement: what ran, how many sentences at once, and how long all of them took in seconds."""

    system: str
    concurrency: int
    seconds: float


def run(
    checkpoint: Path, repository: Path, *, tokens: int, concurrency: int, rounds: int, precisions: Sequence[str]
) -> None:
    """Measure, write JSON and plot, print table and ratios.

    The last line for each precision is "speedup_vs_chattts single=X concurrent=X rtf=X": how many times as fast as
    ChatTTS the server is with one sentence and with `concurrency`, and its seconds per second of audio with the latter.

    Args:
        checkpoint: folder in the official layout.
        repository: its export.
        tokens: audio tokens of each sentence.
        concurrency: sentences at once in the concurrent case.
        rounds: turns of each system in each case; medians count.
        precisions: of the server's GPT; empty is what `repository` says.

    Raises:
        ConfigError: a server does not start.
    """
    precisions = list(dict.fromkeys(precisions)) or [precision_of(repository)]
    chat = load_chattts(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    systems: dict[str, Callable[[int], None]] = {CHATTTS: lambda count: speak_by_chattts(chat, count, tokens)}
    turns = []
    with ExitStack() as servers:
        for precision in precisions:
            served = with_precision(repository, precision)
            server = servers.enter_context(running_server(served, log_path=FOLDER / f"server_{precision}.log"))
            systems[_server(precision)] = partial(_speak_by_server, server.grpc_url, tokens=tokens)
        for speak in systems.values():
            speak(1)  # warm
        plan = [(count, name) for _ in range(rounds) for count in (1, concurrency) for name in systems]
        for count, name in tqdm(plan, desc="compare", unit="turn"):
            started = time.perf_counter()
            systems[name](count)
            turns.append(Turn(name, count, time.perf_counter() - started))
    ratios = {precision: speedup(turns, precision, concurrency, tokens) for precision in precisions}
    settings = {
        "tokens": tokens,
        "concurrency": concurrency,
        "rounds": rounds,
        "precisions": precisions,
        "chattts_batch": CHATTTS_BATCH,
    }
    path = report.write("compare", {"settings": settings, "turns": [asdict(turn) for turn in turns], "ratios": ratios})
    print(f"raw numbers: {path}")
    draw_beside([path])
    print(turn_table(turns, tokens))
    print(speedup_lines(ratios))


def speedup(turns: Sequence[Turn], precision: str, concurrency: int, tokens: int) -> dict[str, float]:
    """The ratios "single" and "concurrent" of ChatTTS's time to the server's, and the server's "rtf"."""
    server = _server(precision)
    return {
        "single": _median(turns, CHATTTS, 1) / _median(turns, server, 1),
        "concurrent": _median(turns, CHATTTS, concurrency) / _median(turns, server, concurrency),
        "rtf": _median(turns, server, concurrency) / _audio_s(concurrency, tokens),
    }


def speedup_lines(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """What `speedup` found for each precision, as the last lines of the output; programs read them."""
    return "\n".join(
        f"precision {precision}\n"
        "speedup_vs_chattts single={single:.2f} concurrent={concurrent:.2f} rtf={rtf:.4f}".format(**found)
        for precision, found in ratios.items()
    )


def turn_table(turns: Sequence[Turn], tokens: int) -> str:
    """A row for each system and number of sentences: median, least, most seconds, and what the median comes to."""
    rows = []
    for count, system in sorted({(turn.concurrency, turn.system) for turn in turns}):
        seconds = _median(turns, system, count)
        spread = _seconds(turns, system, count)
        rtf = seconds / _audio_s(count, tokens)
        rows.append((system, count, seconds, min(spread), max(spread), count * tokens / seconds, count / seconds, rtf))
    return report.table(("system", "sentences", "seconds", "least", "most", "tokens/s", "sentences/s", "RTF"), rows)


def _server(precision: str) -> str:
    return f"server {precision}"


def _seconds(turns: Sequence[Turn], system: str, count: int) -> list[float]:
    return [turn.seconds for turn in turns if (turn.system, turn.concurrency) == (system, count)]


def _median(turns: Sequence[Turn], system: str, count: int) -> float:
    return statistics.median(_seconds(turns, system, count))


def _audio_s(count: int, tokens: int) -> float:
    return count * num_samples(tokens) / SAMPLE_RATE


def _speak_by_server(url: str, count: int, *, tokens: int) -> None:
    def speak(number: int) -> None:
        speech = client.synthesize(sentence(number), skip_refine=True, min_new_tokens=tokens, max_new_tokens=tokens)
        if speech.num_tokens != tokens:
            raise AssertionError(f"the server made {speech.num_tokens} tokens, not {tokens}")

    with TTSClient(url) as client, ThreadPoolExecutor(count) as pool:
        list(pool.map(speak, range(count)))
