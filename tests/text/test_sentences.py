"""Splitting text into sentences."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.request import MAX_TEXT_CHARACTERS
from chattts_serving.text.sentences import MAX_PIECE_WIDTH, MAX_PIECES, End, split_sentences
from chattts_serving.text.tags import split_tags


def width(piece: str) -> int:
    """As the module's comment defines it."""
    texts, tags = split_tags(piece)[::2], split_tags(piece)[1::2]
    characters = "".join(texts)
    num_digits = sum(map(str.isdecimal, characters))
    num_letters = sum(c.isascii() and not c.isdigit() for c in characters)
    num_numbers = sum(unicodedata.category(c) == "No" for c in characters)
    num_wide = len(characters) - num_letters - num_digits - num_numbers + len(tags)
    return num_letters + 5 * num_digits + 10 * num_numbers + 3 * num_wide


def split(text: str) -> list[str]:
    return [piece.text for piece in split_sentences(text)]


def ends(text: str) -> list[str]:
    return [piece.end.name for piece in split_sentences(text)]


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
    assert split(text) == [text]


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
    assert split(text) == pieces


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("好。我们现在就走吧。", ["好。我们现在就走吧。"]),
        ("我们现在就走吧。好。", ["我们现在就走吧。好。"]),
        ("1. The first item of all", ["1. The first item of all"]),
        ("Yes. No. Maybe. I do not know at all.", ["Yes. No. Maybe.", "I do not know at all."]),
        ("Hi.\nHow are you today?", ["Hi.\nHow are you today?"]),
        ("[laugh]\nThat was really funny.", ["[laugh]\nThat was really funny."]),
        ("We came back home. Good.\nThe next day we left.", ["We came back home. Good.", "The next day we left."]),
    ],
)
def test_short_fragments_join_a_neighbour(text, pieces):
    assert split(text) == pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The first sentence. The second one", "SENTENCE PARAGRAPH"),
        ("The first sentence.\nThe second one.\n", "PARAGRAPH PARAGRAPH"),
        ("The first sentence. \n \t\n The second one.", "PARAGRAPH PARAGRAPH"),
        ("The first sentence.\r\n\r\nThe second one.", "PARAGRAPH PARAGRAPH"),
        ("The first sentence.\u2028The second one.", "PARAGRAPH PARAGRAPH"),
        ("今天天气很好。我们去公园吧！\n你觉得怎么样？好的。", "SENTENCE PARAGRAPH PARAGRAPH"),
        ("Hi.\nHow are you today? I am fine now.", "SENTENCE PARAGRAPH"),
        ("We came back home. Good.\nThe next day we left.", "PARAGRAPH PARAGRAPH"),
        ("word " * 100 + "and now. The next one.", "CUT SENTENCE PARAGRAPH"),
        ("词" * 250 + "\n\n下一段话在这里", "CUT CUT PARAGRAPH PARAGRAPH"),
    ],
)
def test_each_piece_says_what_ended_it(text, expected):
    assert ends(text) == expected.split()


@pytest.mark.parametrize("blanks", [" ", "\n", "\u3000", " \n" * 400])
def test_white_space_between_sentences_makes_none_of_them_too_long(blanks):
    sentence = "x" * (MAX_PIECE_WIDTH - 1) + "."
    assert split(sentence + blanks + sentence) == [sentence, sentence]


@pytest.mark.parametrize("text", ["", " ", "\n\n \t\u3000\n"])
def test_blank_text_has_no_sentences(text):
    assert split(text) == []


def test_long_sentence_is_cut_at_its_last_comma_that_fits():
    clause = "我们一起去公园散步"
    pieces = split("，".join([clause] * 40) + "。")
    assert len(pieces) == 4
    assert all(piece.endswith(("，", "。")) and width(piece) <= MAX_PIECE_WIDTH for piece in pieces)


def test_long_sentence_without_commas_is_cut_between_words():
    words = ["word"] * 200
    pieces = split(" ".join(words))
    assert [word for piece in pieces for word in piece.split()] == words


def test_numbers_are_not_cut_at_their_commas():
    pieces = split("x" * 250 + " 1,000,000 " + "y" * 200)
    assert any("1,000,000" in piece for piece in pieces)


def test_tags_are_not_cut():
    pieces = split("[uv_break]" * 500)
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
    pieces = split(text)
    assert len(pieces) <= MAX_PIECES
    assert all(width(piece) <= MAX_PIECE_WIDTH for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


@settings(max_examples=30, deadline=None)
@given(
    units=st.lists(st.text(st.sampled_from("啊x5½ 。.!，\n[laugh]"), min_size=1, max_size=80), min_size=1, max_size=8)
)
def test_longest_text_makes_a_bounded_number_of_pieces(units):
    text = ("".join(units) * MAX_TEXT_CHARACTERS)[:MAX_TEXT_CHARACTERS]
    assert len(split(text)) <= MAX_PIECES


def test_sentences_of_a_long_ordinary_text_stay_apart():
    sentences = [f"我们在第{number}天去公园散步，看了很多花。" for number in range(850)]
    assert split("".join(sentences)) == sentences


NEWLINES = set("\n\r\f\u2028\u2029")
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
    pieces = split(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(piece.strip() == piece != "" and width(piece) <= MAX_PIECE_WIDTH for piece in pieces)
    assert [tag for piece in pieces for tag in split_tags(piece)[1::2]] == split_tags(text)[1::2]


SENTENCES = [
    "Dr. Smith paid $3.14 for 2.5 kg of apples, pears, etc. at the shop.",
    "See Fig. 3 and No. 12, e.g. the tables of Prof. J. R. Lee!",
    "He said [uv_break] that v1.2.3 of example.com is out [laugh] today?",
    "Is it really true?![laugh]",
    'She answered: "Please wait until 5 p.m. on Jan. 5 (at last!)."',
    "今天气温是3.5度，比昨天低了1.2度。",
    "他笑着说：“这个[laugh]真的太好笑了！”[uv_break]",
    "我用Node.js写了1,000行代码……",
    "请打开www.example.com看看吧；",
]
SEPARATORS = ["", " ", "  ", "\u3000", "\n", "\n\n", "\r\n", " \n \n\t"]


@settings(max_examples=30, deadline=None)
@given(pattern=st.lists(st.tuples(st.sampled_from(SENTENCES), st.sampled_from(SEPARATORS)), min_size=1, max_size=40))
def test_a_long_text_of_two_languages_is_split_where_it_was_put_together(pattern):
    """20,000 characters with abbreviations, decimals, addresses, quotes and tags, in paragraphs of any length."""
    text, expected = "", []
    for sentence, separator in itertools.cycle(pattern):
        blanks = " " if sentence.isascii() and not separator else separator
        if len(text + sentence + blanks) > MAX_TEXT_CHARACTERS:
            break
        text += sentence + blanks
        expected.append((sentence, End.PARAGRAPH if "\n" in separator else End.SENTENCE))
    expected[-1] = (expected[-1][0], End.PARAGRAPH)
    assert [piece[:2] for piece in split_sentences(text)] == expected


@settings(max_examples=300, deadline=None)
@given(text=st.lists(UNITS, max_size=20).map("".join))
def test_newlines_lie_behind_pieces_that_end_a_paragraph_and_no_others(text):
    """A newline inside a piece joined a short paragraph to the next."""
    place, pieces = 0, split_sentences(text)
    for (piece, end, _), following in zip(pieces, [*pieces[1:], None], strict=False):
        stop = text.index(piece, place) + len(piece)
        place = text.index(following.text, stop) if following else len(text)
        assert (end is End.PARAGRAPH) == (following is None or not NEWLINES.isdisjoint(text[stop:place]))
