"""Splitting text into sentences."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.request import MAX_TEXT_CHARACTERS
from chattts_serving.sentences import MAX_PIECE_WIDTH, MAX_PIECES, split_sentences
from chattts_serving.tags import split_tags


def width(piece: str) -> int:
    """As the module's comment defines it."""
    texts, tags = split_tags(piece)[::2], split_tags(piece)[1::2]
    characters = "".join(texts)
    num_digits = sum(map(str.isdecimal, characters))
    num_letters = sum(c.isascii() and not c.isdigit() for c in characters)
    num_numbers = sum(unicodedata.category(c) == "No" for c in characters)
    num_wide = len(characters) - num_letters - num_digits - num_numbers + len(tags)
    return num_letters + 5 * num_digits + 10 * num_numbers + 3 * num_wide


@pytest.mark.parametrize(
    "text",
    [
        "Hello world.",
        "你好，世界。",
        "Pi is about 3.14 and e is about 2.72.",
        "Dr. Smith met Mr. Jones on Jan. 5.",
        "J. R. R. Tolkien wrote it at 5 p.m. in Oxford.",
        "See No. 5 and Fig. 3 on p. 12 for more.",
        "Fruit, e.g. apples, etc. are good.",
        "Go to www.example.com/a?b=1&c=2 for details.",
        "He said [uv_break] that all is well [laugh] today",
        "我用Node.js写代码",
        "Hi!",
        "。",
    ],
)
def test_one_sentence_stays_one_piece(text):
    assert split_sentences(text) == [text]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("今天天气很好。我们去公园吧！你觉得怎么样？", ["今天天气很好。", "我们去公园吧！", "你觉得怎么样？"]),
        ("The first sentence. The second one! Is this the third? Yes it really is.",
         ["The first sentence.", "The second one!", "Is this the third?", "Yes it really is."]),
        ("First sentence here.\nSecond one here.", ["First sentence here.", "Second one here."]),
        ("The first line\nThe second line\n\nThe third line", ["The first line", "The second line", "The third line"]),
        ("他慢慢地走过来……然后坐下了；什么也没说。", ["他慢慢地走过来……", "然后坐下了；", "什么也没说。"]),
        ("他问：“你去哪儿？”她说：“我要回家。”", ["他问：“你去哪儿？”", "她说：“我要回家。”"]),
        ('She said "Please go away." Then she left.', ['She said "Please go away."', "Then she left."]),
        ("We made it work (at last!). It was great fun.", ["We made it work (at last!).", "It was great fun."]),
        ("真的是太好笑了。[laugh]我们继续说下去", ["真的是太好笑了。[laugh]", "我们继续说下去"]),
        ("Is that really true?! I can't believe it...", ["Is that really true?!", "I can't believe it..."]),
        ("Is it really true!好像是真的呢", ["Is it really true!", "好像是真的呢"]),
        ("You should say no. You know better.", ["You should say no.", "You know better."]),
    ],
)  # fmt: skip
def test_sentences_end_where_a_reader_stops(text, pieces):
    assert split_sentences(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("好。我们现在就走吧。", ["好。我们现在就走吧。"]),
        ("我们现在就走吧。好。", ["我们现在就走吧。好。"]),
        ("1. The first item of all", ["1. The first item of all"]),
        ("Yes. No. Maybe. I do not know at all.", ["Yes. No. Maybe.", "I do not know at all."]),
        ("Hi.\nHow are you today?", ["Hi.\nHow are you today?"]),
        ("[laugh]\nThat was really funny.", ["[laugh]\nThat was really funny."]),
    ],
)
def test_short_fragments_join_a_neighbour(text, pieces):
    assert split_sentences(text) == pieces


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\u3000\n"])
def test_blank_text_has_no_sentences(text):
    assert split_sentences(text) == []


def test_long_sentence_is_cut_at_its_last_comma_that_fits():
    clause = "我们一起去公园散步"
    pieces = split_sentences("，".join([clause] * 40) + "。")
    assert len(pieces) == 4
    assert all(piece.endswith(("，", "。")) and width(piece) <= MAX_PIECE_WIDTH for piece in pieces)


def test_long_sentence_without_commas_is_cut_between_words():
    words = ["word"] * 200
    pieces = split_sentences(" ".join(words))
    assert [word for piece in pieces for word in piece.split()] == words


def test_numbers_are_not_cut_at_their_commas():
    pieces = split_sentences("x" * 250 + " 1,000,000 " + "y" * 200)
    assert any("1,000,000" in piece for piece in pieces)


def test_tags_are_not_cut():
    pieces = split_sentences("[uv_break]" * 500)
    assert all(piece.count("[uv_break]") * len("[uv_break]") == len(piece) for piece in pieces)


@pytest.mark.parametrize(
    "unit",
    [
        ".",
        "!",
        "。",
        "a.",
        ". ",
        '."',
        ".!?[laugh]",
        "[",
        "[uv_break",
        "\n",
        "，",
        "1",
        "x. ",
        '"',
        "啊。",
        "a\n",
        "½",
        "½。",
    ],
)
def test_longest_text_of_any_kind_is_split_within_bounds(unit):
    text = (unit * MAX_TEXT_CHARACTERS)[: MAX_TEXT_CHARACTERS - 1] + "x"
    pieces = split_sentences(text)
    assert len(pieces) <= MAX_PIECES
    assert all(width(piece) <= MAX_PIECE_WIDTH for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@settings(max_examples=30, deadline=None)
@given(
    units=st.lists(st.text(st.sampled_from("啊x5½ 。.!，\n[laugh]"), min_size=1, max_size=80), min_size=1, max_size=8)
)
def test_longest_text_makes_a_bounded_number_of_pieces(units):
    text = ("".join(units) * MAX_TEXT_CHARACTERS)[:MAX_TEXT_CHARACTERS]
    assert len(split_sentences(text)) <= MAX_PIECES


def test_sentences_of_a_long_ordinary_text_stay_apart():
    sentences = [f"我们在第{number}天去公园散步，看了很多花。" for number in range(850)]
    assert split_sentences("".join(sentences)) == sentences


UNITS = st.one_of(
    st.sampled_from(
        [
            "[uv_break]",
            "[laugh]",
            "Dr.",
            "e.g.",
            "3.14",
            "。",
            "！",
            "?",
            "...",
            "”",
            '"',
            "\n",
            " ",
            "[",
            "]",
            "，",
            ",",
        ]
    ),
    st.text(st.sampled_from("你好世界abc .!?。\n"), max_size=40),
    st.text(max_size=10),
    st.integers(1, 500).map(lambda n: "长" * n),
    st.integers(1, 900).map(lambda n: "x" * n),
)


@settings(max_examples=300, deadline=None)
@given(text=st.lists(UNITS, max_size=20).map("".join))
def test_every_character_is_in_one_piece_in_order(text):
    pieces = split_sentences(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() == piece != "" and width(piece) <= MAX_PIECE_WIDTH for piece in pieces)
    assert [tag for piece in pieces for tag in split_tags(piece)[1::2]] == split_tags(text)[1::2]
