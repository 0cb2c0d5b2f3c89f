"""The C library's runner: against the PyTorch one, and against itself in other company, where not a bit may change."""

import dataclasses

import numpy as np
import pytest
import torch

from chattts_serving.engine.cpu import library
from chattts_serving.engine.cpu import runner as cpu_runner
from chattts_serving.engine.cpu.runner import CpuRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from chattts_serving.errors import ConfigError
from tests.engine.models import CONFIG, random_engine, random_weights
from tests.engine.test_engine import check_that_the_poisoned_fail_alone, drain, mixed_sequences, run

SUPPORTED = library.INSTRUCTION_SETS[library.INSTRUCTION_SETS.index(library.instruction_set()) :]
PRECISIONS = [Precision.FP32, Precision.BF16, Precision.INT8]
CONFIGS = {  # heads of 64 numbers, as the official ones are, take a path of their own
    "small heads": CONFIG,
    "heads of 64": dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=192),
}


def cpu_engine(precision=Precision.FP32, cache_tokens=4_000, threads=2, instructions=None, config=CONFIG, weights=None):
    weights = weights or {name: tensor.numpy() for name, tensor in random_weights(config).items()}
    runner = CpuRunner(
        config,
        weights.__getitem__,
        precision=precision,
        kv_cache_gb=(cache_tokens + 0.5) * CpuRunner.bytes_per_token(config, precision) / 1e9,
        num_threads=threads,
        instruction_set=instructions,
    )
    return Engine(runner, max_sequences=64, max_prefill_tokens=512)


def random_sequences(count, seed=0):
    """Prompts and sampling parameters of every kind."""
    rng = np.random.default_rng(seed)
    sequences = []
    for number in range(count):
        params = SamplingParams(
            temperature=float(rng.choice([0.01, 0.3, 0.7, 1.0, 3.0])),
            top_p=float(rng.choice([0.1, 0.7, 0.95, 1.0])),
            top_k=int(rng.choice([1, 3, 7, 20, 50])),
            repetition_penalty=float(rng.choice([0.9, 1.0, 1.05, 2.0])),
            min_new_tokens=int(rng.choice([0, 15])),
            max_new_tokens=30,
            seed=int(rng.integers(2**62)),
            stream=int(rng.integers(2**31)),
        )
        prompt = tuple(int(token) for token in rng.integers(5, 40, rng.integers(1, 40)))
        sequences.append(Sequence(Kind.AUDIO if number % 3 else Kind.TEXT, prompt, params))
    return sequences


def results(sequences, hidden):
    return [(one.tokens, one.finish_reason, hidden[one].tobytes()) for one in sequences]


@pytest.mark.parametrize("instructions", SUPPORTED)
@pytest.mark.parametrize("threads", [1, 3])
def test_it_generates_what_the_pytorch_runner_generates(instructions, threads):
    expected, sequences = ([*mixed_sequences(), *random_sequences(60, seed=1)] for _ in range(2))
    expected_hidden = run(random_engine(), expected)
    hidden = run(cpu_engine(threads=threads, instructions=instructions), sequences)
    for one, other in zip(sequences, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.finish_reason is other.finish_reason
        np.testing.assert_allclose(hidden[one], expected_hidden[other], atol=3e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_number_of_threads_changes_no_bit(precision):
    outcomes = []
    for threads in (1, 2, 5):
        sequences = random_sequences(12)
        outcomes.append(results(sequences, run(cpu_engine(precision, threads=threads), sequences)))
    assert outcomes[0] == outcomes[1] == outcomes[2]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("instructions", SUPPORTED)
def test_calls_of_a_few_rows_change_no_bit(precision, config, instructions, monkeypatch):
    """Long prompts take several calls; here nearly every prompt does."""

    def speak():
        sequences = random_sequences(12)
        machine = cpu_engine(precision, instructions=instructions, config=config)
        return results(sequences, run(machine, sequences))

    expected = speak()
    monkeypatch.setattr(cpu_runner, "MAX_ROWS", 7)
    assert speak() == expected


@pytest.mark.parametrize("precision", PRECISIONS)
def test_preempted_sequences_change_no_bit(precision, monkeypatch):
    """A cache for one sequence of full length, slots that grow by 4: the young are preempted over and over."""
    unhindered = random_sequences(10)
    expected = results(unhindered, run(cpu_engine(precision), unhindered))
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 4)
    machine, sequences, preemptions = cpu_engine(precision, cache_tokens=128), random_sequences(10), []
    preempt = machine._scheduler._preempt
    monkeypatch.setattr(machine._scheduler, "_preempt", lambda one: (preemptions.append(one), preempt(one)))
    assert results(sequences, run(machine, sequences)) == expected
    assert preemptions
    assert machine.num_free_cache_tokens == 128


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sequences_that_rest_change_no_bit_and_compute_nothing_twice(precision, monkeypatch):
    unhindered = random_sequences(10)
    expected = results(unhindered, run(cpu_engine(precision), unhindered))
    machine, sequences, hidden, computed = cpu_engine(precision), random_sequences(10), {}, []
    monkeypatch.setattr(cpu_runner, "_in_calls", lambda batch: _counted(in_calls(batch), computed))
    for one in sequences:
        machine.add(one)
    rng = np.random.default_rng(1)
    while len(hidden) < len(sequences):
        resting = [one for one in sequences if one not in hidden and rng.random() < 0.5]
        for one in resting:
            machine.rest(one)
        for _ in range(rng.integers(1, 5)):
            hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
        for one in resting:
            machine.resume(one)
    assert results(sequences, hidden) == expected
    assert len(computed) == len(set(computed))


in_calls = cpu_runner._in_calls


def _counted(calls, computed):
    for parts in calls:
        computed += [(id(part.sequence), position) for part in parts for position in range(part.first, part.end)]
        yield parts


def needle_rounds(machine, make_needle, rounds=5, neighbours=32, rng_seed=0):
    """Share of rounds in which a needle among neighbours that come and go is what it is alone, bit for bit."""
    rng = np.random.default_rng(rng_seed)
    needle = make_needle()
    alone = results([needle], run(machine, [needle]))
    identical = 0
    for number in range(rounds):
        needle, hidden = make_needle(), {}
        others = random_sequences(neighbours, seed=100 + number)
        crowd = [*others]
        crowd.insert(int(rng.integers(len(crowd) + 1)), needle)
        for one in crowd:
            machine.add(one)
            for _ in range(rng.integers(0, 3)):
                hidden |= {finished.sequence: finished.hidden for finished in machine.step()}
        hidden |= drain(machine)
        identical += results([needle], hidden) == alone
    return identical / rounds


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("instructions", SUPPORTED)
@pytest.mark.parametrize("kind", Kind)
def test_a_needle_among_neighbours_is_what_it_is_alone(precision, config, instructions, kind):
    params = SamplingParams(0.8, 0.9, 20, 1.05, 25, 40, seed=11, stream=3)
    machine = cpu_engine(precision, instructions=instructions, config=config)
    assert needle_rounds(machine, lambda: Sequence(kind, (5, 9, 12, 7), params)) == 1


@pytest.mark.parametrize("fault", ["random numbers", "rounding"])
def test_the_needle_test_finds_an_engine_that_neighbours_disturb(fault, monkeypatch):
    """Random numbers by place in the batch, as one generator for all would give them; or a neighbour's rounding."""
    machine = cpu_engine()
    launch = machine._runner.launch

    def disturbed(batch):
        if fault == "random numbers":
            for place, one in enumerate(batch.sequences):
                one.params = dataclasses.replace(one.params, stream=place)
        elif len(batch) > 4:
            machine._runner._hidden *= np.float32(1 + 1e-7)
        return launch(batch)

    monkeypatch.setattr(machine._runner, "launch", disturbed)
    params = SamplingParams(0.8, 0.9, 20, 1.05, 25, 40, seed=11, stream=0)
    assert needle_rounds(machine, lambda: Sequence(Kind.AUDIO, (5, 9, 12, 7), params)) < 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_needle_at_official_size_is_what_it_is_alone_on_any_number_of_threads(precision, official):
    params = SamplingParams(0.3, 0.7, 20, 1.05, 0, 16, seed=11, stream=3)
    alone = []
    for threads in (1, 2):
        folder = official.repository / "gpt_decoder" / "1"
        runner = CpuRunner.load(folder, precision, kv_cache_gb=1.0, num_threads=threads)
        machine = Engine(runner, max_sequences=64, max_prefill_tokens=512)
        needle = Sequence(Kind.AUDIO, (5, 9, 12, 7), params)
        alone.append(results([needle], run(machine, [needle])))
    assert alone[0] == alone[1]
    assert needle_rounds(machine, lambda: Sequence(Kind.AUDIO, (5, 9, 12, 7), params), rounds=2) == 1  # seconds each


@pytest.mark.parametrize(("precision", "least", "most"), [(Precision.BF16, 0, 0.04), (Precision.INT8, 0.02, 0.1)])
def test_less_than_float32_is_near_it(precision, least, most):
    """Shares of the hidden states' size in so small a model; the instruction sets differ in rounding alone."""

    def hidden(precision, instructions=None):
        one = Sequence(Kind.AUDIO, tuple(range(5, 45)), SamplingParams(1e-6, 1, 1, 1, 1, 1, seed=1, stream=0))
        return run(cpu_engine(precision, instructions=instructions), [one])[one][0]

    exact = hidden(Precision.FP32)
    errors = [np.sqrt(np.mean((hidden(precision, name) - exact) ** 2)) for name in SUPPORTED]
    size = np.sqrt(np.mean(exact**2))
    assert least * size < min(errors)
    assert max(errors) < most * size
    assert max(errors) < 1.2 * min(errors)


def test_numbers_are_rounded_as_pytorch_rounds_them():
    numbers = np.concatenate([torch.randn(1000).numpy(), np.float32([0.0, -0.0, 1.00390625, 1.01171875, np.inf, 3e38])])
    expected = torch.from_numpy(numbers).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert np.array_equal(library.bfloat16(numbers), expected)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sequence_without_finite_logits_fails_alone(precision):
    check_that_the_poisoned_fail_alone(lambda: cpu_engine(precision))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"intermediate_size": 72}, "MLP size is 72; allowed on a CPU are multiples of 16"),
        ({"hidden_size": 48}, "head size is 24; allowed on a CPU are multiples of 16"),
        ({"hidden_size": 544}, "head size is 272; allowed on a CPU is 256 or less"),
        ({"num_codebooks": 9}, "codebooks is 9; allowed on a CPU is 8 or less"),
    ],
)
def test_sizes_that_the_library_does_not_take_are_a_configuration_error(sizes, message):
    config = dataclasses.replace(CONFIG, **sizes)
    with pytest.raises(ConfigError, match=message):
        CpuRunner(config, {}.__getitem__, precision=Precision.FP32, kv_cache_gb=1.0, num_threads=1)


def test_precisions_of_gpus_are_a_configuration_error():
    with pytest.raises(ConfigError, match="fp16; allowed on a CPU is fp32, bf16 or int8"):
        CpuRunner(CONFIG, {}.__getitem__, precision=Precision.FP16, kv_cache_gb=1.0, num_threads=1)


@pytest.fixture
def load_anew():
    """`library.load` as a new process has it, and afterwards again."""
    library.load.cache_clear()
    yield library.load
    library.load.cache_clear()


def test_a_library_built_from_other_sources_is_refused(monkeypatch, load_anew):
    monkeypatch.setattr(library, "ENTRY", np.dtype(np.int64))
    with pytest.raises(ConfigError, match="built from other sources"):
        load_anew()


def test_a_missing_library_is_refused(monkeypatch, load_anew, tmp_path):
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(ConfigError, match="install the project with a C compiler"):
        load_anew()


def test_a_file_that_is_no_library_is_refused(monkeypatch, load_anew, tmp_path):
    (tmp_path / "_gpt.so").write_text("no library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(ConfigError, match="cannot load"):
        load_anew()


def test_weights_that_are_not_there_are_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="run python -m export"):
        CpuRunner.load(tmp_path, Precision.FP32, 1.0, 1)


@pytest.mark.parametrize("outputs", [32, 40])
def test_panels_hold_every_weight(outputs):
    """Unpacked again in plain indexing."""
    weight = torch.randn(outputs, 48).numpy()
    memory = library.Memory()
    matrix = memory.matrix(weight, library.WeightKind.FLOAT32)
    assert (matrix.panels, matrix.inputs) == (-(-outputs // 32), 48)
    (data,) = memory._arrays
    for output in range(outputs):
        assert np.array_equal(data[output // 32, :, output % 32], weight[output])
