"""How English words are said, and which letters make which sounds.

The dictionary is CMU's (free licence, BSD) as pocketsphinx brings it. Words are runs of small letters, as the model
reads them: without apostrophes, which the server's normaliser leaves out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import pocketsphinx

from training.wordpiece import Sounds

Spelling = list[Sounds]  # for each letter of a word, what it sounds like: no, one or two phones

MOST_SOUNDS = 2  # of a letter
ROUNDS = 4  # of alignment, on the first LEARNT words
LEARNT = 4_000
UNSEEN = -12.0  # log probability of a letter's sounds that were never seen
_LINE = re.compile(r"([a-z']+) (.+)")


@cache
def lexicon() -> dict[str, Sounds]:
    """Word -> phones in flite's names; the first pronunciation that the dictionary has.

    A contraction that without its apostrophe is another word of another sound ("we're") has no entry of its own; see
    `is_ambiguous`.
    """
    said: dict[str, Sounds] = {}
    for word, sounds in sorted(_entries().items(), key=lambda entry: "'" in entry[0]):
        said.setdefault(word.replace("'", ""), sounds)
    return said


def is_ambiguous(word: str) -> bool:
    """Whether `word`, small letters and apostrophes, sounds unlike what is left of it without them."""
    bare = lexicon().get(word.replace("'", ""))
    return "'" in word and _entries().get(word, bare) != bare


def align(words: Iterable[str]) -> dict[str, Spelling]:
    """Which letters of each word make which of its sounds; the likeliest way, by counts of the words themselves.

    Words that have more sounds than MOST_SOUNDS a letter are left out.
    """
    known = lexicon()
    pairs = [(word, known[word]) for word in words if len(known[word]) <= MOST_SOUNDS * len(word)]
    scores: dict[tuple[str, Sounds], float] = {}
    for _ in range(ROUNDS):
        learnt = [(word, _likeliest(word, sounds, scores)) for word, sounds in pairs[:LEARNT]]
        counts = Counter(pair for word, spelling in learnt for pair in zip(word, spelling, strict=True))
        letters = Counter(letter for letter, _ in counts.elements())
        scores = {pair: math.log(count / letters[pair[0]]) for pair, count in counts.items()}
    return {word: _likeliest(word, sounds, scores) for word, sounds in pairs}


def _likeliest(word: str, sounds: Sounds, scores: Mapping[tuple[str, Sounds], float]) -> Spelling:
    """One word's letters with their sounds; where nothing is known yet, spread evenly."""
    number = len(sounds)
    best = [0.0] + [-math.inf] * number
    taken: list[list[int]] = []
    for place, letter in enumerate(word, start=1):
        row, choice = [-math.inf] * (number + 1), [0] * (number + 1)
        for end in range(number + 1):
            for few in range(min(MOST_SOUNDS, end) + 1):
                if best[end - few] == -math.inf:
                    continue
                score = _score(letter, sounds[end - few : end], scores) - (
                    0.0 if scores else abs(end - place * number / len(word))
                )
                if best[end - few] + score > row[end]:
                    row[end], choice[end] = best[end - few] + score, few
        best = row
        taken.append(choice)
    spelling, end = [], number
    for choice in reversed(taken):
        spelling.append(sounds[end - choice[end] : end])
        end -= choice[end]
    return spelling[::-1]


def _score(letter: str, sounds: Sounds, scores: Mapping[tuple[str, Sounds], float]) -> float:
    return scores.get((letter, sounds), UNSEEN * max(1, len(sounds))) if scores else -abs(len(sounds) - 1.0)


@cache
def _entries() -> dict[str, Sounds]:
    """What the dictionary says, apostrophes and all."""
    entries: dict[str, Sounds] = {}
    path = Path(pocketsphinx.get_model_path("en-us/cmudict-en-us.dict"))
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := _LINE.fullmatch(line):
            entries.setdefault(match[1], tuple(match[2].lower().split()))
    return entries
