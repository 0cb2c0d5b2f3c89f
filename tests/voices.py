"""Voices as ChatTTS writes them: base16384 by its C extension over raw LZMA2."""

from __future__ import annotations

import lzma

import numpy as np
import pybase16384

FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]


def pack(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=FILTERS)


def encode_speaker(vector: np.ndarray) -> str:
    """The speaker string of `vector`, float16 [hidden]."""
    return pybase16384.encode_to_string(pack(vector.astype("<f2").tobytes()))


def encode_sample(codes: np.ndarray) -> str:
    """The `spk_smp` string of `codes`, integers [4, num_tokens]."""
    header = np.array(codes.shape, "<u2").tobytes()
    return pybase16384.encode_to_string(header + pack(codes.astype("<u2").tobytes()))
