"""The choice of the vocabulary's tokens: frequent words whole, and pieces of all others cut along their sounds.

A WordPiece tokenizer takes the longest piece that fits, whatever it sounds like. So pieces are merged round by round
where what the tokenizer makes of real words is long or sounds wrong, and words that sound wrong at the end become
tokens.
"""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from training.lexicon import Spelling, align, lexicon
from training.wordpiece import PREFIX, Sounds, split

WHOLE_SHARE, MENDED_SHARE = 0.4, 0.12  # of tokens, that are the most frequent words, and words that sounded wrong
ROUNDS = 12  # of merging
FEWEST = 3  # times that a word is there which has a say in pieces
MOST_LETTERS = 8  # of a piece
MENDING = 2  # how much more a merge counts that mends a sound
LETTERS = [*string.ascii_lowercase, *(PREFIX + letter for letter in string.ascii_lowercase)]


@dataclass(frozen=True)
class Word:
    """A word of the corpus.

    Attributes:
        letters: of the word.
        spelling: the sounds of each.
        weight: how much it counts, as the root of how often it is there: rare words are many.
    """

    letters: str
    spelling: Spelling
    weight: int

    def sounds(self, start: int, end: int) -> Sounds:
        """Of the letters from `start` to `end`."""
        return tuple(sound for part in self.spelling[start:end] for sound in part)


def choose(counts: Mapping[str, int], number: int) -> dict[str, Sounds]:
    """At most `number` tokens for the words of `counts`, single letters among them: token -> what it sounds like."""
    said_often = [word for word, count in counts.items() if count >= FEWEST]
    spellings = align(sorted(said_often, key=lambda word: (-counts[word], word)))
    words = [Word(word, spelling, round(10 * counts[word] ** 0.5)) for word, spelling in spellings.items()]
    whole = round(WHOLE_SHARE * number)
    tokens = dict.fromkeys([*LETTERS, *(word.letters for word in words[:whole])])
    target = number - round(MENDED_SHARE * number)
    for left in range(ROUNDS, 0, -1):
        gains = _gains(words, _sounds(words, tokens))
        for token, _ in gains.most_common((target - len(tokens)) // left):
            tokens[token] = None
    tokens = _used(words, tokens)
    while len(tokens) < number and (wrong := _wrong(words, tokens)):
        tokens = _used(words, [*tokens, *wrong[: number - len(tokens)]])
    return _sounds(words, tokens)


def said(word: str, sounds: Mapping[str, Sounds]) -> Sounds:
    """What the pieces of `word` sound like, one after another."""
    return tuple(sound for piece in split(word, sounds) for sound in sounds[piece])


def _sounds(words: list[Word], tokens: Mapping[str, object]) -> dict[str, Sounds]:
    """What each token sounds like: a word like itself, a piece as it mostly does where words are split."""
    heard: dict[str, Counter[Sounds]] = defaultdict(Counter)
    for word in words:
        for piece, start, end in _places(word, tokens):
            heard[piece][word.sounds(start, end)] += word.weight
    known = {word.letters: word.sounds(0, len(word.letters)) for word in words}
    return {token: known[token] if token in known else _most(heard[token], token) for token in tokens}


def _most(heard: Counter[Sounds], token: str) -> Sounds:
    """The most frequent; of a letter that no word has, what it is called, and of a piece that none has, nothing."""
    return heard.most_common(1)[0][0] if heard else lexicon().get(token.removeprefix(PREFIX), ())


def _used(words: list[Word], tokens: Iterable[str]) -> dict[str, None]:
    """Letters, and those of `tokens` that are still in a word: what was merged away helps nobody."""
    known = dict.fromkeys(tokens)
    return dict.fromkeys([*LETTERS, *(piece for word in words for piece in split(word.letters, known))])


def _wrong(words: list[Word], tokens: Mapping[str, object]) -> list[str]:
    """Words that do not sound like their pieces, the most frequent first."""
    sounds = _sounds(words, tokens)
    return [word.letters for word in words if said(word.letters, sounds) != word.sounds(0, len(word.letters))]


def _gains(words: list[Word], sounds: Mapping[str, Sounds]) -> Counter[str]:
    """How much it would help to have two pieces that follow one another as one token."""
    gains: Counter[str] = Counter()
    for word in words:
        places = list(_places(word, sounds))
        for (first, start, _), (second, _, end) in pairwise(places):
            is_cut_well = end == len(word.letters) or word.spelling[end]
            if end - start > MOST_LETTERS or not is_cut_well:
                continue
            is_wrong = sounds[first] + sounds[second] != word.sounds(start, end)
            gains[(PREFIX if start else "") + word.letters[start:end]] += word.weight * (1 + MENDING * is_wrong)
    return gains


def _places(word: Word, tokens: Mapping[str, object]) -> Iterator[tuple[str, int, int]]:
    start = 0
    for piece in split(word.letters, tokens):
        end = start + len(piece.removeprefix(PREFIX))
        yield piece, start, end
        start = end
