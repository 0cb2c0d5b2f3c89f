"""When words are heard, which is not when they were spoken where the tempo is another one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from chattts_client import Word


def heard(words: Iterable[Word], tempo: float, shift_s: float = 0.0) -> list[Word]:
    """`words` at the times at which they are heard in a file of another `tempo`, and `shift_s` seconds later."""
    return [replace(word, start=word.start / tempo + shift_s, end=word.end / tempo + shift_s) for word in words]
