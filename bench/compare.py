"""ChatTTS and this server on the same checkpoint, sentences and token counts, taking turns in one run.

ChatTTS runs in this process with its defaults (batches of 4), through the methods that its `infer` calls, so that no
text is refined or split; the server runs as users run it. Both make audio from text; refining is off in both.
"""

from __future__ import annotations

import logging
import re
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench import report
from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.server import RunningServer, running_server
from chattts_serving.tritonserver import ROOT
from client import TTSClient
from export.chattts_package import load_chat

CHATTTS_BATCH = 4  # ChatTTS 0.2.5, `max_split_batch`
SENTENCES = (
    "The library opens at nine and closes when the last reader has gone home.",
    "Please bring the blue folder to the meeting room on the second floor.",
    "今天的会议推迟到下午三点，请大家准时参加。",
    "昨天晚上下了一场大雨，路上有很多积水。",
)


@dataclass(frozen=True)
class Turn:
    """One measurement: what ran, how many sentences at once, and how long all of them took in seconds."""

    system: str
    concurrency: int
    seconds: float


def run(checkpoint: Path, repository: Path, *, tokens: int, concurrency: int, rounds: int, precision: str) -> None:
    """Measure, print table and ratios, write the JSON.

    Args:
        checkpoint: folder in the official layout.
        repository: its export.
        tokens: audio tokens of each sentence.
        concurrency: sentences at once in the concurrent case.
        rounds: turns of each system in each case; medians count.
        precision: of the server's GPT, "fp32" or "int8".
    """
    logging.getLogger("ChatTTS").setLevel(logging.ERROR)
    chat = load_chat(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    chat.logger.setLevel(logging.ERROR)
    folder = ROOT / "build" / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    served = _with_precision(repository, folder / "repository", precision)
    with running_server(served, log_path=folder / "server.log") as server:
        systems: dict[str, Callable[[int], None]] = {
            "ChatTTS": lambda count: _speak_by_chattts(chat, count, tokens),
            "server": lambda count: _speak_by_server(server, count, tokens),
        }
        for speak in systems.values():
            speak(1)  # warm
        turns = []
        plan = [(count, name) for _ in range(rounds) for count in (1, concurrency) for name in systems]
        for count, name in tqdm(plan, desc="compare", unit="turn"):
            started = time.perf_counter()
            systems[name](count)
            turns.append(Turn(name, count, time.perf_counter() - started))
    _report(turns, tokens, concurrency, precision)


def _speak_by_chattts(chat: Any, count: int, tokens: int) -> None:
    params = chat.InferCodeParams(
        spk_emb=chat.sample_random_speaker(), min_new_token=tokens, max_new_token=tokens, show_tqdm=False
    )
    texts = _texts(count)
    for start in range(0, count, CHATTTS_BATCH):
        batch = [chat.normalizer(text) for text in texts[start : start + CHATTTS_BATCH]]
        (result,) = chat._infer_code(batch, False, chat.device, True, params)
        if any(len(ids) != tokens for ids in result.ids):
            raise AssertionError(f"ChatTTS made {[len(ids) for ids in result.ids]} tokens, not {tokens}")
        chat._decode_to_wavs(result.hiddens, True)


def _speak_by_server(server: RunningServer, count: int, tokens: int) -> None:
    def speak(text: str) -> None:
        speech = client.synthesize(text, skip_refine=True, min_new_tokens=tokens, max_new_tokens=tokens)
        if speech.num_tokens != tokens:
            raise AssertionError(f"the server made {speech.num_tokens} tokens, not {tokens}")

    with TTSClient(server.grpc_url) as client, ThreadPoolExecutor(count) as pool:
        list(pool.map(speak, _texts(count)))


def _texts(count: int) -> list[str]:
    return [SENTENCES[place % len(SENTENCES)] for place in range(count)]


def _with_precision(repository: Path, folder: Path, precision: str) -> Path:
    """A copy of `repository`, its artifacts linked, whose GPT runs in `precision`."""
    shutil.copytree(
        repository, folder, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve())
    )
    config = folder / "gpt_decoder" / "config.pbtxt"
    text, count = re.subn(r'(key: "precision" value: \{ string_value: ")\w+', rf"\g<1>{precision}", config.read_text())
    if count != 1:
        raise AssertionError(f"{config} sets 'precision' {count} times, not once")
    config.unlink()
    config.write_text(text)
    return folder


def _report(turns: list[Turn], tokens: int, concurrency: int, precision: str) -> None:
    def median(system: str, count: int) -> float:
        return statistics.median(turn.seconds for turn in turns if (turn.system, turn.concurrency) == (system, count))

    rows = []
    for count in (1, concurrency):
        for system in ("ChatTTS", "server"):
            seconds = median(system, count)
            rtf = seconds / (count * num_samples(tokens) / SAMPLE_RATE)
            rows.append((system, count, seconds, count * tokens / seconds, count / seconds, rtf))
    print(report.table(("system", "sentences", "seconds", "tokens/s", "sentences/s", "RTF"), rows))
    ratios = {
        "single": median("ChatTTS", 1) / median("server", 1),
        "concurrent": median("ChatTTS", concurrency) / median("server", concurrency),
        "rtf": rows[-1][-1],
    }
    settings = {"tokens": tokens, "concurrency": concurrency, "precision": precision, "chattts_batch": CHATTTS_BATCH}
    path = report.write("compare", {"settings": settings, "turns": [asdict(turn) for turn in turns], "ratios": ratios})
    print(f"raw numbers: {path}")
    print("speedup_vs_chattts " + " ".join(f"{name}={ratio:.2f}" for name, ratio in ratios.items()))
