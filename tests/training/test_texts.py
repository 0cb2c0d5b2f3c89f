"""Sentences of WordNet, as far as flite says them as they are spelt."""

import pytest

from training import texts
from training.sentences import everyday, is_held_out, long

GLOSSES = {
    "noun": 'a small bird (of the north); "the Bird\'s nest isn\'t high"; "two of NATO\'s members"',
    "verb": 'give a structure to; "can you help me?"; "we\'re here to stay"',
    "adj": "well-known and old; having 3 sides",
    "adv": 'in a calm manner; "he spoke, calmly and slowly"',
}


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "WORDNET", tmp_path)
    for kind, gloss in GLOSSES.items():
        lines = f"  1 This software and database is being provided to you\n00001740 03 n 01 entity 0 | {gloss}  \n"
        (tmp_path / f"data.{kind}").write_text(lines)
    texts.written.cache_clear()
    yield
    texts.written.cache_clear()


def test_definitions_and_examples_become_sentences(wordnet):
    assert set(texts.definitions()) == {
        "a small bird.",
        "give a structure to.",
        "well known and old.",
        "in a calm manner.",
    }
    assert set(texts.examples()) == {
        "the Bird's nest isn't high.",
        "can you help me?",
        "he spoke, calmly and slowly.",
    }


def test_what_is_held_out_is_not_written(wordnet, monkeypatch):
    monkeypatch.setattr(texts, "is_held_out", lambda one: "bird" in one.lower())
    assert not any("bird" in one.lower() for one in texts.written())
    assert texts.choose_everyday() == ["the Bird's nest isn't high."]
    monkeypatch.setattr(texts, "LONG_WORDS", 3)
    assert texts.choose_long() == ["a small bird."]
    assert texts.word_counts()["a"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "too short",
        "born in 1966 in a town",
        "made by IBM for offices",
        "the letter B is here",
        "a word like xqzzyq is unknown",
        "they'll say he'll come",  # "hell"
        "a long sentence " * 9,
    ],
)
def test_what_flite_may_say_otherwise_is_left_out(text):
    assert texts.clean(text) is None


def test_everyday_sentences_are_clean_and_held_out():
    for one in everyday():
        assert texts.clean(one) == one
        assert is_held_out(one)
        assert len(one.split()) in texts.EVERYDAY_WORDS


def test_long_sentences_are_clean_and_held_out():
    for one in long():
        assert texts.clean(one) == one
        assert is_held_out(one)
        assert len(one.split()) == texts.LONG_WORDS
