"""How words are cut, and how they are said."""

import pytest

from training.lexicon import align, is_ambiguous, lexicon
from training.pieces import LETTERS, choose, said
from training.vocabulary import SOUNDS, VOCABULARY
from training.wordpiece import split


def test_letters_make_sounds_in_their_order():
    words = ["ship", "shop", "shed", "fish", "dish", "ox", "box", "fox", "bee", "see", "lamb", "limb", "hot", "pit"]
    for word, spelling in align(words).items():
        assert len(spelling) == len(word)
        assert tuple(sound for part in spelling for sound in part) == lexicon()[word]


@pytest.mark.parametrize(("word", "is_"), [("we're", True), ("don't", False), ("can't", False), ("cats", False)])
def test_an_apostrophe_may_tell_words_apart(word, is_):
    assert is_ambiguous(word) == is_


def test_the_longest_piece_is_taken():
    tokens = dict.fromkeys([*LETTERS, "the", "them", "##me", "##e"])
    assert split("theme", tokens) == ["them", "##e"]
    assert split("xthe", tokens) == ["x", "##t", "##h", "##e"]


def test_a_word_that_sounds_wrong_becomes_a_token():
    counts = {"the": 1_000, "hem": 50, "theme": 40, "he": 300, "them": 200, "met": 20, "me": 90, "rare": 2}
    sounds = choose(counts, len(LETTERS) + 9)
    assert all(said(word, sounds) == lexicon()[word] for word in counts if word != "rare")
    assert "rare" not in sounds


def test_the_vocabulary_spells_every_word_and_says_most_as_they_are():
    assert set(LETTERS) <= set(SOUNDS)
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 4_096 - 50
    words = sorted(lexicon())[::40]
    assert all("".join(piece.removeprefix("##") for piece in split(word, SOUNDS)) == word for word in words)
