"""The bound on the work of one request; what is said is tested in test_normalizer.py."""

from __future__ import annotations

import pytest

from chattts_serving.text import verbalizer
from chattts_serving.text.verbalizer import Verbalizer


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The texts that the grammars are given."""
    texts: list[str] = []

    class Grammar:
        def normalize(self, text: str) -> str:
            texts.append(text)
            if "!" in text:
                raise AssertionError
            return "words"

    monkeypatch.setattr(verbalizer, "_GRAMMARS", {"zh": Grammar(), "en": Grammar()})
    return texts


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("piece", ["1" * 70, "1! " * 40, "#" * 300 + "1", "1年! " * 20, "1"])
def test_work_of_one_request_is_bounded(read, language, piece):
    verbalize = Verbalizer()
    for _ in range(300 if len(piece) > 1 else 8_000):
        verbalize(piece, language)
    assert sum(map(len, read)) <= 32_000
    assert len(read) < 7_000


def test_what_is_past_the_bound_stays_as_it_is(read):
    verbalize = Verbalizer()
    spoken = [verbalize(f" {number} ", "en") for number in range(10_000)]
    assert (spoken[0], spoken[-1]) == ("words", "9999")


def test_another_request_starts_anew(read):
    first = Verbalizer()
    for _ in range(10_000):
        first("123", "en")
    assert Verbalizer()("123", "en") == "words"


def test_a_long_ordinary_text_is_within_the_bound(read):
    sentence = "It was said that some 40 people had come to see it, and most were glad."
    verbalize = Verbalizer()
    assert {verbalize(sentence, "en") for _ in range(20_000 // len(sentence))} == {sentence.replace("40", "words")}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("我们在公园散步，看了很多花。", "zh"),
        ("Is it open? No, the Sun is hot; Sat down by the TV.", "en"),
        ("Mulholland Dr is long", "en"),
    ],
)
def test_text_without_digits_and_symbols_goes_past_the_grammars(read, text, language):
    assert Verbalizer()(text, language) == text
    assert not read


def test_words_beside_numbers_go_past_the_grammars_but_those_that_belong_to_them(read):
    assert Verbalizer()("No. Sun and Sat, Jan 5 at 10:30 p.m. on TV", "en") == "No. Sun and Sat, words at words on TV"
    assert read == ["Jan 5", "10:30 p.m."]


@pytest.mark.parametrize(
    ("text", "language", "left"),
    [
        ("up 12% at 3:30", "en", "up 12 percent at 3 30"),
        ("3×4 and $5", "en", "3 times 4 and 5 dollars"),
        ("增长12%，3:30开始", "zh", "增长百分之12，3点30开始"),
        ("3×4，￥5", "zh", "3乘4，5元"),
    ],
)
def test_signs_past_the_bound_are_said(monkeypatch, text, language, left):
    monkeypatch.setattr(verbalizer, "_MAX_WORK", 0)
    assert Verbalizer()(text, language) == left
