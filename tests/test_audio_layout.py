import numpy as np
import pytest

from chattts_serving.audio import HOP_LENGTH, SAMPLES_PER_TOKEN, num_samples
from chattts_serving.layout import PAUSE_TOKENS, bucket_length, lay_out

HIDDEN = 3


def sentence(tokens, value):
    return np.full((tokens, HIDDEN), value, np.float32)


def test_a_token_is_two_hops_and_the_last_frame_adds_none():
    assert [num_samples(tokens) for tokens in (0, 1, 2, 96)] == [0, 256, 768, 96 * SAMPLES_PER_TOKEN - HOP_LENGTH]


def test_buckets_hold_their_rows_waste_little_and_are_few():
    lengths = [bucket_length(tokens) for tokens in range(1, 20_000)]
    assert all(length >= tokens for tokens, length in enumerate(lengths, 1))
    assert all(length <= 1.25 * tokens + 1 for tokens, length in enumerate(lengths, 1) if tokens >= 16)
    assert lengths == sorted(lengths)
    assert len(set(lengths[:2_048])) <= 30


@pytest.mark.parametrize("tokens", [(5,), (5, 1, 9), (40,) * 20])
def test_every_token_is_in_the_row_with_pauses_between_sentences(tokens):
    sentences = [sentence(count, value) for value, count in enumerate(tokens, 1)]
    row = lay_out(sentences)
    end = sum(tokens) + PAUSE_TOKENS * (len(tokens) - 1)
    assert row.hidden.shape == (bucket_length(end), HIDDEN)
    assert row.num_samples == num_samples(end)
    start = 0
    for value, count in enumerate(tokens, 1):
        assert (row.hidden[start : start + count] == value).all()
        assert (row.mask[start : start + count] == 1).all()
        start += count
        assert (row.mask[start : start + PAUSE_TOKENS] == 0).all()
        start += PAUSE_TOKENS
    assert row.mask.sum() == sum(tokens)
    assert (row.hidden[row.mask == 0] == 0).all()
