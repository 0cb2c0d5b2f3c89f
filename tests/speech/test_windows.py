import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattts_serving.audio import HOP_LENGTH, SAMPLES_PER_TOKEN, num_samples
from chattts_serving.errors import InvalidInputError
from chattts_serving.speech.spoken_words import SpokenWord
from chattts_serving.speech.windows import (
    CONTEXT_TOKENS,
    MAX_CHUNK_TOKENS,
    Chunk,
    ReadingPlan,
    SpokenSentence,
    next_window,
    rows_of,
)


@st.composite
def plans(draw):
    most = draw(st.integers(1, 150))
    least = draw(st.lists(st.integers(1, most), min_size=1, max_size=6))
    lookahead = sorted(draw(st.lists(st.integers(1, CONTEXT_TOKENS), min_size=1, max_size=4)))
    return ReadingPlan(tuple(least), most, tuple(lookahead), draw(st.integers(0, lookahead[0])))


def lookahead_of(plan, number):
    return plan.lookahead_tokens[min(number, len(plan.lookahead_tokens) - 1)]


def read(plan, length, arrivals):
    """The windows of a sentence of `length` tokens that are there after each of `arrivals`, the last one its end."""
    windows, first, start = [], 0, 0
    for there in (*arrivals, length):
        while first < length:
            window = next_window(plan, len(windows), first, start, min(there, length), ended=there >= length)
            if window is None:
                break
            windows.append(window)
            first, start = window.last, window.end
    return windows


@given(plans(), st.integers(1, 400), st.lists(st.integers(1, 400)).map(sorted))
def test_every_token_is_rendered_and_heard_once_in_order(plan, length, arrivals):
    windows = read(plan, length, arrivals)
    assert [window.first for window in windows] == [0, *(window.last for window in windows[:-1])]
    assert [window.start for window in windows] == [0, *(window.end for window in windows[:-1])]
    assert windows[-1].last == windows[-1].end == length
    assert [window.ends for window in windows] == [False] * (len(windows) - 1) + [True]
    assert sum(window.num_samples for window in windows) == num_samples(length)
    for number, window in enumerate(windows[:-1]):
        lookahead = lookahead_of(plan, number)
        assert window.end == window.last + lookahead
        assert 1 <= window.last - window.first <= plan.most_tokens
        assert window.closes == (lookahead < CONTEXT_TOKENS)
        assert window.fade_tokens == (plan.fade_tokens if window.closes else 0)
    assert windows[-1].closes
    assert windows[-1].last - windows[-1].first <= plan.most_tokens + lookahead_of(plan, len(windows) - 1)


@given(plans(), st.integers(1, 400), st.lists(st.integers(1, 400)).map(sorted))
def test_what_a_window_renders_has_the_samples_of_its_chunk(plan, length, arrivals):
    for window in read(plan, length, arrivals):
        begins_at = max(0, window.start - CONTEXT_TOKENS) if window.start == 0 else window.start - CONTEXT_TOKENS
        ends_at = window.end if window.closes else window.end - CONTEXT_TOKENS
        assert window.first_sample == (window.first - begins_at) * SAMPLES_PER_TOKEN
        assert begins_at <= window.first
        assert window.last + window.fade_tokens <= ends_at


@given(plans(), st.integers(0, 400), st.integers(0, 10), st.integers(0, 400))
def test_a_chunk_waits_for_its_least_tokens_and_the_lookahead(plan, first, number, more):
    least = plan.least_tokens[min(number, len(plan.least_tokens) - 1)]
    window = next_window(plan, number, first, first, first + more, ended=False)
    assert (window is not None) == (more >= least + lookahead_of(plan, number))


def test_a_sentence_window_by_window():
    plan = ReadingPlan((12, 16), 32)
    window = next_window(plan, 0, 0, 0, 63, ended=False)
    assert window is None
    window = next_window(plan, 0, 0, 0, 64, ended=False)
    assert (window.start, window.first, window.last, window.end) == (0, 0, 12, 64)
    assert (window.first_sample, window.num_samples) == (0, 12 * SAMPLES_PER_TOKEN)
    window = next_window(plan, 1, 12, 64, 90, ended=False)
    assert (window.start, window.first, window.last, window.end) == (64, 12, 36, 88)
    assert (window.first_sample, window.num_samples) == (0, 24 * SAMPLES_PER_TOKEN)
    window = next_window(plan, 2, 36, 88, 120, ended=True)
    assert (window.start, window.first, window.last, window.end, window.ends) == (88, 36, 120, 120, True)
    assert window.num_samples == 84 * SAMPLES_PER_TOKEN - HOP_LENGTH


def test_windows_have_few_lengths():
    """Where tokens come at any pace: chunks are as short as is waited for, or one of few lengths."""
    plan = ReadingPlan((16, 24, 36), 1_024)
    lengths = {next_window(plan, 5, 60, 112, there, ended=False).last - 60 for there in range(148, 1_137)}
    assert lengths == {
        36,
        40,
        48,
        56,
        64,
        80,
        96,
        112,
        128,
        160,
        192,
        224,
        256,
        320,
        384,
        448,
        512,
        640,
        768,
        896,
        1_024,
    }
    ends = {
        len(rows_of(np.zeros((length, 1), np.float32), closes=True, ends=True)[0])
        for length in range(MAX_CHUNK_TOKENS + CONTEXT_TOKENS + 1)
    }
    assert len(ends) <= 26


@pytest.mark.parametrize("length", [0, 1, 16, 17, 200, MAX_CHUNK_TOKENS + CONTEXT_TOKENS])
def test_the_last_rows_are_padded_with_masked_zeros(length):
    row, mask = rows_of(np.ones((length, 3), np.float32), closes=True, ends=True)
    assert length <= len(row) <= max(16, 1.25 * length + 1)
    assert row.dtype == mask.dtype == np.float32
    assert (mask == [1] * length + [0] * (len(row) - length + 1)).all()
    assert (row == mask[:-1, np.newaxis]).all()


@pytest.mark.parametrize("closes", [False, True])
def test_rows_that_others_follow_are_not_padded(closes):
    hidden = np.arange(17, dtype=np.float32)[:, np.newaxis]
    row, mask = rows_of(hidden, closes=closes, ends=False)
    assert row[:, 0].tolist() == [*range(17), *[16] * (3 * closes)]
    assert mask.tolist() == [1] * len(row) + [0] * closes


def test_a_plan_crosses_models_as_json():
    plan = ReadingPlan((1, 2), 3, (4, 5), 2, 5, live=True)
    assert ReadingPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "values",
    [
        {"least_tokens": []},
        {"least_tokens": [0]},
        {"least_tokens": [33]},
        {"least_tokens": [1.5]},
        {"least_tokens": 16},
        {"least_tokens": [True]},
        {"most_tokens": 1_025},
        {"most_tokens": "32"},
        {"lookahead_tokens": []},
        {"lookahead_tokens": 10},
        {"lookahead_tokens": [0]},
        {"lookahead_tokens": [53]},
        {"lookahead_tokens": [10, 9]},
        {"lookahead_tokens": [10], "fade_tokens": 11},
        {"fade_tokens": 53},
        {"live": 1},
        {"sentences_ahead": 0},
        {"sentences_ahead": 65},
        {"unknown": 1},
    ],
)
def test_a_wrong_plan_is_refused_by_name(values):
    text = json.dumps({"least_tokens": [16], "most_tokens": 32} | values)
    with pytest.raises(InvalidInputError, match="'reading'"):
        ReadingPlan.from_json(text)


@pytest.mark.parametrize("text", ["", "null", "[]", "3", '{"most_tokens": 3}'])
def test_what_is_no_plan_is_refused_by_name(text):
    with pytest.raises(InvalidInputError, match="'reading'"):
        ReadingPlan.from_json(text)


def test_a_chunk_crosses_models_as_json():
    sentence = SpokenSentence("你好", 0.0, 1.5, 70, "stop")
    words = (SpokenWord("你", 0.1, 0.2, 0, 0.75),)
    chunk = Chunk(1, 2, 3, 4, 5, True, ("你好", "b"), (sentence,), 7, is_final=True, words=words, warning="so")
    assert Chunk.from_json(chunk.to_json()) == chunk
