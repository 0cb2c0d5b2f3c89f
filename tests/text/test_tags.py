"""Control tags."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattts_serving.errors import InvalidInputError
from chattts_serving.text.tags import CONTROL_TAGS, check_only_tags, check_tags, is_speakable, split_tags, without_tags
from export.synthetic_tokenizer import CHATTTS_TOKENS

FRAME_TAGS = [
    "[Stts]",
    "[Ptts]",
    "[spk_emb]",
    "[empty_spk]",
    "[Sbreak]",
    "[Pbreak]",
    "[Ebreak]",
    "[PAD]",
    "[UNK]",
    "[CLS]",
]


def test_control_tags_are_the_lower_case_tokens_of_chattts_but_those_of_the_voice():
    lower_case = {token for token in CHATTTS_TOKENS if token.islower()}
    assert lower_case - CONTROL_TAGS == {"[spk_emb]", "[empty_spk]"}
    assert lower_case >= CONTROL_TAGS


@pytest.mark.parametrize(
    "tag", [*FRAME_TAGS, "[Laugh]", "[laugh_3]", "[break_8]", "[speed]", "[sigh]", "[MASK]", "[SEP]"]
)
@pytest.mark.parametrize("check", [check_tags, check_only_tags])
def test_other_tags_are_refused_by_name(check, tag):
    with pytest.raises(InvalidInputError) as error:
        check("prompt", f"[laugh]{tag}")
    assert error.value.name == "prompt"
    assert tag in str(error.value)


@pytest.mark.parametrize(
    "text", ["[1]", "[", "]", "[]", "[a b]", "[你好]", "[[laugh]", "[laugh", "[laugh]]", "[_a]", "[a-b]"]
)
def test_brackets_that_open_no_tag_are_punctuation(text):
    check_tags("text", text)
    with pytest.raises(InvalidInputError, match="nothing but control tags"):
        check_only_tags("prompt", text)


@pytest.mark.parametrize("text", ["", " ", "[speed_5]", "[oral_2][laugh_0][break_6]", " [oral_2] [laugh_0] "])
def test_prompts_of_tags_alone_are_allowed(text):
    check_only_tags("prompt", text)


@given(text=st.lists(st.sampled_from(["[laugh]", "[foo]", "[", "]", "a", "[1]", " "])).map("".join))
def test_taking_apart_loses_nothing(text):
    pieces = split_tags(text)
    assert "".join(pieces) == text
    assert " ".join(pieces[::2]) == without_tags(text)
    assert all(piece.startswith("[") and piece.endswith("]") for piece in pieces[1::2])


@pytest.mark.parametrize(
    ("text", "speakable"), [("a", True), ("好", True), ("1", True), ("[laugh]", False), ("，. ", False)]
)
def test_what_can_be_said_stands_outside_of_tags(text, speakable):
    assert is_speakable(text) == speakable
