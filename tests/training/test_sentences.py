"""What the voices learn to say, and what they must not."""

import random
import re
from functools import partial

from chattts_serving.text.normalizer import Normalizer
from training.lexicon import lexicon
from training.sentences import SETS, draw, draw_words, everyday, grammar, held_out, is_held_out, sentences, vocabulary
from training.utterances import read_text


def test_every_slot_that_is_named_is_there():
    patterns, slots = grammar()
    named = re.findall(
        r"\{(\w+)\}", " ".join([*patterns, *(filler for fillers in slots.values() for filler in fillers)])
    )
    assert set(named) == set(slots)


def test_a_sentence_is_small_letters_and_marks():
    rng = random.Random(0)
    assert all(re.fullmatch("[a-z ,]+[.]?", read_text(draw(rng))) for _ in range(2_000))


def test_it_is_known_how_every_word_is_said():
    assert set(vocabulary()) <= set(lexicon())
    assert set(re.findall("[a-z]+", read_text(" ".join(everyday())))) <= set(lexicon())


def test_the_model_learns_what_the_server_will_have_it_say():
    normalize, rng = Normalizer({}), random.Random(1)
    for sentence in [*held_out(), *everyday(), *(draw(rng) for _ in range(500))]:
        assert normalize(sentence, "en", None).lower() == read_text(sentence)


def test_what_is_held_out_is_never_learnt():
    learnt = set(sentences(3_000, seed=1))
    heard = set(sentences(200, seed=1, held_out=True))
    assert not learnt & heard
    assert not {read_text(one) for one in learnt} & {read_text(one) for one in held_out()}
    assert all(is_held_out(one) for one in [*heard, *held_out(), *everyday()])
    assert not any(is_held_out(one) for one in learnt)


def test_words_in_any_order_are_those_that_are_given():
    known = ["salt", "zebra", "of"]
    drawn = list(sentences(500, 1, partial(draw_words, known=known)))
    assert all(re.fullmatch(r"[a-z]+(,? [a-z]+){0,8}\.", one) for one in drawn)
    assert set(re.findall("[a-z]+", " ".join(drawn))) == set(known)


def test_the_same_seed_draws_the_same():
    assert list(sentences(50, seed=3)) == list(sentences(50, seed=3)) != list(sentences(50, seed=4))


def test_voices_are_judged_by_sentences_that_differ():
    numbers = {name: len(set(texts())) for name, texts in SETS.items()}
    assert numbers == {"held out": 60, "everyday": 100, "long": 40}
    assert set(re.findall("[a-z]+", " ".join(held_out()))) <= set(vocabulary())
    assert not set(re.findall("[a-z]+", read_text(" ".join(everyday())))) <= set(vocabulary())
