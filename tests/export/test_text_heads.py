"""Which heads are found: by where they look, and in real checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chattts_serving.engine.gpt_config import GPTConfig, TextHead
from chattts_serving.errors import ConfigError
from export.__main__ import DEMO
from export.checkpoint import Checkpoint
from export.frontend_assets import export_frontend_assets
from export.gpt import export_gpt
from export.text_heads import Spoken, best_heads, write_text_heads

LENGTHS = (5, 9, 4, 12, 6, 7)  # of tokens, in steps


def said(ahead=0):
    place = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    return place[np.clip(np.arange(len(place)) + ahead, 0, len(place) - 1)]


def spoken(*heads):
    """A sentence, in a model of one layer."""
    return Spoken(np.stack(heads, axis=1)[:, None], len(LENGTHS))


def noisy(looks, share, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(looks)) < share, rng.integers(0, len(LENGTHS), len(looks)), looks)


def test_heads_that_follow_the_text_are_found_the_best_first_with_their_leads():
    stuck, wild = np.full(sum(LENGTHS), 3), noisy(said(), 1.0)
    heads = best_heads([spoken(stuck, noisy(said(4), 0.2), wild, said())])
    assert heads == (TextHead(0, 3, 0), TextHead(0, 1, 4))


def test_the_head_that_looks_ahead_least_is_the_one_that_the_others_are_ahead_of():
    heads = best_heads([spoken(said(5), noisy(said(2), 0.1))])
    assert set(heads) == {TextHead(0, 0, 3), TextHead(0, 1, 0)}


def test_a_head_that_looks_at_half_of_the_text_is_none():
    assert best_heads([spoken(np.minimum(said(), 2))]) == ()


def test_without_a_sentence_that_was_said_there_is_none():
    assert best_heads([]) == ()
    assert best_heads([Spoken(np.zeros((3, 1, 1), np.int64), 9)]) == ()


@pytest.fixture
def found(tmp_path):
    def found(checkpoint):
        export_frontend_assets(checkpoint, tmp_path)
        export_gpt(checkpoint, tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["text_heads"] == []
        write_text_heads(tmp_path, tmp_path)
        return GPTConfig.load(tmp_path)

    return found


def test_random_weights_have_none_and_say_so(found, checkpoint):
    assert found(checkpoint).text_heads == ()


def test_the_heads_of_the_demo_are_those_that_training_guided(found):
    heads = found(Checkpoint.load(DEMO)).text_heads
    assert {(head.layer, head.head) for head in heads} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    leads = {(head.layer, head.head): head.lead for head in heads}
    assert max(leads[1, 0], leads[2, 0]) <= 1
    assert min(leads[1, 1], leads[2, 1]) >= 4


def test_heads_that_are_none_are_a_configuration_error(found, checkpoint, tmp_path):
    found(checkpoint)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"text_heads": [[0, 1]]}))
    with pytest.raises(ConfigError, match="text_heads"):
        GPTConfig.load(tmp_path)
