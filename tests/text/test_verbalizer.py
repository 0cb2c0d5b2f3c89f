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
    for _ in range(20_000):
        verbalize(piece, language)
    assert sum(map(len, read)) <= 32_000
    assert len(read) < 12_000


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
    assert {verbalize(sentence, "en") for _ in range(20_000 // len(sentence))} == {"words"}


def test_chinese_without_digits_costs_little(read):
    verbalize = Verbalizer()
    assert {verbalize("我们在公园散步，看了很多花。", "zh") for _ in range(1_400)} == {"words"}
    assert verbalize("3天", "zh") == "words"
