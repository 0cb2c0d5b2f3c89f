"""What the host costs, beside a language model that only waits."""

import shutil
import time

import pytest

from bench import host, host_engine, report
from bench.engine import OFFICIAL
from bench.host import HostLoad, parse_pace
from bench.paced import Pace, PacedRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.sequence import FinishReason, Kind, SamplingParams, Sequence
from chattts_serving.errors import ConfigError

AT_ONCE = ((1, 0.0),)


def sequence(seed, kind=Kind.AUDIO):
    return Sequence(kind, (5, 6, 7), SamplingParams(0.3, 0.7, 20, 1.05, 0, 100, seed, stream=1))


def run(sequences, pace):
    """Each joins a step after the one before."""
    runner = PacedRunner(OFFICIAL, pace, len(sequences))
    engine = Engine(runner, max_sequences=len(sequences), max_prefill_tokens=100)
    arriving, hidden = list(sequences), {}
    while arriving or not engine.is_idle:
        if arriving:
            engine.add(arriving.pop(0))
        hidden |= {finished.sequence: finished.hidden for finished in engine.step()}
    return hidden


def test_a_paced_sentence_is_the_same_beside_others_and_ends_where_it_shall():
    alone = [sequence(seed) for seed in range(5)]
    for one in alone:
        run([one], Pace(20, AT_ONCE))
    together = [sequence(seed) for seed in range(5)]
    hidden = run([*together, sequence(7, Kind.TEXT)], Pace(20, AT_ONCE))
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({tuple(one.tokens) for one in together}) == 5
    for one in together:
        assert (len(one.tokens), one.finish_reason) == (20, FinishReason.STOP)
        assert hidden[one].shape == (20, OFFICIAL.hidden_size)


def test_a_step_takes_as_long_as_it_is_told_without_cpu_time():
    started, cpu = time.perf_counter(), time.thread_time()
    run([sequence(seed) for seed in range(2)], Pace(19, ((1, 10.0), (3, 30.0))))
    assert time.perf_counter() - started >= 0.019 * 20
    assert time.thread_time() - cpu < 0.2


def test_the_engines_thread_is_timed_in_each_way():
    rows = host_engine.measure([8], 24, lambda: None)
    assert len(rows) == host_engine.num_rows([8])
    assert [row["what"] for row in rows] == ["engine alone", "whole", "streams"]
    for row in rows:
        assert 0 < row["batch"] <= 8
        assert row["us/sentence"] == pytest.approx(row["us/step"] / row["batch"] * 25)
        assert row["sentences/s a core"] == pytest.approx(1e6 / row["us/sentence"])


@pytest.mark.parametrize("steps", [[], ["64"], ["64:x"], ["0:1"], ["64:-1"], ["64:1:2"]])
def test_a_pace_that_is_none_is_refused(steps):
    with pytest.raises(ConfigError, match="--step-ms"):
        parse_pace(192, steps)


def test_between_two_steps_of_a_pace_time_is_in_proportion():
    pace = parse_pace(192, ["256:1.0", "64:0.5"])
    assert [pace.seconds(size) for size in (1, 64, 160, 256, 300)] == pytest.approx([5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def test_functions_share_the_time_of_their_process():
    text = "run (thread.py);step (engine.py) 6\nrun (thread.py);step (engine.py);len (x.py) 1\nrun (thread.py) 1\n"
    assert host._functions(text, 4.0) == [["step (engine.py)", 3.0], ["len (x.py)", 0.5], ["run (thread.py)", 0.5]]


def test_the_whole_server_is_measured_by_process(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(host, "ENGINE_BATCHES", [8])
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    load = HostLoad(Pace(80, ((1, 1.0),)), max_sequences=8, rates=(4.0,), seconds=2.0, timeout_s=30.0)
    run = report.read(host.run(load, tiny.repository, host.WAYS))
    assert [(level["way"], level["answered"], level["errors"]) for level in run["levels"]] == [
        ("whole", 8, {}),
        ("streams", 8, {}),
    ]
    for level in run["levels"]:
        processes = level["cpu_ms_by_process"]
        assert {"tritonserver", "gpt_decoder", "text_frontend", "text_frontend 2", "speech"} <= set(processes)
        assert sum(processes.values()) == pytest.approx(level["cpu_ms"])
        assert processes["gpt_decoder"] > 0
    assert "CPU ms a sentence" in capsys.readouterr().out
