"""What the voices learn to say, and what they must not."""

import random
import re

from chattts_serving.text.normalizer import Normalizer
from training.corpus import PIECE, read_text
from training.sentences import draw, draw_words, grammar, held_out, is_held_out, sentences, vocabulary
from training.vocabulary import IDS


def test_every_slot_that_is_named_is_there():
    patterns, slots = grammar()
    named = re.findall(
        r"\{(\w+)\}", " ".join([*patterns, *(filler for fillers in slots.values() for filler in fillers)])
    )
    assert set(named) == set(slots)


def test_a_sentence_is_small_letters_and_marks_that_are_single_tokens():
    rng = random.Random(0)
    for _ in range(2_000):
        text = read_text(draw(rng))
        assert re.fullmatch("[a-z ,]+[.]?", text)
        assert all(piece in IDS for piece in PIECE.findall(text))


def test_the_model_learns_what_the_server_will_have_it_say():
    normalize, rng = Normalizer({}), random.Random(1)
    for sentence in [*held_out(), *(draw(rng) for _ in range(500))]:
        assert normalize(sentence, "en", None) == read_text(sentence)


def test_what_is_held_out_is_never_learnt():
    learnt = set(sentences(3_000, seed=1))
    heard = set(sentences(200, seed=1, held_out=True))
    assert not learnt & heard
    assert not {read_text(one) for one in learnt} & {read_text(one) for one in held_out()}
    assert all(is_held_out(one) for one in [*heard, *held_out()])
    assert not any(is_held_out(one) for one in learnt)


def test_words_in_any_order_are_those_of_the_vocabulary():
    drawn = list(sentences(3_000, 1, draw_words))
    assert all(re.fullmatch(r"[a-z]+(,? [a-z]+){0,8}\.", one) for one in drawn)
    assert set(re.findall("[a-z]+", " ".join(drawn))) == set(vocabulary())


def test_the_same_seed_draws_the_same():
    assert list(sentences(50, seed=3)) == list(sentences(50, seed=3)) != list(sentences(50, seed=4))


def test_voices_are_judged_by_words_that_they_know():
    assert len(held_out()) == 60
    assert set(re.findall("[a-z]+", " ".join(held_out()))) <= set(vocabulary())
