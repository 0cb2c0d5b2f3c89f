"""SubRip subtitles."""

from __future__ import annotations

import re

import pytest
from chattts_client import Sentence
from chattts_client.subtitles import srt
from hypothesis import given
from hypothesis import strategies as st

CUE = re.compile(r"(\d+)\n(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})\n(.*)\n")


def sentence(text: str, start: float = 0.0, end: float = 1.0) -> Sentence:
    return Sentence(text, start, end, 1, "stop")


def test_each_sentence_is_a_cue():
    assert srt([sentence("Hello there.", 0, 1.5), sentence("你好", 1.756, 3_723.0004)]) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello there.\n\n2\n00:00:01,756 --> 01:02:03,000\n你好\n\n"
    )


@given(st.lists(st.tuples(st.text(), st.floats(0, 400_000), st.floats(0, 400_000)), max_size=5))
def test_any_sentences_make_well_formed_cues_with_their_times(entries):
    parts = srt(sentence(text, start, end) for text, start, end in entries).split("\n\n")
    assert parts.pop() == ""
    assert len(parts) == len(entries)
    for number, (part, (_, *times)) in enumerate(zip(parts, entries, strict=True), 1):
        cue = CUE.fullmatch(part + "\n")
        assert int(cue[1]) == number
        for offset, seconds in zip((2, 6), times, strict=True):
            hours, minutes, whole, milliseconds = (int(cue[offset + place]) for place in range(4))
            assert max(minutes, whole) < 60
            assert hours * 3600 + minutes * 60 + whole + milliseconds / 1000 == pytest.approx(seconds, abs=0.00051)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so [uv_break] it[laugh]goes [Lbreak]", "so it goes"),
        ("two\n\nlines\r\n here", "two lines here"),
        ("[laugh]", "[laugh]"),
        ("a [1] b [ c", "a [1] b [ c"),
    ],
)
def test_a_cue_has_the_words_on_one_line(text, shown):
    assert srt([sentence(text)]).split("\n")[2] == shown
