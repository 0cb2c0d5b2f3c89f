"""How a WordPiece tokenizer cuts words."""

from __future__ import annotations

from collections.abc import Container

PREFIX = "##"  # of a piece that goes on a word
Sounds = tuple[str, ...]  # phones


def split(word: str, tokens: Container[str]) -> list[str]:
    """`word` as the tokenizer cuts it: the longest of `tokens` that fits, again and again.

    Raises:
        ValueError: it cannot be spelt.
    """
    pieces, start = [], 0
    while start < len(word):
        prefix = PREFIX if start else ""
        fitting = (end for end in range(len(word), start, -1) if prefix + word[start:end] in tokens)
        end = next(fitting, None)
        if end is None:
            raise ValueError(f"no token fits {word[start:]!r} in {word!r}")
        pieces.append(prefix + word[start:end])
        start = end
    return pieces
