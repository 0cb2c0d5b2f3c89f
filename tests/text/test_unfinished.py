"""Texts in pieces: whatever they are and wherever they are cut, their sentences are those of the whole text."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest

from chattts_serving.errors import InvalidInputError
from chattts_serving.text import unfinished
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.directives import check_directives
from chattts_serving.text.lexicon import Lexicon
from chattts_serving.text.markup import without_markup
from chattts_serving.text.sentences import End, split_sentences
from chattts_serving.text.unfinished import WITHOUT_ENTRIES, Languages, Sentence, UnfinishedText

WORDS = [
    *(
        "Hello",
        "there",
        "I",
        "am",
        "Dr",
        "No",
        "5",
        "3.14",
        "1,000",
        "etc",
        "e.g.",
        "don’t",
        "x" * 30,
        "and so on " * 6,
    ),
    *(
        "你好",
        "世界",
        "今天天气",
        "真不错",
        "公园吧",
        "é",
        "e\u0301",
        "½",
        "№",
        "ａ",
        "１２：３０",
        "α",
        "Ж",
        "\u0301",
    ),
    *("[pause 500ms]", "[pause 1.5s]", "[pause]", "[spell A-1]", "[spell it out]", "[spell ABC]", "[paus", "[spell A"),
    *(
        "nginx",
        "nginx's",
        "nginxes",
        "New York",
        "New",
        "New York Times",
        "York City",
        "Hello there",
        "can",
        "can't",
        "'t",
        "?!",
        "5 a",
        "重庆",
        "重",
        "庆",
        "C++",
        "'tis",
        "ca",
        "’s",
    ),
    *("[laugh]", "[uv_break]", "[speed_5]", "[1]", "[^2]", "[link](http://a.b)", "[link", "](http://a.b)"),
    *(
        "**bold**",
        "**",
        "*",
        "*it*",
        "_it_",
        "`code`",
        "```",
        "~~x~~",
        "==",
        "a*b",
        "\\*",
        "&amp;",
        "R&D",
        "<b>",
        "</b>",
    ),
    *("# Title", "#", "- item", "1. one", "> q", "|a|b|", "---", "\u00ad\n", "\u200b", "\ue030", "\u2028"),
]
MARKS = [*" " * 12, *(". ", "! ", "? ", ", ", "。", "！", "？", "，", "；", "…", "\n", "\n\n", "\r\n", "  ", ": ", "—")]
MARKS += [".", "?", "!", "”", '" ', "(", ") ", "-", " | ", "\t", ";"]


ENTRIES = {
    "nginx": "engine x",
    "New York": "the city",
    "New York Times": "a paper. It is",
    "York Cit": "no",
    "重庆": "虫庆。它",
    "庆今天": "no",
    "C++": "C plus plus",
    "Hello there": "[pause 250ms] well",
    "can": "could",
    "'t": "not",
    "5 a": "five, a",
    "etc. and": "and so on, and",
    "?!": " what",
}


def whole(text: str, *, normalize: bool = True, lexicon: Lexicon = WITHOUT_ENTRIES) -> list[Sentence]:
    """The sentences of a text that is there at once, as the frontend finds them."""
    known = to_known_characters(text)
    check_directives("text", known)
    languages = Languages()
    pieces = split_sentences(lexicon(without_markup(known) if normalize else known))
    return [*languages.add(pieces), *languages.end()]


def cut(text: str, random_: random.Random) -> list[str]:
    """`text` in pieces, some as long as a token, some of one character, some of many."""
    pieces = []
    while text:
        length = random_.choice((1, 1, 2, 3, 5, 20, 100))
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def said(pieces: list[str], **options: Any) -> tuple[list[Sentence], list[Sentence]]:
    """What a text gives out while it comes, and at its end."""
    text = UnfinishedText(**options)
    return [sentence for piece in pieces for sentence in text.add(piece)], text.end()


@pytest.mark.parametrize("seed", range(400))
def test_pieces_give_the_sentences_of_the_whole(seed: int) -> None:
    random_ = random.Random(seed)
    words = WORDS if seed % 3 else WORDS[:20]
    lexicon = Lexicon(ENTRIES) if seed % 2 else WITHOUT_ENTRIES
    text = "".join(random_.choice(words) + random_.choice(MARKS) for _ in range(random_.choice((3, 10, 30, 80))))
    normalize = seed % 5 > 0
    pieces = cut(text, random_)
    try:
        expected = whole(text, normalize=normalize, lexicon=lexicon)
    except InvalidInputError as error:
        with pytest.raises(InvalidInputError, match=re.escape(error.allowed)):
            said(pieces, normalize=normalize, lexicon=lexicon)
    else:
        before, left = said(pieces, normalize=normalize, lexicon=lexicon)
        assert before + left == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("The first one is here. And the second", "The first one is here."),
        ("第一句话在这里。第二句话还没有", "第一句话在这里。"),
        ("A **bold** word is here. And the second", "A bold word is here."),
        ("A paragraph without a stop\n\nAnd then the next", "A paragraph without a stop"),
        ("See [the page](http://a.b) now. And the second", "See the page now."),
        ("He laughs at that. [laugh] And the second", "He laughs at that."),
        ("He waits [pause 1.5s] and", "He waits"),
        ("He says [spell A1]. And the second", "He says [spell A1]."),
    ],
)
def test_a_sentence_leaves_as_soon_as_the_next_has_begun(text: str, sentence: str) -> None:
    before, _ = said([*text, " w"])
    assert [one.text for one in before if one.silence is None] == [sentence]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_pause_is_given_out_whole_where_text_follows_it(normalize: bool) -> None:
    text = UnfinishedText(normalize=normalize)
    assert text.add("Wait [pause ") + text.add("1.") == []
    assert [(one.text, one.silence) for one in text.add("5s] an")] == [("Wait", None), ("", 36_000)]


def test_a_word_that_may_become_a_longer_one_is_kept() -> None:
    text = UnfinishedText(lexicon=Lexicon({"York": "Y", "New York City": "the city"}))
    before = "The first one is here. "
    assert text.add(f"{before}And New ") == []
    assert [one.text for one in text.add("York was there")] == [before.strip()]
    assert [one.text for one in text.end()] == ["And New Y was there"]


@pytest.mark.parametrize(
    "text",
    [
        "The first one is here. Yes.",  # joins it, if nothing follows
        "The first one is here. And",
        "We met Dr. Smith yesterday evening",
        "It costs 3.",
        "A *word that may become emphasis. And the second one",
        "See [the page that may become a link. And the second one",
        "5 * 3 = 15 in all cases. And the second one",
        "2024!",  # in which language?
    ],
)
def test_what_further_text_could_change_is_kept(text: str) -> None:
    before, _ = said([*text, " w"])
    assert before == []


def test_a_long_sentence_without_an_end_is_cut_while_it_comes() -> None:
    before, _ = said(["one more word, "] * 60)
    assert [one.end for one in before] == [End.CUT] * 2
    assert all(len(one.text) > 180 for one in before)


@pytest.mark.parametrize(
    "text", ["See [^2](今天天气) and more of it. The next one.", "**-- item * of a list. The next one is here."]
)
def test_what_looks_like_a_footnote_or_a_rule_and_is_none_is_waited_for(text: str) -> None:
    before, left = said([*text])
    assert before + left == whole(text)


def test_a_short_sentence_joins_the_next_one_which_is_cut_later() -> None:
    text = "No；No。" + ("and so on " * 6 + "， ") * 8
    before, left = said([*text])
    assert before + left == whole(text)


def test_a_sentence_without_words_has_the_language_of_the_one_before_or_behind_it() -> None:
    texts = [
        (one.text, one.language)
        for one in whole("2024!\n今天天气真不错，我们走吧。\n13812345678\nAnd here we are.\n42 + 42 + 42")
    ]
    assert [language for _, language in texts] == ["zh", "zh", "zh", "en", "en"]


def test_a_text_that_becomes_too_long_is_refused_by_its_length() -> None:
    text = UnfinishedText()
    text.add("word " * 3_999)
    with pytest.raises(
        InvalidInputError, match=r"'text' is .*; allowed is pieces of 1 to 20,000 .* together, got 20,001"
    ):
        text.add("sixsix")


def test_a_text_of_too_many_sentences_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "MAX_PIECES", 3)
    text = UnfinishedText()
    text.add("This is a sentence of its own. " * 4)
    with pytest.raises(InvalidInputError, match="'text' is '4 sentences'; allowed is at most 3 sentences"):
        text.add("This is a sentence of its own. And")


def test_a_tag_that_is_none_is_refused_when_it_has_come() -> None:
    text = UnfinishedText()
    assert text.add("Hello there, this is fine. And [laugh") == []
    with pytest.raises(InvalidInputError, match=r"'\[laugh_9\]'; allowed is text with control tags"):
        text.add("_9] is not.\nAnd")


def test_letters_of_other_scripts_are_told_and_refused_at_the_end_where_they_are_most() -> None:
    text = UnfinishedText()
    text.add("привет привет hello to all of you here ")
    assert text.warning == "not spoken, as the model speaks Chinese and English: 12 letters (Cyrillic)"
    text.end()
    text = UnfinishedText()
    text.add("Привет, это русский текст. ")
    with pytest.raises(InvalidInputError, match="Chinese or English; 21 of its 21 letters are others"):
        text.end()


@pytest.mark.parametrize(
    ("text", "said_now", "end"),
    [
        ("Let me look that up.", "Let me look that up.", End.SENTENCE),
        ("Let me look that up. ", "Let me look that up.", End.SENTENCE),
        ("First we go there, and then we", "First we go there,", End.CUT),
        ("好的，我们先看看。然后", "好的，我们先看看。", End.SENTENCE),
        ("A line of its own\n", "A line of its own", End.PARAGRAPH),
        ("Look here, and then [pause 1", "Look here,", End.CUT),
        ("Look here, he said [spell A", "Look here,", End.CUT),
    ],
)
def test_in_a_hurry_what_seems_complete_is_said(text: str, said_now: str, end: End) -> None:
    unfinished_text = UnfinishedText()
    assert unfinished_text.add(text) == []
    [sentence] = unfinished_text.hurry()
    assert (sentence.text, sentence.end) == (said_now, end)


def test_in_a_hurry_nothing_is_lost_and_no_clause_is_broken() -> None:
    text = UnfinishedText()
    assert text.add("no clause has come to its en") == []
    assert text.hurry() == []
    found = text.add("d, so we wa") + text.hurry() + text.add("it for it here.") + text.end()
    assert " ".join(one.text for one in found) == "no clause has come to its end, so we wait for it here."
