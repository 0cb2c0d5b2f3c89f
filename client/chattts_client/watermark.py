"""An inaudible mark in speech: levels that follow a pattern which a key decides, and that `detection` finds again.

Time is cut into blocks of 40 ms, 450 to 6,000 Hz into bands of 150 Hz. In each block each band is 1 dB louder or
softer, as the pattern says, which repeats after 64 blocks (spread spectrum: Cox et al. 1997; of log spectra: Kirovski
and Malvar 2003). A block's filter has minimum phase: it needs no sample that is still to come, so none is later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from chattts_client.errors import InvalidInputError

KEY_VARIABLE = "CHATTTS_WATERMARK_KEY"
PUBLIC_KEY = "chattts-triton"  # of marks that everybody shall find
LEAST_KEY_CHARACTERS = 16

BLOCK_S = 0.04
NUM_BLOCKS = 64  # after which the pattern repeats, 2.56 s
BAND_HZ = 150
EDGES_HZ = np.arange(450, 6_001, BAND_HZ)  # of the bands
DEPTH_DB = 1.0

FILTER_S = 0.008  # of a block's filter
FADE_S = 0.01  # from one filter to the next
RESOLUTION_S = 0.04  # of the spectrum in which filters are made


def key_from(environment: Mapping[str, str]) -> str:
    """The key in `environment`, or the one that is no secret.

    Raises:
        InvalidInputError: it is too short; the message does not show it.
    """
    key = environment.get(KEY_VARIABLE, "")
    if key and len(key) < LEAST_KEY_CHARACTERS:
        allowed = f"{LEAST_KEY_CHARACTERS} or more, or none for the key that everybody has"
        raise InvalidInputError(f"{KEY_VARIABLE} has {len(key)} characters; allowed are {allowed}")
    return key or PUBLIC_KEY


def pattern(key: str) -> NDArray[np.float64]:
    """What `key` decides: 1 or -1 for each block and band, [NUM_BLOCKS, bands]."""
    shape = NUM_BLOCKS, len(EDGES_HZ) - 1
    data = hashlib.shake_256(key.encode(errors="surrogateescape")).digest(-(-shape[0] * shape[1] // 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[: shape[0] * shape[1]]
    return 2.0 * bits.reshape(shape) - 1


class Marker:
    """Marks the samples of one file, or of all files of one text, piece by piece."""

    def __init__(self, key: str, sample_rate: int) -> None:
        """`sample_rate` of the samples that are to come, in Hz."""
        self._filters = _filters(key, sample_rate)
        self._block = round(BLOCK_S * sample_rate)
        num_faded = round(FADE_S * sample_rate)
        self._rise = (0.5 - 0.5 * np.cos(np.pi * (np.arange(num_faded) + 0.5) / num_faded)).astype(np.float32)
        self._before = np.zeros(self._filters.shape[1] - 1, np.float32)  # the samples that a filter still needs
        self._place = 0

    def __call__(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """`audio` [num_samples] with the mark, as many samples; the same bits however the audio is cut into pieces."""
        known = np.concatenate([self._before, audio], dtype=np.float32)
        marked = np.empty(len(audio), np.float32)
        spare, start = len(self._before), 0
        while start < len(audio):
            number, phase = divmod(self._place + start, self._block)
            end = min(len(audio), start + self._block - phase)
            marked[start:end] = self._filtered(known[start : end + spare], number)
            rise = self._rise[phase : phase + end - start]
            old = self._filtered(known[start : start + len(rise) + spare], number - 1) if len(rise) else 0
            marked[start : start + len(rise)] = old + rise * (marked[start : start + len(rise)] - old)
            start = end
        self._place += len(audio)
        self._before = known[len(audio) :]
        return marked

    def _filtered(self, known: NDArray[np.float32], number: int) -> NDArray[np.float32]:
        # A sum for each sample, always in the same order; a Fourier transform would round by the length of the piece.
        filtered: NDArray[np.float32] = np.correlate(known, self._filters[number % NUM_BLOCKS], "valid")
        return filtered


@lru_cache(maxsize=8)
def _filters(key: str, sample_rate: int) -> NDArray[np.float32]:
    """The filter of each block, backwards, [NUM_BLOCKS, taps]."""
    size = 1 << round(RESOLUTION_S * sample_rate).bit_length()
    logs = pattern(key) @ _bands(np.arange(size // 2 + 1) * sample_rate / size) * (DEPTH_DB * np.log(10) / 20)
    # Minimum phase: of the cepstrum what is at negative times is added to positive ones (Oppenheim and Schafer).
    cepstra = np.fft.irfft(logs, size)
    cepstra[:, 1 : size // 2] *= 2
    cepstra[:, size // 2 + 1 :] = 0
    taps = np.fft.irfft(np.exp(np.fft.rfft(cepstra)), size)[:, : round(FILTER_S * sample_rate)]
    num_faded = taps.shape[1] // 4
    taps[:, -num_faded:] *= np.cos(np.linspace(0, np.pi / 2, num_faded)) ** 2
    return np.ascontiguousarray(taps[:, ::-1], np.float32)


def _bands(frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much each band has of each of `frequencies`, 0 to 1, with soft edges that add up to 1."""
    soft = BAND_HZ / 2
    below = np.clip((frequencies - EDGES_HZ[:, None]) / soft + 0.5, 0, 1)  # [edges, frequencies]
    passed = np.sin(np.pi / 2 * below) ** 2
    shares: NDArray[np.float64] = passed[:-1] - passed[1:]
    return shares
