"""Simple everyday sentences, drawn from a grammar, and sentences that voices never learn, by which they are judged."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

HELD_OUT_SHARE = 16  # of this many sentences one is held out, whichever voice says it
COMMA_SHARE = 0.1  # of the words that stand in any order
Draw = Callable[[random.Random], str]
Set = Literal["held out", "everyday", "long"]  # of sentences by which voices are judged
EVERYDAY_FILE = Path(__file__).parent / "everyday.txt"
LONG_FILE = Path(__file__).parent / "long.txt"

_FOLDER = Path(__file__).parent
_MARKS = ".?!"  # at the end, with which a sentence is no other one
_SLOT = re.compile(r"\{(\w+)\}")
_SLOT_LINE = re.compile(r"(\w+): (.*)")


class Grammar(NamedTuple):
    """Patterns, and what their slots may be filled with: text, with slots again."""

    patterns: list[str]
    slots: dict[str, list[str]]


@cache
def grammar() -> Grammar:
    """What `grammar.txt` has."""
    text = (_FOLDER / "grammar.txt").read_text(encoding="utf-8").replace("\n  ", " ")
    patterns, slots = [], {}
    for line in text.splitlines():
        if slot := _SLOT_LINE.fullmatch(line):
            slots[slot[1]] = [filler.strip() for filler in slot[2].split("|")]
        elif line and not line.startswith("#"):
            patterns.append(line)
    return Grammar(patterns, slots)


def draw(rng: random.Random, longest: int = 14) -> str:
    """A sentence of at most `longest` words, in small letters."""
    while True:
        sentence = _fill(rng.choice(grammar().patterns), rng)
        if len(sentence.split()) <= longest:
            return sentence


def sentences(number: int, seed: int, draw: Draw = draw, *, held_out: bool = False) -> Iterator[str]:
    """`number` of what `draw` draws, each once; what is held out is never among the others, whatever the seed."""
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    seen: set[str] = set()
    while len(seen) < number:
        sentence = draw(rng)
        if sentence not in seen and is_held_out(sentence) == held_out:
            seen.add(sentence)
            yield sentence


def draw_words(rng: random.Random, known: Sequence[str], most: int = 9) -> str:
    """1 to `most` of `known` in any order, with commas: a word is learnt by itself and not by its neighbours."""
    words = rng.choices(known, k=rng.randint(1, most))
    return "".join(f"{word}, " if rng.random() < COMMA_SHARE else f"{word} " for word in words[:-1]) + words[-1] + "."


def is_held_out(sentence: str) -> bool:
    """Whether a sentence is for tests alone: those of `held_out.txt`, and one in HELD_OUT_SHARE."""
    text = sentence.rstrip(_MARKS)
    return text in _held_out_texts() or hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


@cache
def held_out() -> tuple[str, ...]:
    """Sentences by which voices are judged, written by hand with words of the grammar."""
    return tuple((_FOLDER / "held_out.txt").read_text(encoding="utf-8").splitlines())


@cache
def everyday() -> tuple[str, ...]:
    """Sentences by which voices are judged, of other people and of any words; `texts.choose_everyday` chose them."""
    return tuple(EVERYDAY_FILE.read_text(encoding="utf-8").splitlines())


@cache
def long() -> tuple[str, ...]:
    """Sentences of 20 words, of other people; `texts.choose_long` chose them."""
    return tuple(LONG_FILE.read_text(encoding="utf-8").splitlines())


SETS: dict[Set, Callable[[], tuple[str, ...]]] = {"held out": held_out, "everyday": everyday, "long": long}


@cache
def _held_out_texts() -> frozenset[str]:
    return frozenset(one.rstrip(_MARKS) for one in held_out())


@cache
def vocabulary() -> list[str]:
    """Every word that a sentence may have, sorted; words are runs of letters."""
    patterns, slots = grammar()
    words: set[str] = set()
    for text in [*patterns, *(filler for fillers in slots.values() for filler in fillers)]:
        words |= set(re.findall("[a-z]+", _SLOT.sub(" ", text)))
    return sorted(words)


def _fill(text: str, rng: random.Random) -> str:
    return _SLOT.sub(lambda slot: _fill(rng.choice(grammar().slots[slot[1]]), rng), text)
