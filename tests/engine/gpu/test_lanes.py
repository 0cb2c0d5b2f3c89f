"""What is sent of sequences that join, and the sizes that steps are made for."""

import numpy as np
import pytest

from chattts_serving.engine.gpu import lanes
from chattts_serving.engine.gpu.runner import lane_buckets, prompt_buckets
from chattts_serving.engine.gpu.sampler import PENALTY_WINDOW
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.sequence import NO_TOKEN, Kind, SamplingParams, Sequence

SPEAKER_ID = 3


def sequence(prompt=(5, 6, 7), kind=Kind.AUDIO, start=0, seed=1, **extra):
    params = SamplingParams(0.3, 0.7, 20, 1.05, 0, 100, seed=seed, stream=2**32 - 1)
    return Sequence(kind, prompt, params, slot=Slot(start, 200), **extra)


def test_a_row_says_all_that_a_step_needs():
    tokens = [(number, number + 1, number + 2, number + 3) for number in range(20)]
    one = sequence(start=40, seed=2**63 - 2, earlier=np.array(tokens))
    row = lanes.lane_row(one, 4, SPEAKER_ID)
    assert row[[lanes.START, lanes.LENGTH, lanes.STEP]].tolist() == [40, 22, 19]  # of the step before
    assert row[lanes.TOKENS : lanes.TOKENS + 4].tolist() == [19, 20, 21, 22]
    assert row[[lanes.KIND, lanes.INPUT, lanes.MIN_NEW]].tolist() == [lanes.CODES, lanes.CODES, 1]
    assert row[lanes.SEED_LOW : lanes.STREAM + 1].view(np.uint32).tolist() == [2**32 - 2, 2**31 - 1, 2**32 - 1]
    assert np.array_equal(
        row[lanes.TEMPERATURE : lanes.PENALTY + 1].view(np.float32), np.array([0.3, 0.7, 1.05], np.float32)
    )
    history = row[lanes.TOKENS + 4 :].reshape(PENALTY_WINDOW, 4)
    assert {tuple(token) for token in history.tolist()} == set(tokens[-PENALTY_WINDOW:])
    assert history[17 % PENALTY_WINDOW].tolist() == list(tokens[17])


def test_a_new_sequence_starts_from_the_last_token_of_its_prompt():
    row = lanes.lane_row(sequence(prompt=(8, 9), kind=Kind.TEXT), 4, SPEAKER_ID)
    assert row[[lanes.LENGTH, lanes.STEP, lanes.KIND, lanes.INPUT]].tolist() == [1, -1, lanes.TEXT, lanes.TEXT]
    assert row[lanes.TOKENS : lanes.TOKENS + 4].tolist() == [9, 0, 0, 0]
    assert (row[lanes.TOKENS + 4 :] == NO_TOKEN).all()


def test_a_speaker_takes_the_place_of_its_token_wherever_it_is():
    speaker = np.ones(32, np.float32)
    assert (
        lanes.lane_row(sequence(prompt=(5, SPEAKER_ID), speaker=speaker), 4, SPEAKER_ID)[lanes.INPUT] == lanes.SPEAKER
    )
    assert lanes.lane_row(sequence(prompt=(5, SPEAKER_ID)), 4, SPEAKER_ID)[lanes.INPUT] == lanes.TEXT


def test_prompts_are_packed_without_their_last_tokens():
    joined = [
        (sequence(prompt=(5, SPEAKER_ID, 7), start=100, speaker=np.ones(32, np.float32)), 6),
        (sequence(prompt=(9,), start=300), 2),
        (sequence(prompt=(8,), start=400, prompt_codes=((1, 2, 3, 4),), earlier=np.array([[5, 6, 7, 8], [9] * 4])), 4),
        (sequence(prompt=(8,), start=500, kind=Kind.TEXT, earlier=np.array([[30], [31]])), 7),
    ]
    assert lanes.prompt_rows(joined, 4, SPEAKER_ID).tolist() == [
        [0, 0, 100, 6, lanes.TEXT, 5, 0, 0, 0],
        [1, 0, 101, 6, lanes.SPEAKER, SPEAKER_ID, 0, 0, 0],
        [0, 2, 400, 4, lanes.TEXT, 8, 0, 0, 0],
        [1, 2, 401, 4, lanes.CODES, 1, 2, 3, 4],
        [2, 2, 402, 4, lanes.CODES, 5, 6, 7, 8],
        [0, 5, 500, 7, lanes.TEXT, 8, 0, 0, 0],
        [1, 5, 501, 7, lanes.TEXT, 30, 0, 0, 0],
    ]


@pytest.mark.parametrize("most", [1, 2, 7, 8, 64, 100, 256, 300])
def test_every_batch_has_a_bucket_that_is_not_much_larger(most):
    buckets = lane_buckets(most)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == most
    for size in range(9, most + 1):
        assert next(bucket for bucket in buckets if bucket >= size) <= 2 * size


def test_prompt_buckets_reach_what_a_step_may_compute():
    assert prompt_buckets(512) == [64, 128, 256, 512]
    assert prompt_buckets(513)[-1] == 1024
