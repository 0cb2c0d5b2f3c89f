"""The engine on a small random model: batches, joining, leaving and preemption must not change what is generated."""

import functools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from chattts_serving.engine.gpt_config import Precision, TextHead
from chattts_serving.engine.gpu.runner import TorchRunner
from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.engine.runner import cache_capacity
from chattts_serving.engine.sequence import FinishReason, Kind, Priority, SamplingParams, Sequence
from chattts_serving.errors import ConfigError
from tests.engine.models import CONFIG, random_engine, random_gpt


@pytest.fixture(params=[0, 1], ids=["read at once", "read a step later"])
def steps_ahead(request):
    return request.param


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


@functools.cache
def alone():
    """What each of `mixed_sequences` generates with nobody beside it."""
    results = []
    for one in mixed_sequences():
        hidden = run(random_engine(), [one])[one]
        results.append((one.tokens, one.finish_reason, hidden))
    return results


def check_equal(sequences, hidden, expected):
    for one, (tokens, reason, states) in zip(sequences, expected, strict=True):
        assert one.tokens == tokens
        assert one.finish_reason is reason
        # Of size 3 after two layers: float32 sums of 64 to 160 terms in another order, as another batch or instruction
        # set has them, differ by up to 5e-5 (seen with ATEN_CPU_CAPABILITY=default); another token's are 1 apart.
        np.testing.assert_allclose(hidden[one], states, atol=1e-4)


def test_a_batch_generates_what_each_sequence_generates_alone(steps_ahead):
    sequences = mixed_sequences()
    check_equal(sequences, run(random_engine(steps_ahead=steps_ahead), sequences), alone())


@pytest.mark.parametrize("order_seed", range(5))
def test_sequences_that_join_between_steps_change_nothing(order_seed, steps_ahead):
    rng = np.random.default_rng(order_seed)
    machine, sequences, hidden = random_engine(steps_ahead=steps_ahead), mixed_sequences(), {}
    for place in rng.permutation(len(sequences)):
        machine.add(sequences[place])
        for _ in range(rng.integers(0, 6)):
            hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
    hidden |= drain(machine)
    check_equal(sequences, hidden, alone())


def test_preempted_sequences_generate_the_same(monkeypatch, steps_ahead):
    """A cache for one sequence of full length, slots that grow by 4: the young are preempted over and over."""
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    machine, sequences = (
        random_engine(cache_tokens=128, steps_ahead=steps_ahead),
        [*mixed_sequences(), *mixed_sequences()],
    )
    preemptions = []
    preempt = machine._scheduler._preempt
    monkeypatch.setattr(machine._scheduler, "_preempt", lambda one: (preemptions.append(one), preempt(one)))
    check_equal(sequences, run(machine, sequences), alone() * 2)
    assert preemptions
    assert machine.num_free_cache_tokens == 128


def test_slots_that_move_change_nothing(monkeypatch, steps_ahead):
    """Slots that grow by 4 in a cache with room: those with a neighbour behind them are copied elsewhere."""
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    moves = []
    move_cache = TorchRunner.move_cache
    monkeypatch.setattr(TorchRunner, "move_cache", lambda *move: (moves.append(move), move_cache(*move)))
    sequences = mixed_sequences()
    check_equal(sequences, run(random_engine(steps_ahead=steps_ahead), sequences), alone())
    assert moves


def test_a_batch_as_large_as_allowed_runs_and_the_rest_waits(steps_ahead):
    sequences = [*mixed_sequences(), *mixed_sequences()]
    check_equal(sequences, run(random_engine(max_sequences=3, steps_ahead=steps_ahead), sequences), alone() * 2)


def check_that_the_poisoned_fail_alone(make_engine):
    """Sequences whose voice is no number end at their first draw; what others generate beside them does not change."""
    expected = mixed_sequences()
    expected_hidden = run(make_engine(), expected)
    nothing = np.full(CONFIG.hidden_size, np.nan, np.float32)
    poisoned = [sequence(kind, prompt=(3, 5, 6), speaker=nothing) for kind in Kind]
    machine, sequences = make_engine(), mixed_sequences()
    hidden = run(machine, [*sequences[:2], *poisoned, *sequences[2:]])
    for one in poisoned:
        assert one.finish_reason is FinishReason.FAILED
        assert one.tokens == []
    for one, other in zip(sequences, expected, strict=True):
        assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
        np.testing.assert_allclose(hidden[one], expected_hidden[other], atol=1e-5)
    assert machine.is_idle


def test_a_sequence_without_finite_logits_fails_alone(steps_ahead):
    check_that_the_poisoned_fail_alone(lambda: random_engine(steps_ahead=steps_ahead))


def test_batch_sequences_that_make_room_generate_the_same(monkeypatch, steps_ahead):
    """Interactive ones come one by one into a full batch."""
    machine = random_engine(max_sequences=2, steps_ahead=steps_ahead)
    preemptions = []
    preempt = machine._scheduler._preempt
    monkeypatch.setattr(machine._scheduler, "_preempt", lambda one: (preemptions.append(one), preempt(one)))
    batch = [sequence(prompt=one.prompt_ids, seed=7, priority=Priority.BATCH) for one in mixed_sequences()]
    batch_alone = [sequence(prompt=one.prompt_ids, seed=7) for one in batch]
    batch_hidden = run(random_engine(), batch_alone)
    interactive, hidden = mixed_sequences(), {}
    for one in batch:
        machine.add(one)
    for one in interactive:
        for _ in range(3):
            hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
        machine.add(one)
    hidden |= drain(machine)
    check_equal(interactive, hidden, alone())
    expected = [(one.tokens, one.finish_reason, batch_hidden[one]) for one in batch_alone]
    check_equal(batch, hidden, expected)
    assert preemptions


def test_a_step_that_fails_leaves_no_trace(monkeypatch, steps_ahead):
    """Whoever runs the engine drops the sequences of a failed step; those that come after must not notice."""
    machine, sequences = random_engine(steps_ahead=steps_ahead), mixed_sequences()
    for one in sequences:
        machine.add(one)
    machine.step()
    with monkeypatch.context() as patch:
        patch.setattr(TorchRunner, "_decode", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            machine.step()
    for one in sequences:
        machine.remove(one)
    again = mixed_sequences()
    check_equal(again, run(machine, again), alone())


def random_sequence(seed):
    rng = np.random.default_rng(seed)
    kind = Kind.TEXT if rng.random() < 0.3 else Kind.AUDIO
    prompt = tuple(rng.integers(5, 45, rng.integers(1, 40)).tolist())
    return sequence(kind, prompt, seed=int(rng.integers(0, 2**62)), max_new=int(rng.integers(1, 40)))


@pytest.mark.parametrize("seed", range(8))
def test_any_load_generates_what_each_sequence_generates_alone(monkeypatch, seed, steps_ahead):
    """Random limits, joins, rests and removals, in a cache so small that slots move and sequences are preempted."""
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    rng = np.random.default_rng(seed)
    cache_tokens, max_sequences, max_prefill = (int(rng.integers(*limits)) for limits in ((128, 260), (1, 12), (1, 80)))
    machine = random_engine(cache_tokens, Precision.FP32, max_sequences, max_prefill, steps_ahead)
    arriving, hidden, removed = [random_sequence(100 * seed + number) for number in range(14)], {}, set()
    sequences = list(arriving)
    resting = set()
    while arriving or machine.num_running or machine.num_waiting or machine.num_resting:
        if arriving and rng.random() < 0.5:
            machine.add(arriving.pop())
        chosen = sequences[rng.integers(len(sequences))]
        if rng.random() < 0.5 and chosen not in (*arriving, *hidden, *removed):
            (machine.resume if chosen in resting else machine.rest)(chosen)
            resting ^= {chosen}
        if rng.random() < 0.03 and chosen not in arriving and chosen not in hidden:
            machine.remove(chosen)
            removed.add(chosen)
            resting -= {chosen}
        assert machine.num_resting == len(resting)
        hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
    assert machine.num_free_cache_tokens == cache_tokens
    assert set(hidden) == set(sequences) - removed
    others = random_engine()
    for number, one in enumerate(sequences):
        if one not in removed:
            other = random_sequence(100 * seed + number)
            expected = run(others, [other])[other]
            assert (one.tokens, one.finish_reason) == (other.tokens, other.finish_reason)
            np.testing.assert_allclose(hidden[one], expected, atol=1e-4)


class RecordedStep:
    """A CUDA graph's stand-in: the step with its sizes, which is computed again into the same tensor."""

    def __init__(self, step, *sizes):
        self.step, self.sizes, self.num_replays = step, sizes, 0
        self.hidden = step(*sizes)

    def replay(self):
        self.num_replays += 1
        self.hidden.copy_(self.step(*self.sizes))


def capture(_runner, step, *sizes):
    recorded = RecordedStep(step, *sizes)
    return recorded, recorded.hidden


def replays(runner):
    """How often the graph of each step and sizes was replayed."""
    return {(step.__name__, *sizes): graph.num_replays for (step, *sizes), (graph, _) in runner._graphs.items()}


def test_steps_of_fixed_sizes_change_nothing(monkeypatch, steps_ahead):
    """Prompts and batches filled up to the sizes that graphs are captured for; one prompt is longer than all."""
    monkeypatch.setattr(TorchRunner, "_capture", capture)
    machine = random_engine(max_prefill_tokens=64, max_sequences=9, steps_ahead=steps_ahead)
    runner = machine._runner
    runner._use_graphs = True
    runner.warm_up()
    long = {"prompt": tuple(range(5, 40)) * 2, "seed": 6, "max_new": 20}
    sequences = [*mixed_sequences(), sequence(**long)]
    hidden = run(machine, sequences)
    check_equal(sequences[:-1], {one: hidden[one] for one in sequences[:-1]}, alone())
    other = sequence(**long)
    expected = run(random_engine(), [other])[other]
    check_equal(sequences[-1:], hidden, [(other.tokens, other.finish_reason, expected)])
    replayed = {key for key, count in replays(runner).items() if count}
    assert {name for name, *_ in replayed} == {"_decode", "_compute_prompt"}
    assert ("_decode", 8, False) in replayed  # six sequences


def test_there_are_steps_that_note_looks_for_those_who_are_watched(monkeypatch, steps_ahead):
    """Two of three, who end before the last one does."""
    monkeypatch.setattr(TorchRunner, "_capture", capture)
    config, looks = replace(CONFIG, text_heads=(TextHead(0, 1, 0), TextHead(1, 0, 2))), []
    for use_graphs in (False, True):
        machine = random_engine(max_sequences=4, steps_ahead=steps_ahead, config=config)
        runner = machine._runner
        runner._use_graphs = use_graphs
        runner.warm_up()
        watched = {"prompt": tuple(range(20)), "watched": (3, 17)}
        settings = ({"max_new": 20, **watched}, {"max_new": 10, **watched}, {"max_new": 40})
        sequences = [sequence(seed=seed, min_new=40, **one) for seed, one in enumerate(settings)]
        for one in sequences:
            machine.add(one)
        finished = {}
        while not machine.is_idle:
            finished |= {one.sequence: one for one in machine.step()}
        looks.append([finished[one].looks for one in sequences])
        if use_graphs:
            assert {key: count for key, count in replays(runner).items() if count and key[0] == "_decode"} == {
                ("_decode", 4, True): 10,
                ("_decode", 2, True): 10,
                ("_decode", 1, False): 20,
            }
    assert [None if one is None else one.shape for one in looks[0]] == [(20, 2), (10, 2), None]
    for one, other in zip(looks[0][:2], looks[1][:2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("use_graphs", [False, True])
def test_prompts_that_join_the_pass_of_those_who_run_change_nothing(monkeypatch, use_graphs):
    """In groups, among them prompts longer than any size that graphs are captured for."""
    monkeypatch.setattr(TorchRunner, "_capture", capture)
    machine = random_engine(
        max_prefill_tokens=64, max_sequences=5, steps_ahead=1, variant=Variant(one_pass=True, join_every=4)
    )
    runner, sequences, hidden = machine._runner, mixed_sequences(), {}
    runner._use_graphs = use_graphs
    runner.warm_up()
    sequences.append(sequence(prompt=tuple(range(5, 40)) * 2, seed=6, max_new=20))
    for one in sequences:
        machine.add(one)
        hidden |= {finished.sequence: finished.hidden for finished in machine.step() + machine.step()}
    hidden |= drain(machine)
    check_equal(sequences[:-1], {one: hidden[one] for one in sequences[:-1]}, alone())
    if use_graphs:
        counts = Counter()
        for (name, *_), count in replays(runner).items():
            counts[name] += count
        assert counts["_compute_prompt"] == 0
        assert 1 < counts["_decode_and_prompt"] < len(sequences) - 1


def test_a_removed_sequence_leaves_its_neighbours_alone(steps_ahead):
    machine, sequences = random_engine(steps_ahead=steps_ahead), mixed_sequences()
    for one in sequences:
        machine.add(one)
    machine.step()
    machine.remove(sequences[2])
    hidden = drain(machine)
    expected = alone()
    check_equal(sequences[:2] + sequences[3:], hidden, expected[:2] + expected[3:])
    assert sequences[2] not in hidden
    assert machine.num_free_cache_tokens == 1_000


def test_the_seed_decides_what_is_drawn(steps_ahead):
    first, same, other = sequence(seed=1), sequence(seed=1), sequence(seed=2)
    run(random_engine(steps_ahead=steps_ahead), [first, same, other])
    assert first.tokens == same.tokens
    assert first.tokens != other.tokens


def test_limits_on_the_number_of_tokens_hold(steps_ahead):
    sequences = [sequence(seed=seed, min_new=7, max_new=9) for seed in range(40)]
    run(random_engine(steps_ahead=steps_ahead), sequences)
    assert {len(one.tokens) for one in sequences} == {7, 8, 9}
    assert {one.finish_reason for one in sequences} == {FinishReason.STOP, FinishReason.LENGTH}


def test_every_sequence_has_at_least_one_token(steps_ahead):
    sequences = [sequence(seed=seed, max_new=1) for seed in range(100)]
    run(random_engine(steps_ahead=steps_ahead), sequences)
    assert all(len(one.tokens) == 1 for one in sequences)


def test_hidden_states_are_those_of_one_pass_over_the_whole_sequence():
    """Cached steps against one uncached causal pass of the model."""
    one = sequence(prompt=(5, 6, 7), max_new=12, min_new=12)
    states = run(random_engine(), [one])[one]
    model = random_gpt()
    embeddings = torch.cat(
        [model.embed_text(torch.tensor(one.prompt_ids)), model.embed_codes(torch.tensor(one.tokens))]
    )

    positions = torch.arange(len(embeddings))

    def attend(layer, qkv):
        q, k, v = (tensor.transpose(0, 1) for tensor in model.split_heads(qkv, positions))
        scores = (q @ k.transpose(1, 2)) / CONFIG.head_dim**0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1).flatten(1)

    whole = model.forward(embeddings, attend)
    np.testing.assert_allclose(states, whole[2:-1].numpy(), atol=1e-5)


@pytest.mark.parametrize("gigabytes", [0.0, -1.0, float("inf"), float("nan")])
def test_a_budget_that_is_no_positive_number_is_a_configuration_error(gigabytes):
    with pytest.raises(ConfigError, match="kv_cache_gb"):
        cache_capacity(gigabytes, 1)


def test_a_budget_that_holds_no_full_sequence_is_a_configuration_error():
    with pytest.raises(ConfigError, match="kv_cache_gb"):
        random_engine(cache_tokens=127)


def test_what_nobody_holds_is_free_again_once_nobody_is_there(caplog):
    machine = random_engine(cache_tokens=500)
    machine._scheduler._slots.allocate(300)  # and loses it
    run(machine, [sequence()])
    assert "300 of 500 tokens of the cache were held by nobody" in caplog.text
    assert machine.num_free_cache_tokens == 500
    caplog.clear()
    run(machine, mixed_sequences())
    assert not caplog.records
