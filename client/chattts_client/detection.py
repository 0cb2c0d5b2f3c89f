"""Whether there is a mark of `watermark` in a recording: the levels of its blocks and bands against the key's pattern.

For a recording without the mark the pattern's signs are as good as those of coins, and how high a sum with such signs
comes is known whatever the recording is (Hoeffding 1963). That bounds how often a mark is found where there is none.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chattts_client.recording import opened
from chattts_client.watermark import BLOCK_S, EDGES_HZ, NUM_BLOCKS, PUBLIC_KEY, pattern

FALSE_ALARM = 1e-6  # of a recording without the mark, the most

HOP_S, WINDOW_S = 0.005, 0.02
HOPS = round(BLOCK_S / HOP_S)  # in a block: where blocks begin is searched as finely as that
PERIOD = NUM_BLOCKS * HOPS
MOST_NATS = 700  # below which a p-value would be 0, which is never true
PART_S = 30  # a recording is searched in parts, half of each in the next one, too,
SPAN_S = 6  # and each of those in spans, for pieces that were put together
OF_TIME, OF_BANDS = 0.4, 0.4  # how much of its two neighbours is taken off a level
MOST = 2.5  # standard deviations that one level counts
QUIETEST = 1e-6  # of the mean power, -60 dB
IS_NOISE, NOISE_SHARE = 1.5, 35  # what is below this factor of this percentile is noise of the recording


@dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
        score: of the likeliest place of the mark, in standard deviations of what recordings without it have there.
        p_value: how often, at most, one without the mark has a score as high at any place.
        start, end: of the span with that score, in seconds.
    """

    score: float
    p_value: float
    start: float
    end: float

    @property
    def found(self) -> bool:
        """Whether the mark is there."""
        return self.p_value < FALSE_ALARM

    def __str__(self) -> str:
        """For people."""
        if not self.found:
            return f"no watermark, the highest score is {self.score:.1f}"
        where = f"{self.start:.1f} to {self.end:.1f} s"
        return f"watermark, score {self.score:.1f} at {where}, by chance less often than {self.p_value:.0e}"


def detect(audio: NDArray[np.floating[Any]], sample_rate: int, key: str = PUBLIC_KEY) -> Detection:
    """Search `audio` [num_samples] at `sample_rate` Hz for the mark of `key`."""
    size = PART_S * sample_rate
    starts = range(0, max(1, len(audio) - size // 2), size // 2)
    return _best((audio[start : start + size] for start in starts), sample_rate, key)


def detect_in_file(path: str | os.PathLike[str], key: str = PUBLIC_KEY) -> Detection:
    """Search an audio file, in any format that libsndfile knows; of several channels their mean. Raises as `opened`."""
    with opened(path) as sound:
        size = PART_S * sound.samplerate
        parts = sound.blocks(size, size // 2, dtype="float32", always_2d=True)
        return _best((part.mean(axis=1) for part in parts), sound.samplerate, key)


def _best(parts: Iterable[NDArray[np.floating[Any]]], sample_rate: int, key: str) -> Detection:
    """The likeliest place in `parts`, each of which begins half of PART_S behind the one before."""
    signs, looks, best = pattern(key), 0, (0.0, 0, 0)
    for number, part in enumerate(parts):
        levels = _levels(part, sample_rate)
        for start, end in _spans(levels.shape[1]):
            before = round(number * PART_S / 2 / HOP_S)
            best = max(best, (_score(levels[:, start:end], signs), before + start, before + end))
            looks += PERIOD
    score, start, end = best
    p_value = min(1.0, max(looks, 1) * math.exp(-min(score**2 / 2, MOST_NATS)))
    return Detection(score, p_value, start * HOP_S, end * HOP_S)


def _spans(num_hops: int) -> Iterator[tuple[int, int]]:
    yield 0, num_hops
    size = round(SPAN_S / HOP_S)
    for start in range(0, num_hops - size // 2, size // 2) if num_hops > size else ():
        yield start, min(start + size, num_hops)


def _score(levels: NDArray[np.float64], signs: NDArray[np.float64]) -> float:
    """The highest sum of `levels` [bands, hops] times `signs`, wherever the pattern begins, in standard deviations."""
    num_bands, num_hops = levels.shape
    folded = np.pad(levels, ((0, 0), (0, -num_hops % PERIOD))).reshape(num_bands, -1, PERIOD).sum(axis=1)
    blocks = folded.reshape(num_bands, NUM_BLOCKS, HOPS)
    spectra = np.fft.rfft(blocks, axis=1) * np.fft.rfft(signs[:, :num_bands], axis=0).T.conj()[:, :, None]
    sums = np.fft.irfft(spectra.sum(axis=0), NUM_BLOCKS, axis=0)  # [NUM_BLOCKS, HOPS]
    deviations = np.sqrt((blocks**2).sum(axis=(0, 1)))
    return float((sums / np.maximum(deviations, 1e-9)).max(initial=0.0))


def _levels(audio: NDArray[np.floating[Any]], sample_rate: int) -> NDArray[np.float64]:
    """How far each block, one for each hop, stands out of its neighbours in time and frequency, [bands, hops].

    Twice, as what the pattern itself becomes by that is what is looked for.
    """
    powers = _smoothed(_powers(audio, sample_rate))
    if powers.shape[1] <= 4 * HOPS or not powers.any():
        return np.zeros((1, 0))
    noise = IS_NOISE * np.percentile(powers, NOISE_SHARE, axis=1, keepdims=True)
    weights = np.clip(1 - noise / np.maximum(powers, 1e-30), 0, 1)
    levels = _standing_out(np.log(powers + QUIETEST * powers.mean()))
    spread = 1.48 * np.median(np.abs(levels[weights > 0])) if weights.any() else 0.0
    return _standing_out(np.clip(levels / max(spread, 1e-9), -MOST, MOST) * weights)


def _powers(audio: NDArray[np.floating[Any]], sample_rate: int) -> NDArray[np.float64]:
    """Of each band below half of `sample_rate`, [bands, hops]."""
    size = round(WINDOW_S * sample_rate)
    padded = 1 << size.bit_length()
    there = EDGES_HZ[: np.searchsorted(EDGES_HZ, 0.45 * sample_rate)]
    edges = np.ceil(there * padded / sample_rate).astype(int)
    if len(edges) < 2 or len(audio) < size:
        return np.zeros((1, 0))
    starts = np.round(np.arange(0, len(audio) - size + 1, HOP_S * sample_rate)).astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(np.nan_to_num(audio, posinf=0, neginf=0), size)[starts]
    spectra = np.fft.rfft(windows * np.hanning(size), padded)
    powers: NDArray[np.float64] = np.add.reduceat(np.abs(spectra[:, : edges[-1]]) ** 2, edges[:-1], axis=1)
    return powers.T


def _smoothed(powers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of each block that begins at a hop."""
    sums = np.cumsum(np.pad(powers, ((0, 0), (1, 0))), axis=1)
    means: NDArray[np.float64] = np.maximum(sums[:, HOPS:] - sums[:, :-HOPS], 0) / HOPS
    return means


def _standing_out(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    found = np.zeros_like(levels)
    around = levels[:, : -2 * HOPS] + levels[:, 2 * HOPS :]
    found[:, HOPS:-HOPS] = levels[:, HOPS:-HOPS] - OF_TIME * around
    wide = np.pad(found, ((1, 1), (0, 0)), "edge")
    return found - OF_BANDS * (wide[:-2] + wide[2:])
