"""The corpus: sentences spoken by flite's voices, and when each of their words is said.

flite (Black and Lenzo 2001) is Debian's package `flite`; its voices may be used and changed freely. The recordings of a
voice lie one after another in `VOICE.i16`, 24 kHz, and `VOICE.jsonl` has a line for each.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import wave
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from chattts_serving.audio import SAMPLE_RATE, SAMPLES_PER_TOKEN
from training.lexicon import lexicon
from training.utterances import PIECE, Utterance, read_text, utterances

BEFORE_S, AFTER_S = 0.06, 0.15  # silence that is left before the first sound and after the last
PAUSE = "pau"
ALIKE = {"ax": "ah"}  # flite's phones that the dictionary does not tell apart

Audio = npt.NDArray[np.int16]


def speak(voice: str, sentence: str) -> tuple[Audio, list[int], list[list[int]]]:
    """What `voice` says: samples at 24 kHz, a multiple of SAMPLES_PER_TOKEN, and an utterance's `ends` and `sounds`.

    Raises:
        KeyError: the dictionary does not know a word.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "spoken.wav")
        printed = _flite(voice, "-psdur", "-t", sentence, "-o", str(path))
        with wave.open(str(path)) as recording:
            rate = recording.getframerate()
            samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16)
    segments = [(name, float(end)) for name, end in (one.rsplit(":", maxsplit=1) for one in printed.split())]
    starts = [0.0, *(end for _, end in segments)]
    sounds = [(ALIKE.get(name, name), starts[i], end) for i, (name, end) in enumerate(segments) if name != PAUSE]
    first = max(0.0, sounds[0][1] - BEFORE_S)
    audio = soxr.resample(samples[round(first * rate) : round((sounds[-1][2] + AFTER_S) * rate)], rate, SAMPLE_RATE)
    audio = np.pad(audio, (0, -len(audio) % SAMPLES_PER_TOKEN))
    num_tokens = len(audio) // SAMPLES_PER_TOKEN

    def token(second: float) -> int:
        return min(round((second - first) * SAMPLE_RATE / SAMPLES_PER_TOKEN), num_tokens)

    ends, begins = _timings(sentence, sounds)
    return audio, [*map(token, ends[:-1]), num_tokens], [list(map(token, word)) for word in begins]


def make(folder: Path, voice: str, sentences: Iterable[str], processes: int) -> None:
    """Have `voice` say `sentences`; what is in `folder` of it goes on with those that are new."""
    folder.mkdir(parents=True, exist_ok=True)
    index, recordings = folder / f"{voice}.jsonl", folder / f"{voice}.i16"
    known = utterances(folder, voice) if index.exists() else []
    end = known[-1].start + known[-1].tokens if known else 0
    texts = {one.text for one in known}
    new = [sentence for sentence in sentences if read_text(sentence) not in texts]
    with index.open("a") as lines, recordings.open("ab") as file, ProcessPoolExecutor(processes) as pool:
        file.truncate(end * SAMPLES_PER_TOKEN * 2)
        spoken = pool.map(speak, [voice] * len(new), new, chunksize=16)
        for sentence, (audio, ends, sounds) in zip(new, tqdm(spoken, voice, len(new)), strict=True):
            tokens = len(audio) // SAMPLES_PER_TOKEN
            audio.tofile(file)
            file.flush()
            lines.write(json.dumps(asdict(Utterance(read_text(sentence), ends, sounds, end, tokens))) + "\n")
            end += tokens


def _timings(sentence: str, sounds: list[tuple[str, float, float]]) -> tuple[list[float], list[list[float]]]:
    """Seconds: at which each word, comma and full stop ends, a pause belonging to the mark before it; and at which each
    phone of each word begins."""
    pieces = PIECE.findall(read_text(sentence))
    words = [piece for piece in pieces if piece.isalpha()]
    expected = [(number, phone) for number, word in enumerate(words) for phone in lexicon()[word]]
    owners = _align([phone for _, phone in expected], [phone for phone, _, _ in sounds])
    heard: dict[int, float] = {}
    for (_, start, _), owner in zip(sounds, owners, strict=True):
        heard.setdefault(owner, start)
    starts: dict[int, float] = {}
    begins: list[list[float]] = [[] for _ in words]
    latest = sounds[0][1]
    for place, (word, _) in enumerate(expected):
        latest = heard.get(place, latest)
        begins[word].append(latest)
        if place in heard:
            starts.setdefault(word, latest)
    ends, last = [], -1
    for place, piece in enumerate(pieces):
        last += piece.isalpha()
        following = next((starts[word] for word in range(last + 1, len(words)) if word in starts), None)
        is_marked = piece.isalpha() and place + 1 < len(pieces) and not pieces[place + 1].isalpha()
        spoken = [end for (_, _, end), owner in zip(sounds, owners, strict=True) if expected[owner][0] <= last]
        if following is None or is_marked:
            ends.append(spoken[-1] if spoken else sounds[0][1])
        else:
            ends.append(following)
    return ends, begins


def _align(expected: list[str], found: list[str]) -> list[int]:
    """For each phone of `found` the place in `expected` that it stands for, never falling: least edits."""
    cost = [list(range(len(expected) + 1))]
    for i, phone in enumerate(found, start=1):
        above, row = cost[-1], [i]
        for j, other in enumerate(expected, start=1):
            row.append(min(above[j - 1] + (phone != other), above[j] + 1, row[j - 1] + 1))
        cost.append(row)
    places, i, j = [], len(found), len(expected)
    while i:
        if j and cost[i][j] == cost[i - 1][j - 1] + (found[i - 1] != expected[j - 1]):
            i, j = i - 1, j - 1
            places.append(j)
        elif j and cost[i][j] == cost[i][j - 1] + 1:
            j -= 1
        else:
            i -= 1
            places.append(max(0, j - 1))
    return places[::-1]


def _flite(voice: str, *arguments: str) -> str:
    command = ["flite", "-voice", voice, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own sentences


def shares(folder: Path, voices: Iterable[str]) -> Iterator[str]:
    """How much there is of each voice, for people."""
    for voice in voices:
        tokens = sum(one.tokens for one in utterances(folder, voice))
        yield f"{voice}: {tokens * SAMPLES_PER_TOKEN / SAMPLE_RATE / 3600:.2f} hours"
