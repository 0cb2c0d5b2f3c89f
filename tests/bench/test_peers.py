"""Decode steps beside llama.cpp's and OpenVINO's: arithmetic, flags, and each system on a tiny model.

The peers' tests need the extra `peers`, in this environment or in that of the Python that $PEERS_PYTHON names.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import report
from bench.__main__ import main
from bench.model import random_weights
from bench.peers import command, processes
from bench.peers.command import Plan
from bench.peers.table import Group, Point, Turn, group_table, median_ms, ratio, worst_ratios
from bench.peers.weights import write
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.errors import ConfigError

PEERS_PYTHON = os.environ.get("PEERS_PYTHON", sys.executable)
TINY = replace(command.SIZES, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=2)
GROUP = Group("int8", ("a", "b"), ("c",))
QUIET, BESIDE = Point(1, 0, 150, 4), Point(1, 2, 150, 4)
CPU_MS = {  # of two turns
    (GROUP.ours, QUIET): (4.0, 6.0),
    ("a", QUIET): (10.0, 10.0),
    ("b", QUIET): (8.0, 12.0),
    ("c", QUIET): (1.0, 1.0),
    (GROUP.ours, BESIDE): (9.0, 9.0),
    ("a", BESIDE): (6.0, 6.0),
    ("b", BESIDE): (12.0, 12.0),
}
TURNS = [Turn(system, point, 2 * ms, ms, 0.0) for (system, point), times in CPU_MS.items() for ms in times]


def test_a_ratio_is_of_medians_to_the_quickest_peer_of_as_many_bits():
    assert median_ms(TURNS, GROUP.ours, QUIET, "cpu_ms") == 5.0
    assert median_ms(TURNS, "b", QUIET, "wall_ms") == 20.0
    assert ratio(TURNS, GROUP, QUIET, "cpu_ms") == 0.5
    assert ratio(TURNS, GROUP, BESIDE, "wall_ms") == 1.5
    assert median_ms(TURNS, "c", BESIDE, "cpu_ms") is None
    assert ratio(TURNS, Group("int8", ("missing",)), QUIET, "cpu_ms") is None


def test_the_table_has_a_row_for_each_point_quiet_ones_first():
    header, *rows = [line.split() for line in group_table(TURNS, GROUP, 1, "cpu_ms").splitlines()]
    assert header == ["busy", "loops", "context", "sequences", "ours", "int8", "a", "b", "c", "ours", "/", "best"]
    assert rows == [["0", "150", "4", "5", "10", "10", "1", "0.5"], ["2", "150", "4", "9", "6", "12", "-", "1.5"]]


def test_a_system_that_was_not_measured_with_so_many_threads_is_not_in_the_table():
    turns = [*TURNS, Turn(GROUP.ours, replace(QUIET, threads=2), 3.0, 5.0, 0.0)]
    header, *rows = [line.split() for line in group_table(turns, GROUP, 2, "wall_ms").splitlines()]
    assert header == ["busy", "loops", "context", "sequences", "ours", "int8", "ours", "/", "best"]
    assert rows == [["0", "150", "4", "3", "-"]]


def test_the_last_lines_say_where_we_are_worst():
    turns = [*TURNS, *(replace(turn, point=replace(turn.point, sequences=16), cpu_ms=3.0) for turn in TURNS)]
    found = worst_ratios(turns, GROUP, {"cpu_ms": 1, "wall_ms": 2})
    assert found == {"cpu": 1.0, "cpu_beside_2": 1.5}
    assert command.ratio_lines({"int8": found}) == "ours_vs_best_peer precision=int8 cpu=1.00 cpu_beside_2=1.50"


@pytest.mark.parametrize(
    ("line", "plan"),
    [
        ("", Plan(threads=len(os.sched_getaffinity(0)))),
        (
            "--batches 2 --contexts 90 --precision fp32 --steps 5 --rounds 1 --threads 3 --busy 2",
            Plan((2,), (90,), ("fp32",), steps=5, rounds=1, threads=3, busy=2),
        ),
    ],
)
def test_flags_become_a_plan(monkeypatch, line, plan):
    seen = []
    monkeypatch.setattr(command, "run", lambda *run: seen.append(run))
    monkeypatch.setattr(sys, "argv", ["bench", "peers", *line.split(), "--python", "python9"])
    assert main() == 0
    assert seen == [(plan, "python9")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--steps 0", "--steps is 0; allowed is 1 or more"),
        ("--rounds 0", "--rounds is 0; allowed is 1 or more"),
        ("--threads 0", "--threads is 0; allowed is 1 or more"),
        ("--busy -1", "--busy is -1; allowed is 0 or more"),
        ("--batches 4 0", "--batches has 0; allowed is 1 or more"),
        ("--contexts 150 33", "--contexts has 33; allowed is 34 to 4030, since 66 steps are taken"),
        ("--contexts 66 --busy 1", "--contexts has 66; allowed is 67 to 3964, since 132 steps are taken"),
        ("--python /nowhere/python", "cannot run /nowhere/python: "),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_in_one_line(monkeypatch, capsys, line, message):
    monkeypatch.setattr(sys, "argv", ["bench", "peers", *line.split()])
    assert main() == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"bench: {message}")


def test_without_any_peer_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(command, "versions", lambda _python: {"python": "3.12.1", "numpy": "2.0"})
    with pytest.raises(ConfigError, match=r"p9 has neither llama-cpp-python nor openvino: install the extra 'peers'"):
        command.run(Plan(), "p9")


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A folder with a tiny model, and its logits in float32."""
    monkeypatch.setattr(command, "SIZES", TINY)
    weights = random_weights(TINY)
    write(tmp_path, TINY, {name: weight.numpy() for name, weight in weights.items()})
    return tmp_path, command._expected_logits(GPT(TINY, weights, torch.device("cpu")))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_our_steps_compute_the_model_and_take_time(model, precision):
    folder, expected = model
    group = Group(precision, ())
    with command._started(group, sys.executable, folder, 2, 600) as workers:
        assert command._check(workers, expected, folder).keys() == {group.ours}
        turns = command._measure(workers, Plan(threads=2, steps=2, rounds=2), Point(2, 0, 300, 2))  # prompts in parts
    assert [(turn.system, turn.point) for turn in turns] == 2 * [(group.ours, Point(2, 0, 300, 2))]
    assert all(turn.wall_ms > 0 and turn.cpu_ms > 0 for turn in turns)


def test_a_system_that_computes_something_else_is_not_measured(model):
    folder, expected = model
    with (
        command._started(Group("fp32", ()), sys.executable, folder, 1, 600) as workers,
        pytest.raises(AssertionError, match=r"ours fp32: logits differ from float32 by .* allowed are"),
    ):
        command._check(workers, 1.01 * expected, folder)


def test_a_worker_that_ends_says_why(model):
    worker = processes.Worker(sys.executable, "ours", "fp7", folder=model[0], threads=1, num_tokens=1)
    try:
        with pytest.raises(ConfigError, match=r"ours fp7 ended: (.|\n)*'fp7' is not a valid Precision"):
            worker.wait_until_ready()
        with pytest.raises(ConfigError, match="ours fp7 ended"):
            worker.ask("steps", count=1)
    finally:
        worker.close()


def test_loops_keep_busy_for_a_block():
    def children():
        return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())

    before = children()
    with processes.busy_loops(2):
        assert len(children() - before) == 2
    assert children() <= before


@pytest.mark.parametrize("package", ["llama-cpp-python", "openvino"])
def test_each_peer_computes_our_model_and_is_measured_beside_us(monkeypatch, tmp_path, capsys, package):
    found = processes.versions(PEERS_PYTHON)
    if package not in found:
        pytest.skip(f"{PEERS_PYTHON} has no {package}")
    monkeypatch.setattr(command, "SIZES", TINY)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "versions", lambda _python: {"python": found["python"], package: found[package]})
    command.run(Plan((1, 3), (40,), steps=2, rounds=1, threads=2, busy=1), PEERS_PYTHON)
    (path,) = tmp_path.glob("peers-*.json")
    results = report.read(path)
    peers = {peer for group in results["groups"] for peer in (*group["peers"], *group["others"])}
    kind = {"llama-cpp-python": "llama", "openvino": "openvino"}[package]
    assert peers == {name for name, system in command.SYSTEMS.items() if system.kind == kind}
    assert results["logit_errors"].keys() == peers | {"ours int8", "ours bf16", "ours fp32"}
    passes = [1 if name.endswith(command.SLEEPING) else 2 for name in results["logit_errors"]]  # with so many threads
    assert len(results["turns"]) == sum(passes) * 2 * 2  # sequences, loops
    assert path.with_suffix(".png").exists()
    last = capsys.readouterr().out.splitlines()[-3:]
    for line, precision in zip(last, ("int8", "bf16", "fp32"), strict=True):
        assert line.startswith(f"ours_vs_best_peer precision={precision} cpu=")
        assert line.count("=") == 5
