"""base16384: bytes as Chinese characters, 14 bits in each, the text form of ChatTTS's voices.

A character is U+4E00 plus its 14 bits, the first byte's top bit first. Seven bytes make four characters; where 1 to 6
bytes are left over, their last character is filled up with zero bits and one more follows, U+3D00 plus their number.
Format: base16384 by fumiama. The C extension pybase16384 0.3.9 crashes the process on malformed text, hence this one.
"""

from __future__ import annotations

import numpy as np

AROUND = " \t\n\v\f\r\u00a0\u200b\u2028\u2029\u3000\ufeff"  # what files and clipboards leave around a text
_BASE = 0x4E00
_TAIL_BASE = 0x3D00
_BITS = 14
_BLOCK_BYTES, _BLOCK_CHARACTERS = 7, 4
_SHIFTS = np.arange(_BITS - 1, -1, -1, dtype=np.uint32)
_WEIGHTS = (1 << _SHIFTS).astype(np.uint16)


def encode(data: bytes) -> str:
    """`data` as text."""
    num_left = len(data) % _BLOCK_BYTES
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    filled = np.zeros((-(-len(bits) // _BITS), _BITS), np.uint16)
    filled.reshape(-1)[: len(bits)] = bits
    characters = (_BASE + filled @ _WEIGHTS).astype("<u2")
    tail = chr(_TAIL_BASE + num_left) if num_left else ""
    return characters.tobytes().decode("utf-16-le") + tail


def decode(text: str) -> bytes:
    """The bytes that `encode` made `text` of, which may have AROUND around it.

    Raises:
        ValueError: `text` is not what `encode` makes.
    """
    text = text.strip(AROUND)
    num_left = ord(text[-1]) - _TAIL_BASE if text else 0
    if 0 < num_left < _BLOCK_BYTES:
        text = text[:-1]
    else:
        num_left = 0
    values = np.array([ord(character) for character in text], np.int64) - _BASE
    if ((values < 0) | (values >= 1 << _BITS)).any():
        raise ValueError("a character is outside the alphabet")
    num_last = -(-8 * num_left // _BITS)  # characters that the bytes left over fill
    num_blocks, rest = divmod(len(values) - num_last, _BLOCK_CHARACTERS)
    if num_blocks < 0 or rest:
        raise ValueError("the text was cut")
    bits = (values[:, None].astype(np.uint32) >> _SHIFTS) & 1
    num_bytes = num_blocks * _BLOCK_BYTES + num_left
    return np.packbits(bits.astype(np.uint8)).tobytes()[:num_bytes]
