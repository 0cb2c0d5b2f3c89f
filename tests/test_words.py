"""The path through a sentence's text, against every path that there is, and the words that it times."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from chattts_serving.words import SentencePlaces, WordPlace, path, timed_words


def votes_on(votes, ends):
    return sum(votes[token, start:end].sum() for token, (start, end) in enumerate(pairwise([0, *ends])))


@pytest.mark.parametrize("seed", range(30))
def test_no_other_path_has_more_votes(seed):
    rng = np.random.default_rng(seed)
    num_tokens, num_steps = int(rng.integers(1, 5)), int(rng.integers(5, 10))
    votes = rng.integers(0, 3, (num_tokens, num_steps))
    ends = path(votes)
    assert ends[-1] == num_steps
    assert all(start < end for start, end in pairwise([0, *ends]))
    every = ([*cuts, num_steps] for cuts in combinations(range(1, num_steps), num_tokens - 1))
    assert votes_on(votes, ends) == max(votes_on(votes, one) for one in every)


@pytest.mark.parametrize("num_steps", range(5))
def test_a_path_of_fewer_steps_than_tokens_still_never_falls(num_steps):
    ends = path(np.ones((5, num_steps), np.int32))
    assert list(ends) == sorted(ends)
    assert ends[-1] == num_steps


def places(*words, first=3):
    """Words of a token each, with a mark of one token behind them."""
    listed = tuple(WordPlace(word, number, number + 1) for number, word in enumerate(words))
    return SentencePlaces(first, first + len(words) + 1, listed)


def test_heads_that_look_ahead_agree_with_the_one_that_does_not():
    said = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]) + 3
    ahead = np.concatenate([said[2:], [6, 6]])
    one, other = (
        timed_words(places("a", "b", "c"), said[:, None], [0]),
        timed_words(places("a", "b", "c"), np.stack([said, ahead], axis=1), [0, 2]),
    )
    assert [(word.text, word.start, word.end) for word in one] == [("a", 0, 3), ("b", 3, 7), ("c", 7, 9)]
    assert other == one
    assert {word.confidence for word in one} == {1.0}


def test_a_look_elsewhere_costs_the_word_confidence_and_moves_nothing():
    looks = np.array([3, 3, 3, 6, 4, 4, 4, 3, 5, 5, 6, 6])[:, None]
    words = timed_words(places("a", "b", "c"), looks, [0])
    assert [word.confidence for word in words] == pytest.approx([1.0, 0.75, 2 / 3], abs=0.1)
    assert [word.text for word in words if word.confidence == 1] == ["a"]


def test_a_word_of_several_tokens_lasts_as_long_as_they_do():
    looks = np.array([3, 3, 4, 5, 5, 6, 6])[:, None]
    (word,) = timed_words(SentencePlaces(3, 7, (WordPlace("uncommon", 1, 3),)), looks, [0])
    assert (word.start, word.end) == (2, 5)


def test_a_sentence_without_a_token_has_no_words():
    assert timed_words(places("a"), np.zeros((0, 1), np.int32), [0]) == ()
