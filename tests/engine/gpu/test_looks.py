"""Where text heads look, as the PyTorch runner notes it: where the runner for CPUs does, in any company."""

import dataclasses

import numpy as np
import pytest

from chattts_serving.engine.gpu.torch_ops import TorchOps
from chattts_serving.engine.gpu.variants import Variant
from tests.engine.cpu import test_looks as cpu
from tests.engine.cpu.test_runner import random_sequences
from tests.engine.models import CONFIG, random_engine

WATCHING = dataclasses.replace(CONFIG, text_heads=cpu.HEADS)


def watching(**settings):
    return random_engine(config=WATCHING, **settings)


@pytest.fixture(scope="module")
def expected():
    """By the runner for CPUs."""
    return cpu.speak(cpu.watching(config=CONFIG))


@pytest.mark.parametrize(
    ("neighbours", "steps_ahead", "one_pass"), [(0, 0, False), (5, 0, False), (5, 1, False), (5, 1, True)]
)
def test_heads_look_where_they_do_by_the_runner_for_cpus(expected, neighbours, steps_ahead, one_pass):
    others = [cpu.sequence(seed=seed) for seed in range(neighbours)] + random_sequences(neighbours)
    finished = cpu.speak(watching(steps_ahead=steps_ahead, variant=Variant(one_pass=one_pass)), others)
    assert finished.sequence.tokens == expected.sequence.tokens
    assert len(np.unique(finished.looks)) > 2
    np.testing.assert_array_equal(finished.looks, expected.looks)


def test_who_is_preempted_or_rests_keeps_its_looks(expected, monkeypatch):
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    machine, preemptions = watching(cache_tokens=128, steps_ahead=1), []
    preempt = machine._scheduler._preempt
    monkeypatch.setattr(machine._scheduler, "_preempt", lambda one: (preemptions.append(one), preempt(one)))
    one, other, finished, rests = cpu.sequence(), cpu.sequence(), {}, [5, 20]
    for sequence in (*random_sequences(5), one, other):
        machine.add(sequence)
    while not machine.is_idle:
        finished |= {ended.sequence: ended for ended in machine.step()}
        if rests and other.num_new_tokens >= rests[0]:
            rests.pop(0)
            machine.rest(other)
            finished |= {ended.sequence: ended for ended in machine.step()}
            machine.resume(other)
    assert not rests
    assert {one, other} & {*preemptions}
    for sequence in (one, other):
        np.testing.assert_array_equal(finished[sequence].looks, expected.looks)


def test_only_steps_with_somebody_who_is_watched_note_anything(monkeypatch):
    asked, attend = [], TorchOps.attend_lanes

    def attend_lanes(self, layer, qkv, *, watch=False):
        asked.append(watch)
        return attend(self, layer, qkv, watch=watch)

    monkeypatch.setattr(TorchOps, "attend_lanes", attend_lanes)
    machine = watching()
    plain = cpu.speak(machine, watched=None)
    assert plain.looks is None
    assert asked
    assert not any(asked)
    asked.clear()
    watched = cpu.speak(machine)
    assert all(asked)
    assert watched.sequence.tokens == plain.sequence.tokens
    assert watched.hidden.tobytes() == plain.hidden.tobytes()


def test_a_model_without_such_heads_notes_nothing():
    assert cpu.speak(random_engine()).looks is None
