import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattts_serving.audio import HOP_LENGTH, SAMPLES_PER_TOKEN, num_samples
from chattts_serving.errors import InvalidInputError
from chattts_serving.speech.windows import (
    CONTEXT_TOKENS,
    MAX_CHUNK_TOKENS,
    Chunk,
    ReadingPlan,
    SpokenSentence,
    bucket_length,
    next_window,
    padded,
)


@st.composite
def plans(draw):
    most = draw(st.integers(1, 150))
    least = draw(st.lists(st.integers(1, most), min_size=1, max_size=6))
    lookahead = draw(st.integers(1, CONTEXT_TOKENS))
    return ReadingPlan(tuple(least), most, lookahead, draw(st.integers(0, lookahead)))


def read(plan, length, arrivals):
    """The windows of a sentence of `length` tokens that are there after each of `arrivals`, the last one its end."""
    windows, first, number = [], 0, 0
    for there in (*arrivals, length):
        while first < length:
            window = next_window(plan, number, first, min(there, length), ended=there >= length)
            if window is None:
                break
            windows.append(window)
            first, number = window.last, number + 1
    return windows


@given(plans(), st.integers(1, 400), st.lists(st.integers(1, 400)).map(sorted))
def test_every_token_is_in_one_chunk_in_order_with_its_context(plan, length, arrivals):
    windows = read(plan, length, arrivals)
    assert [window.first for window in windows] == [0, *(window.last for window in windows[:-1])]
    assert windows[-1].last == length
    assert [window.ends for window in windows] == [False] * (len(windows) - 1) + [True]
    assert sum(window.num_samples for window in windows) == num_samples(length)
    for window in windows:
        assert window.start == max(0, window.first - CONTEXT_TOKENS)
        assert window.end == min(length, window.last + plan.lookahead_tokens)
        assert 1 <= window.last - window.first <= plan.most_tokens
        assert window.fade_tokens == (0 if window.ends else min(plan.fade_tokens, length - window.last))
        assert window.last + window.fade_tokens <= window.end


@given(plans(), st.integers(0, 400), st.integers(0, 10), st.integers(0, 400))
def test_a_chunk_waits_for_its_least_tokens_and_the_lookahead(plan, first, number, more):
    least = plan.least_tokens[min(number, len(plan.least_tokens) - 1)]
    window = next_window(plan, number, first, first + more, ended=False)
    assert (window is not None) == (more >= least + plan.lookahead_tokens)


def test_samples_of_a_chunk_lie_behind_its_context():
    plan = ReadingPlan((16,), 32)
    middle = next_window(plan, 3, 100, 400, ended=False)
    assert (middle.start, middle.first, middle.last, middle.end) == (48, 100, 132, 184)
    assert middle.first_sample == 52 * SAMPLES_PER_TOKEN
    assert middle.num_samples == 32 * SAMPLES_PER_TOKEN
    last = next_window(plan, 4, 132, 140, ended=True)
    assert (last.start, last.end, last.ends) == (80, 140, True)
    assert last.num_samples == 8 * SAMPLES_PER_TOKEN - HOP_LENGTH


def test_buckets_hold_their_windows_waste_little_and_are_few():
    longest = MAX_CHUNK_TOKENS + 2 * CONTEXT_TOKENS
    lengths = [bucket_length(tokens) for tokens in range(longest + 1)]
    assert all(length >= tokens for tokens, length in enumerate(lengths))
    assert all(length <= 1.25 * tokens + 1 for tokens, length in enumerate(lengths) if tokens >= 16)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) <= 26


@pytest.mark.parametrize("length", [0, 1, 16, 17, 200])
def test_padding_is_masked_zeros(length):
    row, mask = padded(np.ones((length, 3), np.float32))
    assert row.shape == (bucket_length(length), 3)
    assert row.dtype == mask.dtype == np.float32
    assert (mask == [1] * length + [0] * (len(row) - length)).all()
    assert (row == mask[:, np.newaxis]).all()


def test_a_plan_crosses_models_as_json():
    plan = ReadingPlan((1, 2), 3, 4, 2, 5)
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
        {"lookahead_tokens": 0},
        {"lookahead_tokens": 53},
        {"fade_tokens": 53},
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
    chunk = Chunk(1, 2, 3, 4, 5, ("你好", "b"), (sentence,), 7, is_final=True)
    assert Chunk.from_json(chunk.to_json()) == chunk
