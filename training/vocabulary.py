"""The vocabulary of the demo checkpoint: single characters, frequent words, pieces of all others, and their sounds.

`vocabulary.txt` has a line for each word and piece, with its phones; `python -m training vocabulary` chooses them.
"""

from __future__ import annotations

import string
import zlib
from functools import cache
from pathlib import Path

from export.synthetic_tokenizer import BERT_TOKENS, CHATTTS_TOKENS
from training.wordpiece import Sounds, split

FILE = Path(__file__).parent / "vocabulary.txt"
NUM_PIECES = 3_890  # with all else 4,096 rows

_CHARACTERS = [chr(code) for code in range(33, 127) if chr(code) not in string.ascii_uppercase]
_CONTINUATIONS = [f"##{character}" for character in string.ascii_lowercase + string.digits]


def _read() -> dict[str, Sounds]:
    lines = (line.split("\t") for line in FILE.read_text(encoding="utf-8").splitlines())
    return {token: tuple(sounds.split()) for token, sounds in lines}


SOUNDS = _read()  # of words and pieces
VOCABULARY = list(dict.fromkeys([*BERT_TOKENS, *_CHARACTERS, *_CONTINUATIONS, *SOUNDS]))
IDS = {token: number for number, token in enumerate([*VOCABULARY, *CHATTTS_TOKENS])}


CHECKSUM = zlib.crc32(FILE.read_bytes())


@cache
def ids_of(word: str) -> tuple[int, ...]:
    """What the tokenizer makes of `word`, a run of small letters."""
    return tuple(IDS[piece] for piece in split(word, SOUNDS))


def write(sounds: dict[str, Sounds]) -> None:
    """Make `sounds` the vocabulary of what is trained from now on."""
    FILE.write_text("".join(f"{token}\t{' '.join(sounds[token])}\n" for token in sorted(sounds)), encoding="utf-8")
