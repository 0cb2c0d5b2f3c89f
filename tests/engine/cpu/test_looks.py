"""Where attention heads look, as the C library notes it, against NumPy, and in other company."""

import dataclasses

import numpy as np
import pytest

from chattts_serving.engine.cpu import runner as cpu_runner
from chattts_serving.engine.gpt_config import Precision, TextHead
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from export.spoken import Speaking, SpeakingModel
from tests.engine.cpu.test_runner import CONFIGS, SUPPORTED, cpu_engine, random_sequences
from tests.engine.models import random_weights

HEADS = (TextHead(1, 0, 0), TextHead(0, 1, 3), TextHead(1, 1, 1))
PROMPT = (5, 9, 12, 7, 22, 31, 8, 17, 6)
WATCHED = (2, 7)
PRECISIONS = [Precision.FP32, Precision.BF16, Precision.INT8]


def watching(precision=Precision.FP32, heads=HEADS, config=CONFIGS["small heads"], **settings):
    """An engine that notes where `heads` look."""
    config = dataclasses.replace(config, text_heads=heads)
    return cpu_engine(precision, config=config, **settings)


def sequence(watched=WATCHED, seed=11):
    params = SamplingParams(0.8, 0.9, 20, 1.05, 25, 40, seed=seed, stream=3)
    return Sequence(Kind.AUDIO, PROMPT, params, watched=watched)


def run(machine, sequences):
    for one in sequences:
        machine.add(one)
    finished = {}
    while not machine.is_idle:
        finished |= {one.sequence: one for one in machine.step()}
    return finished


def speak(machine, others=(), watched=WATCHED):
    one = sequence(watched)
    return run(machine, [*others, one])[one]


@pytest.mark.parametrize("instructions", SUPPORTED)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_heads_look_where_the_scores_are_highest(config, instructions):
    finished = speak(watching(config=config, instructions=instructions))
    weights = {name: tensor.numpy() for name, tensor in random_weights(config).items()}
    model, expected = (
        SpeakingModel(config, weights, np.zeros(config.hidden_size, np.float32)),
        Speaking(PROMPT, *WATCHED),
    )
    codes = finished.sequence.codes(0, finished.sequence.num_new_tokens)
    for rows in (model.begin(expected, len(codes)), *map(model.code_row, codes[:-1])):
        model.step([expected], [rows])
    looks = np.stack(expected.looks)
    expected_looks = np.stack([looks[:, head.layer, head.head] for head in HEADS], axis=1)
    assert len(np.unique(expected_looks)) > 2
    np.testing.assert_array_equal(finished.looks, expected_looks)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_watching_changes_no_token(precision):
    plain, watched = speak(watching(precision), watched=None), speak(watching(precision))
    assert plain.looks is None
    assert watched.looks is not None
    assert plain.sequence.tokens == watched.sequence.tokens
    assert plain.hidden.tobytes() == watched.hidden.tobytes()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("neighbours", ["many", "in calls of a few rows", "on three threads", "preempted"])
def test_looks_are_the_same_in_any_company(precision, neighbours, monkeypatch):
    alone = speak(watching(precision)).looks
    others = [sequence(seed=seed) for seed in range(9)] + random_sequences(9)
    settings = {}
    if neighbours == "in calls of a few rows":
        monkeypatch.setattr(cpu_runner, "MAX_ROWS", 7)
    if neighbours == "on three threads":
        settings = {"threads": 3}
    if neighbours == "preempted":
        settings = {"cache_tokens": 128}
        monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    assert speak(watching(precision, **settings), others).looks.tobytes() == alone.tobytes()


def test_a_model_without_such_heads_notes_nothing():
    assert speak(watching(heads=())).looks is None
