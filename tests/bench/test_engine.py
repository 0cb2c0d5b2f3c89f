"""The decode benchmark on a small model."""

import sys
from dataclasses import replace

import pytest
import torch

from bench import engine, model, report
from bench.__main__ import main
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.errors import ConfigError

SMALL = replace(model.OFFICIAL, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "OFFICIAL", SMALL)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(engine, "_bandwidth", lambda _device: 1e10)
    monkeypatch.setattr(engine, "_peak_operations", lambda _device, _dtype: 1e12)


def run_small(**changes):
    settings = {"batches": [1, 6], "contexts": [8], "steps": 3, "precision": Precision.FP32, "threads": 1}
    engine.run(**settings | changes)


def test_points_are_written_beside_their_limits(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        run_small()
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("engine-*.json")
    points = report.read(path)["points"]
    assert [(point["sequences"], point["context"]) for point in points] == [(1, 8), (6, 8)]
    for point in points:
        assert point["tokens/s"] == pytest.approx(1e3 * point["sequences"] / point["ms/step"])
        limit = max(point["bandwidth_limit_ms"], point["compute_limit_ms"])
        assert point["% of limit"] == pytest.approx(100 * limit / point["ms/step"])
        assert 0 < point["% of bandwidth limit"] <= point["% of limit"] < 100
    assert path.with_suffix(".png").exists()
    assert f"plot: {path.with_suffix('.png')}" in capsys.readouterr().out


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_logits_that_are_not_those_of_float32_fail_the_run(monkeypatch, tmp_path, factor):
    """As where a kernel is wrong: the reference has other weights than the engine."""
    make = engine._Maker

    def made(weights, *settings):
        maker = make({name: weight * factor for name, weight in weights.items()}, *settings)
        maker._weights = weights
        return maker

    monkeypatch.setattr(engine, "_Maker", made)
    with pytest.raises(AssertionError, match=r"fp32 logits differ from float32 by .* allowed are"):
        run_small()
    assert not list(tmp_path.iterdir())


def test_each_precision_has_a_tolerance():
    assert set(model.LOGIT_TOLERANCE) == set(Precision)
    fine = {"rms": 0.04, "largest": 0.2, "size": 1.0}
    assert model.logits_too_far(Precision.BF16, fine) is None
    assert "allowed are 0.008 and 0.05" in model.logits_too_far(Precision.FP16, fine)
    assert model.logits_too_far(Precision.BF16, fine | {"largest": float("nan")})


def test_limits_of_a_step():
    weights = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32 + 4 * 626 * 32  # layers, last norm, audio heads
    assert model.step_weights(SMALL) == weights
    assert model.bytes_read(SMALL, torch.float32, 100, 7) == 4 * weights + 700
    assert model.bytes_read(SMALL, torch.int8, 0, 7) == weights
    assert model.operations(SMALL, 3, 100) == 2 * 3 * weights + 100 * 2 * (2 * 32 + 2 * 32)


def test_all_sequences_run_while_steps_are_timed_however_long_their_prompts_take(monkeypatch):
    monkeypatch.setattr(engine, "PREFILL_TOKENS", 16)
    made = engine._Maker(model.random_weights(SMALL), torch.device("cpu"), Precision.FP32, 1)
    seconds, cache_tokens = engine._step_seconds(made, 9, 8, 3)  # its own check is that nine run in the end
    assert seconds > 0
    # Two prompts a step: the first pair has a token more than the second, and so on; then three steps to warm up.
    assert cache_tokens == sum(8 + age + engine.WARM_STEPS for age in (5, 5, 4, 4, 3, 3, 2, 2, 1)) + 9 * 3 // 2


def test_it_runs_where_neither_tqdm_nor_matplotlib_is(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run_small(batches=[1])
    out = capsys.readouterr().out
    assert out.count("no progress bar: tqdm is not installed\n") == 1
    assert out.count("no plot: matplotlib is not installed") == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize(("has_gpu", "batches"), [(True, [1, 2, 4, 8, 16, 32, 64, 128, 256]), (False, [1, 4, 16, 64])])
def test_a_cpu_measures_fewer_points(monkeypatch, has_gpu, batches):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert engine.default_points()[0] == batches


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_speeds_are_of_this_machine(monkeypatch, dtype):
    """Between a thousandth and a thousand times of what two cores do."""
    monkeypatch.undo()
    monkeypatch.setattr(engine, "PRODUCT_SIZES", {"cpu": (256, 512)})
    cpu = torch.device("cpu")
    assert 1e8 < engine._peak_operations(cpu, dtype) < 1e15
    if dtype is torch.float32:
        assert 1e8 < engine._bandwidth(cpu) < 1e13


def test_a_variant_of_a_gpus_steps_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"variant is cache_chunk=64; it changes steps on a GPU, and there is none"):
        run_small(variant=("cache_chunk=64",))


def test_variants_are_measured_after_the_default(monkeypatch, capsys):
    """In one call, and none where one of them is wrong."""
    runs = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(engine, "run", lambda **settings: runs.append(settings["variant"]))
    command = ["bench", "engine", "--variant", "cache_chunk=64", "merge_in_place=1", "--variant", "own_products=1"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 0
    assert runs == [(), ("cache_chunk=64", "merge_in_place=1"), ("own_products=1",)]
    monkeypatch.setattr(sys, "argv", [*command, "--variant", "chunks=1"])
    assert main() == 1
    assert len(runs) == 3
    assert "variant 'chunks=1' sets 'chunks'" in capsys.readouterr().err
