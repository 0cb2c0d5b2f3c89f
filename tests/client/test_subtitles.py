"""SubRip and WebVTT subtitles."""

from __future__ import annotations

import re

import pytest
from chattts_client import Sentence, Word
from chattts_client.subtitles import subtitles
from hypothesis import given
from hypothesis import strategies as st

CUE = re.compile(r"(\d+)\n(\d\d+):(\d\d):(\d\d),(\d{3}) --> (\d\d+):(\d\d):(\d\d),(\d{3})\n(.*)\n")


def sentence(text: str, start: float = 0.0, end: float = 1.0) -> Sentence:
    return Sentence(text, start, end, 1, "stop")


def srt(sentences) -> str:
    return subtitles(".srt", list(sentences))


WORDS = (Word("hello", 0.1, 0.5, 0, 1.0), Word("there", 0.5, 1.25, 0, 0.5), Word("a<b", 1.756, 2.0, 1, 0.9))


def test_each_word_is_a_cue_where_there_are_words():
    sentences = [Sentence("hello there", 0, 1.5, 9, "stop", 0, "Anna"), Sentence("a<b", 1.7, 2.1, 9, "stop", 1, "Bert")]
    assert subtitles(".srt", sentences, WORDS) == (
        "1\n00:00:00,100 --> 00:00:00,500\nAnna: hello\n\n2\n00:00:00,500 --> 00:00:01,250\nthere\n\n"
        "3\n00:00:01,756 --> 00:00:02,000\nBert: a<b\n\n"
    )


def test_webvtt_has_its_head_its_marks_and_no_tags():
    assert subtitles(".vtt", [sentence("so --> [laugh] & on", 0, 3_723.0004)], ()) == (
        "WEBVTT\n\n00:00:00.000 --> 01:02:03.000\nso --&gt; &amp; on\n\n"
    )
    assert "a&lt;b" in subtitles(".vtt", [], WORDS)


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
