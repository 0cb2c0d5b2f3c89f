"""The engine on a small random model: batches, joining, leaving and preemption must not change what is generated."""

import numpy as np
import pytest
import torch

from chattts_serving.engine.engine import Engine, EngineConfig
from chattts_serving.engine.model_runner import ModelRunner
from chattts_serving.engine.sequence import FinishReason, Kind, SamplingParams, Sequence
from chattts_serving.errors import ConfigError
from chattts_serving.gpt import Precision
from tests.engine.models import CONFIG, random_gpt


def engine(cache_tokens=1_000, precision=Precision.FP32, **limits):
    model = random_gpt(precision=precision)
    gigabytes = (cache_tokens + 0.5) * ModelRunner.bytes_per_token(model) / 1e9
    return Engine(model, EngineConfig(kv_cache_gb=gigabytes, **limits))


def sequence(kind=Kind.AUDIO, prompt=(5, 6, 7), seed=1, max_new=30, min_new=0, **extra):
    params = SamplingParams(
        temperature=1.0,
        top_p=0.95,
        top_k=20,
        repetition_penalty=1.05 if kind is Kind.AUDIO else 1.0,
        min_new_tokens=min_new,
        max_new_tokens=max_new,
        seed=seed,
        stream=0,
    )
    return Sequence(kind, prompt, params, **extra)


def mixed_sequences():
    speaker = np.linspace(-1, 1, CONFIG.hidden_size, dtype=np.float32)
    return [
        sequence(prompt=(5, 6, 7), seed=1),
        sequence(Kind.TEXT, prompt=(8, 9), seed=2),
        sequence(prompt=(1, 3, 20, 21, 22, 23), seed=3, speaker=speaker),
        sequence(prompt=(9,), seed=4, prompt_codes=((1, 2, 3, 4), (5, 6, 7, 8))),
        sequence(Kind.TEXT, prompt=tuple(range(5, 30)), seed=5),
    ]


def run(machine, sequences):
    """Run `sequences`, all added at once, to their end; hidden states by sequence."""
    for one in sequences:
        machine.add(one)
    return drain(machine)


def drain(machine):
    hidden = {}
    while machine.num_running or machine.num_waiting:
        hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
    return hidden


def alone():
    """What each of `mixed_sequences` generates with nobody beside it."""
    results = []
    for one in mixed_sequences():
        hidden = run(engine(), [one])[one]
        results.append((one.tokens, one.finish_reason, hidden))
    return results


def check_equal(sequences, hidden, expected):
    for one, (tokens, reason, states) in zip(sequences, expected, strict=True):
        assert one.tokens == tokens
        assert one.finish_reason is reason
        np.testing.assert_allclose(hidden[one], states, atol=1e-5)


def test_a_batch_generates_what_each_sequence_generates_alone():
    sequences = mixed_sequences()
    check_equal(sequences, run(engine(), sequences), alone())


@pytest.mark.parametrize("order_seed", range(5))
def test_sequences_that_join_between_steps_change_nothing(order_seed):
    rng = np.random.default_rng(order_seed)
    machine, sequences, hidden = engine(), mixed_sequences(), {}
    for place in rng.permutation(len(sequences)):
        machine.add(sequences[place])
        for _ in range(rng.integers(0, 6)):
            hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
    hidden |= drain(machine)
    check_equal(sequences, hidden, alone())


def test_in_int8_neighbours_change_no_bit():
    """Integer products leave attention and norms, which are per sequence and per row."""
    sequences = [*mixed_sequences(), *mixed_sequences()]
    together = run(engine(precision=Precision.INT8), sequences)
    for one, other in zip(sequences, [*mixed_sequences(), *mixed_sequences()], strict=True):
        hidden = run(engine(precision=Precision.INT8), [other])[other]
        assert one.tokens == other.tokens
        assert np.array_equal(together[one], hidden)


def test_preempted_sequences_generate_the_same(monkeypatch):
    """A cache for one sequence of full length, slots that grow by 4: the young are preempted over and over."""
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    machine, sequences = engine(cache_tokens=128), [*mixed_sequences(), *mixed_sequences()]
    preemptions = []
    preempt = machine._scheduler._preempt
    monkeypatch.setattr(machine._scheduler, "_preempt", lambda one: (preemptions.append(one), preempt(one)))
    check_equal(sequences, run(machine, sequences), alone() * 2)
    assert preemptions
    assert machine.num_free_cache_tokens == 128


def test_a_removed_sequence_leaves_its_neighbours_alone():
    machine, sequences = engine(), mixed_sequences()
    for one in sequences:
        machine.add(one)
    machine.step()
    machine.remove(sequences[2])
    hidden = drain(machine)
    expected = alone()
    check_equal(sequences[:2] + sequences[3:], hidden, expected[:2] + expected[3:])
    assert sequences[2] not in hidden
    assert machine.num_free_cache_tokens == 1_000


def test_the_seed_decides_what_is_drawn():
    first, same, other = sequence(seed=1), sequence(seed=1), sequence(seed=2)
    run(engine(), [first, same, other])
    assert first.tokens == same.tokens
    assert first.tokens != other.tokens


def test_limits_on_the_number_of_tokens_hold():
    sequences = [sequence(seed=seed, min_new=7, max_new=9) for seed in range(40)]
    run(engine(), sequences)
    assert {len(one.tokens) for one in sequences} == {7, 8, 9}
    assert {one.finish_reason for one in sequences} == {FinishReason.STOP, FinishReason.LENGTH}


def test_every_sequence_has_at_least_one_token():
    sequences = [sequence(seed=seed, max_new=1) for seed in range(100)]
    run(engine(), sequences)
    assert all(len(one.tokens) == 1 for one in sequences)


def test_hidden_states_are_those_of_one_pass_over_the_whole_sequence():
    """Cached steps against one uncached causal pass of the model."""
    one = sequence(prompt=(5, 6, 7), max_new=12, min_new=12)
    states = run(engine(), [one])[one]
    model = random_gpt()
    embeddings = torch.cat(
        [model.embed_text(torch.tensor(one.prompt_ids)), model.embed_codes(torch.tensor(one.tokens))]
    )

    def attend(layer, q, k, v):
        q, k, v = (tensor.transpose(0, 1) for tensor in (q, k, v))
        scores = (q @ k.transpose(1, 2)) / CONFIG.head_dim**0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1)

    whole = model.forward(embeddings, torch.arange(len(embeddings)), attend)
    np.testing.assert_allclose(states, whole[2:-1].numpy(), atol=1e-5)


def test_a_budget_that_holds_no_full_sequence_is_a_configuration_error():
    with pytest.raises(ConfigError, match="kv_cache_gb"):
        engine(cache_tokens=127)
