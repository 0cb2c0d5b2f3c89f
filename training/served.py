"""Whether a checkpoint is understood when it is served, and whether its voices are told apart."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from chattts_client import AsyncTTSClient, SynthesisOptions
from chattts_client.audio_file import save
from chattts_client.options import Mode

from bench.repository import with_precision
from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.launcher.running import RunningServer, running_server
from training.corpus import speak
from training.listen import Heard, Listener, word_error_rate
from training.modules import LogMel
from training.sentences import SETS, Set

Audio = npt.NDArray[np.float32]
Said = tuple[str, int]  # a voice, and the place of a sentence in its set
Way = Literal["one at a time", "streamed", "low latency", "16 at once"]
MODES: dict[Way, Mode] = {"streamed": "exact", "low latency": "low_latency"}
AT_ONCE = 16
MOST_TOKENS = 600  # of a sentence, 12.8 s
LENGTHS = 0.25  # by which a sentence may be shorter or longer than flite's
NUM_COEFFICIENTS = 20
PROCESSES = 2  # that listen


def listen(
    checkpoint: str,
    repository: Path,
    voices: list[str],
    *,
    of: Set,
    sentences: int,
    temperature: float,
    precisions: list[str],
    ways: Sequence[Way],
    out: Path | None,
) -> dict[str, float]:
    """Have the server say what was never learnt in every way, and print how many words were heard wrong, of flite, too;
    and how many sentences were as long as flite's.

    Args:
        checkpoint: as the export takes it.
        repository: where it is exported to.
        voices: flite's names.
        of: the set of sentences.
        sentences: the first so many, if there are.
        temperature: of the audio tokens.
        precisions: of the engine; each has a server of its own.
        ways: of asking.
        out: a folder for the recordings, of the first way in the first precision.

    Returns:
        The word error rate of each voice, of the first way in the first precision.
    """
    results: list[dict[str, float]] = []
    command = [sys.executable, "-m", "export", "--checkpoint", checkpoint, "--out", str(repository)]
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments
    said = [(voice, number) for voice in voices for number in range(len(SETS[of]()[:sentences]))]
    flite = {one: speak(one[0], SETS[of]()[one[1]])[0].astype(np.float32) / 32768 for one in said}
    print(_row("", voices))
    print(_row("flite itself", rates(heard(flite, of), voices)), flush=True)
    for precision in precisions:
        with running_server(with_precision(repository, precision), log_path=repository / "server.log") as server:
            for way in ways:
                audio = spoken(server, said, way, temperature, of)
                understood = heard(audio, of)
                results.append(rates(understood, voices))
                print(_row(f"{precision}, {way}", results[-1]))
                print(_row("  as long as flite", as_long(audio, flite, voices)), flush=True)
                if out is not None and len(results) == 1:
                    _keep(audio, understood, out)
    if len(voices) > 1:
        print(f"nearest to the centre of their own voice: {100 * told_apart(audio):.1f} %")
    return results[0]


def spoken(
    server: RunningServer, said: Iterable[Said], way: Way, temperature: float = 0.3, of: Set = "held out"
) -> dict[Said, Audio]:
    """What the server answers over gRPC, without refining; the seed is the place of the sentence."""
    return asyncio.run(_spoken(server, list(said), way, temperature, SETS[of]()))


async def _spoken(
    server: RunningServer, said: list[Said], way: Way, temperature: float, texts: Sequence[str]
) -> dict[Said, Audio]:
    places = asyncio.Semaphore(AT_ONCE if way == "16 at once" else 1)

    async def one(voice: str, number: int) -> Audio:
        text = texts[number]
        options = SynthesisOptions(
            speaker=voice, seed=number, temperature=temperature, skip_refine=True, max_new_tokens=MOST_TOKENS
        )
        async with places:
            if way not in MODES:
                return (await client.synthesize(text, options)).audio
            chunks = [chunk.audio async for chunk in client.stream(text, options, mode=MODES[way])]
            return np.concatenate(chunks)

    async with AsyncTTSClient(server.grpc_url, timeout=120) as client:
        audio = await asyncio.gather(*(one(*what) for what in said))
    return dict(zip(said, audio, strict=True))


def heard(audio: Mapping[Said, Audio], of: Set = "held out") -> dict[Said, Heard]:
    """What pocketsphinx writes down."""
    texts = [SETS[of]()[number] for _, number in audio]
    with ProcessPoolExecutor(PROCESSES) as pool:
        return dict(zip(audio, pool.map(_hear, audio.values(), texts, chunksize=8), strict=True))


def rates(understood: Mapping[Said, Heard], voices: Iterable[str]) -> dict[str, float]:
    """Word error rate of each voice."""
    return {
        voice: word_error_rate(one for (speaker, _), one in understood.items() if speaker == voice) for voice in voices
    }


def as_long(audio: Mapping[Said, Audio], flite: Mapping[Said, Audio], voices: Iterable[str]) -> dict[str, float]:
    """The share of each voice's sentences whose length is within LENGTHS of flite's: they end where their text ends."""
    ratios = {said: len(samples) / len(flite[said]) for said, samples in audio.items()}
    return {
        voice: float(np.mean([abs(ratio - 1) <= LENGTHS for (speaker, _), ratio in ratios.items() if speaker == voice]))
        for voice in voices
    }


def told_apart(audio: Mapping[Said, Audio]) -> float:
    """The share of recordings that are nearest to the centre of their own voice, in mean and spread of their cepstra.

    A recording is no part of the centres that it is compared with.
    """
    features = {said: timbre(samples) for said, samples in audio.items()}
    spread = np.std(list(features.values()), axis=0)
    voices = sorted({voice for voice, _ in features})

    def nearest(said: Said) -> str:
        others = {
            voice: np.mean([one for key, one in features.items() if key[0] == voice and key != said], axis=0)
            for voice in voices
        }
        return min(voices, key=lambda voice: float(np.linalg.norm((features[said] - others[voice]) / spread)))

    return float(np.mean([nearest(said) == said[0] for said in features]))


def timbre(audio: Audio) -> npt.NDArray[np.float64]:
    """Mean and spread over time of mel-frequency cepstral coefficients; loudness, the first one, is left out."""
    mel = LogMel()(torch.from_numpy(audio)[None])[0].double().numpy()  # [NUM_MELS, frames]
    num_mels = len(mel)
    cosines = np.cos(np.pi / num_mels * np.outer(np.arange(1, NUM_COEFFICIENTS), np.arange(num_mels) + 0.5))
    cepstra = cosines @ mel
    return np.concatenate([cepstra.mean(axis=1), cepstra.std(axis=1)])


@cache
def _listener() -> Listener:
    """One in each process; it takes a second to load."""
    return Listener()


def _hear(audio: Audio, text: str) -> Heard:
    return _listener().listen(audio, text)


def _row(name: str, cells: Mapping[str, float] | Iterable[str]) -> str:
    texts = [f"{100 * rate:.1f} %" for rate in cells.values()] if isinstance(cells, Mapping) else cells
    return f"{name:<22}" + "".join(f"{text:>10}" for text in texts)


def _keep(audio: Mapping[Said, Audio], understood: Mapping[Said, Heard], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = []
    for (voice, number), one in understood.items():
        save(out / f"{voice}-{number:02}.wav", audio[voice, number], SAMPLE_RATE)
        lines.append(f"{voice}-{number:02} {one.errors:3} {one.said} | {one.heard}\n")
    (out / "heard.txt").write_text("".join(lines), encoding="utf-8")
