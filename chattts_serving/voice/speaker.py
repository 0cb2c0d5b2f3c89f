"""Voices: ChatTTS's speaker strings and `spk_smp` strings, and voices drawn from a seed.

Both kinds of string come from callers, so nothing in them is trusted: sizes are bounded before anything is unpacked.
Format: `ChatTTS/model/speaker.py` of ChatTTS 0.2.5.
"""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import MAX_NEW_TOKENS, NUM_AUDIO_TOKENS
from chattts_serving.voice import base16384

NUM_CODEBOOKS = 4
NUM_CODES = NUM_AUDIO_TOKENS - 1  # the last entry of a codebook ends an utterance and stands in no recording
MAX_SAMPLE_TOKENS = MAX_NEW_TOKENS  # 43.7 s
MAX_HIDDEN_SIZE = 8_192  # of a speaker string; the official model's is 768
_SAMPLE_HEADER_BYTES = 4  # the shape [4, num_tokens] as two uint16, little endian
_MAX_BYTES = 2 * max(MAX_HIDDEN_SIZE, NUM_CODEBOOKS * MAX_SAMPLE_TOKENS)
# No data is longer than the dictionary, so it reads what ChatTTS packed with one of 64 MiB. Packing a voice takes
# 0.2 ms; with ChatTTS's settings it takes 34 ms (measured).
_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": _MAX_BYTES}]

Vector = npt.NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class SpeakerStatistics:
    """What voices are drawn from: independent normal values, float16 [hidden] each."""

    std: Vector
    mean: Vector

    @classmethod
    def parse(cls, text: str, hidden_size: int) -> SpeakerStatistics:
        """Read the checkpoint's statistics: base16384 over float16[2 * hidden], standard deviation and mean.

        Raises:
            ConfigError: `text` is no such string, or is made for another hidden size.
        """
        try:
            std, mean = np.frombuffer(base16384.decode(text), np.float16).reshape(2, hidden_size)
        except ValueError as error:
            raise ConfigError(f"speaker statistics do not fit hidden size {hidden_size}: {error}") from error
        if not (np.isfinite(std).all() and np.isfinite(mean).all()):
            raise ConfigError("speaker statistics are not finite")
        return cls(std, mean)

    def sample(self, seed: int) -> Vector:
        """The voice of `seed` (>= 0), float16 [hidden]; the same in every process."""
        generator = np.random.Generator(np.random.Philox(key=seed))
        noise = generator.standard_normal(len(self.std)).astype(np.float16)
        return noise * self.std + self.mean


def encode_speaker(vector: Vector) -> str:
    """The speaker string of `vector`, float16 [hidden]; it decodes to the same bits."""
    return base16384.encode(_pack(vector.astype("<f2").tobytes()))


def decode_speaker(text: str) -> Vector:
    """The vector of a speaker string, float16 [hidden], not normalised.

    Raises:
        ValueError: `text` is not such a string, or has no values, or more than MAX_HIDDEN_SIZE.
    """
    vector = np.frombuffer(_unpack(base16384.decode(text), 2 * MAX_HIDDEN_SIZE), "<f2")
    if not vector.size:
        raise ValueError("it has no values")
    return vector


def normalize(vector: Vector) -> npt.NDArray[np.float32]:
    """The vector that replaces the embedding at [spk_emb]: `vector` at length 1, float32 [hidden].

    As torch's `F.normalize` of a float16 tensor does it: squares added one after the other in float32 (another order
    tips the rounding of one norm in 3,000), norm and quotient rounded to float16.

    Raises:
        ValueError: the norm is 0 or no float16.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norm = np.sqrt(np.cumsum(np.square(vector.astype(np.float32)))[-1]).astype(np.float16)
    if not np.isfinite(norm) or norm == 0:
        raise ValueError(f"the values' norm is {norm}")
    unit: npt.NDArray[np.float32] = (vector / norm).astype(np.float32)
    return unit


def encode_sample(codes: npt.NDArray[np.integer[Any]]) -> str:
    """The `spk_smp` string of `codes`, [num_tokens, 4], each 0 to NUM_CODES - 1."""
    header = np.array(codes.T.shape, "<u2").tobytes()
    return base16384.encode(header + _pack(codes.T.astype("<u2").tobytes()))


def decode_sample(text: str) -> tuple[tuple[int, ...], ...]:
    """The codes of a `spk_smp` string, [num_tokens][4].

    Raises:
        InvalidInputError: not such a string, another shape, too long, or a value that is no code.
    """
    try:
        codes = _unpack_sample(base16384.decode(text))
    except ValueError as error:
        shape = f"[{NUM_CODEBOOKS}, 1 to {MAX_SAMPLE_TOKENS}]"
        allowed = f"a ChatTTS spk_smp string of shape {shape} with codes 0 to {NUM_CODES - 1} ({error})"
        raise InvalidInputError("speaker_sample", text, allowed) from error
    return tuple(map(tuple, codes.T.tolist()))


def _unpack_sample(data: bytes) -> npt.NDArray[np.uint16]:
    """Shape and codes, [4, num_tokens].

    Raises:
        ValueError: anything is wrong with them.
    """
    num_codebooks, num_tokens = np.frombuffer(data[:_SAMPLE_HEADER_BYTES], "<u2").tolist()
    if num_codebooks != NUM_CODEBOOKS or not 1 <= num_tokens <= MAX_SAMPLE_TOKENS:
        raise ValueError(f"its shape is [{num_codebooks}, {num_tokens}]")
    unpacked = _unpack(data[_SAMPLE_HEADER_BYTES:], 2 * NUM_CODEBOOKS * num_tokens)
    codes = np.frombuffer(unpacked, "<u2").reshape(NUM_CODEBOOKS, num_tokens)
    if codes.max() >= NUM_CODES:
        raise ValueError(f"it has the code {codes.max()}")
    return codes


def _pack(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _unpack(data: bytes, most: int) -> bytes:
    """What raw LZMA2 `data` unpacks to, at most `most` bytes; no more than one byte beyond is ever unpacked.

    Raises:
        ValueError: it is no LZMA2, or unpacks to more.
    """
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        unpacked = decompressor.decompress(data, max_length=most + 1)
    except lzma.LZMAError as error:
        raise ValueError("it is not LZMA2") from error
    if len(unpacked) > most or not decompressor.eof or decompressor.unused_data:
        raise ValueError(f"it does not unpack to {most} bytes or fewer")
    return unpacked
