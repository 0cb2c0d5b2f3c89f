"""Sentences that people wrote: WordNet's definitions and examples (Debian's package `wordnet-base`, free licence)."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

from training.lexicon import is_ambiguous, lexicon
from training.sentences import is_held_out
from training.utterances import VOICES

WORDNET = Path("/usr/share/wordnet")
FEWEST_WORDS, MOST_WORDS = 3, 25
EVERYDAY_WORDS = range(5, 15)  # of a sentence by which voices are judged
EVERYDAY = 100
LONG_WORDS = 20  # of a sentence that is to end where its text ends
LONG = 40

_BRACKETS = re.compile(r"\([^()]*\)")
_ALLOWED = re.compile(r"[A-Za-z', ]+[.?!]?")
_INITIALS = re.compile(r"(?<![\w'])(?:[A-Z]{2,}|[B-HJ-Zb-hj-z])\b")
_WORD = re.compile(r"[a-z']+")


@cache
def written() -> tuple[str, ...]:
    """What voices learn from, each sentence once, in an order of its own; those that are held out are not among it."""
    return tuple(one for one in _ordered([*examples(), *definitions()]) if not is_held_out(one))


def choose_everyday() -> list[str]:
    """The sentences of `everyday.txt`: the first EVERYDAY examples that are held out and have EVERYDAY_WORDS words."""
    held_out = (one for one in _ordered(examples()) if is_held_out(one) and len(one.split()) in EVERYDAY_WORDS)
    return list(islice(held_out, EVERYDAY))


def choose_long() -> list[str]:
    """The sentences of `long.txt`: the first LONG of all that are held out and have LONG_WORDS words."""
    everything = _ordered([*examples(), *definitions()])
    return list(islice((one for one in everything if is_held_out(one) and len(one.split()) == LONG_WORDS), LONG))


def speaker(sentence: str) -> str:
    """The voice that says `sentence`: each has a share, whatever else there is."""
    return VOICES[hashlib.sha256(sentence.encode()).digest()[1] % len(VOICES)]


def word_counts() -> Counter[str]:
    """How often each word is in `written`, as the model reads it."""
    return Counter(word.replace("'", "") for one in written() for word in _WORD.findall(one.lower()))


def examples() -> Iterator[str]:
    """How WordNet uses its words: everyday phrases and sentences."""
    for gloss in _glosses():
        yield from _cleaned(re.findall('"([^"]+)"', gloss))


def definitions() -> Iterator[str]:
    """What WordNet's words mean."""
    for gloss in _glosses():
        yield from _cleaned(re.sub('"[^"]*"?', "", gloss).split(";"))


def clean(text: str) -> str | None:
    """`text` as a sentence that flite says as it is spelt, with a mark at its end; None where it cannot be one.

    Hyphens become blanks, brackets are left out. Figures, abbreviations, words that the dictionary does not know and
    those that an apostrophe tells from others are not allowed.
    """
    sentence = " ".join(_BRACKETS.sub("", text).replace("-", " ").split()).strip(" ,")
    if not _ALLOWED.fullmatch(sentence) or _INITIALS.search(sentence) or ",," in sentence.replace(" ", ""):
        return None
    words = _WORD.findall(sentence.lower())
    if not FEWEST_WORDS <= len(words) <= MOST_WORDS:
        return None
    if any(word.replace("'", "") not in lexicon() or is_ambiguous(word) for word in words):
        return None
    sentence = re.sub(" ?, ?", ", ", sentence)
    return sentence if sentence[-1] in ".?!" else f"{sentence}."


def _cleaned(texts: list[str]) -> Iterator[str]:
    return (one for one in map(clean, texts) if one is not None)


def _ordered(sentences: Iterator[str] | list[str]) -> list[str]:
    """Each once, by their hashes: an order that does not depend on where they come from."""
    return sorted(set(sentences), key=lambda one: hashlib.sha256(one.encode()).digest())


def _glosses() -> Iterator[str]:
    for kind in ("noun", "verb", "adj", "adv"):
        path = WORDNET / f"data.{kind}"
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; install Debian's package wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):  # the licence
                yield line.partition(" | ")[2]
