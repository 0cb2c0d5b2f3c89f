"""Verdicts on made-up runs, each with one thing wrong, and the files that a run leaves."""

import json
from dataclasses import replace

import pytest

from chattts_serving.launcher.tritonserver import ROOT
from tests.soak import report
from tests.soak.calls import ANSWERED, FULL, NO_ANSWER, WRONG, Outcome
from tests.soak.health import Busy, Process, Rest
from tests.soak.run import Record
from tests.soak.trend import Answer
from tests.soak.verdict import Limits, cache_mb, judge

PIDS = {"launcher": 10, "tritonserver": 11, "gpt_decoder": 12, "speech": 13}
CACHE_MB = 1_000.0
DECK = ("whole grpc", "burst")
ROUND_S = 10.0


def unchanged(rest, number):
    return rest


def record(grow=unchanged, rounds=40):
    """A run in which nothing is wrong; `grow` changes the look after round `number`."""
    processes = {name: Process(pid, 200.0, 20, 30) for name, pid in PIDS.items()}
    processes["gpt_decoder"] = Process(12, 1_200.0, 4, 8)
    outcomes = [Outcome("whole grpc", ANSWERED, 0.1, None), Outcome("one of a burst", FULL, 0.1, None)] * rounds
    rests = [grow(Rest(ROUND_S * (number + 1), 2 * number, dict(processes), 150.0), number) for number in range(rounds)]
    busy = [Busy(5.0 * number, 1_650.0, 8, 20) for number in range(1, 2 * rounds)]
    return Record(dict(PIDS), outcomes, rests, busy)


def grows(name, **steps):
    """A change of `record`: fields of the process `name` grow by so much each round."""

    def grow(rest, number):
        process = rest.processes[name]
        changed = replace(process, **{field: getattr(process, field) + step * number for field, step in steps.items()})
        return replace(rest, processes=rest.processes | {name: changed})

    return grow


def verdict_on(run):
    return judge(run, DECK, Limits(warm_up_s=100.0), CACHE_MB)


def test_a_run_without_fault_passes():
    verdict = verdict_on(record())
    assert verdict.passed
    assert verdict.reasons == []


@pytest.mark.parametrize(
    ("grow", "named"),
    [
        (grows("speech", held_mb=1.0), ["memory of all", "memory of speech"]),
        (grows("gpt_decoder", descriptors=1), ["descriptors of gpt_decoder"]),
        (grows("tritonserver", threads=1), ["threads of tritonserver"]),
        (lambda rest, number: replace(rest, shm_mb=150.0 + number), ["shared memory"]),
    ],
)
def test_what_grows_is_named(grow, named):
    verdict = verdict_on(record(grow))
    assert [check.name for check in verdict.checks if check.answer is Answer.GROWS] == named
    assert len(verdict.reasons) == len(named)


def test_a_process_that_shrinks_does_not_hide_one_that_grows():
    def grow(rest, number):
        return grows("launcher", held_mb=-1.0)(grows("speech", held_mb=1.0)(rest, number), number)

    assert [check.name for check in verdict_on(record(grow)).checks if check.answer is Answer.GROWS] == [
        "memory of speech"
    ]


def test_the_cache_does_not_hide_a_leak():
    """12 MB are 1.5 % of the 800 MB that count, but 0.7 % of all."""
    assert not verdict_on(record(grows("speech", held_mb=12 / 30))).passed


def test_warm_up_does_not_count():
    def grow(rest, number):
        return grows("speech", held_mb=5.0, threads=3)(rest, min(number, 9))

    assert verdict_on(record(grow)).passed


def test_a_run_that_is_too_short_does_not_pass():
    verdict = verdict_on(record(rounds=12))
    assert verdict.reasons == ["too few looks at rest: run it longer"]


@pytest.mark.parametrize("ending", [NO_ANSWER, WRONG, "CONNECTION_FAILED"])
def test_one_call_that_ends_wrongly_fails_the_run(ending):
    run = record()
    run.outcomes.append(Outcome("stream http", ending, 1.0, "what was wrong"))
    (reason,) = verdict_on(run).reasons
    assert reason.endswith("what was wrong")
    assert "stream http" in reason


def test_what_stays_open_and_what_ends_fail_the_run():
    run = record()
    run.restless.append("Engine(requests_open=1)")
    run.ended = "other processes than at the start: speech\nlast line of the log"
    reasons = verdict_on(run).reasons
    assert "last line of the log" in reasons[0]
    assert "requests_open=1" in reasons[1]


def test_calls_without_their_effect_fail_the_run():
    run = record()
    run.outcomes = [Outcome("whole grpc", FULL, 0.1, None), Outcome("one of a burst", ANSWERED, 0.1, None)]
    (reason,) = verdict_on(run).reasons
    assert "whole grpc" in reason
    assert "never full" in reason


def test_a_run_leaves_tables_a_json_and_a_picture(tmp_path):
    run = record(grows("speech", held_mb=1.0))
    run.outcomes.append(Outcome("stream http", NO_ANSWER, 330.0, "no answer"))
    verdict = verdict_on(run)
    text = report.as_text(run, verdict)
    assert "40 answered" in text
    assert "memory of speech" in text
    assert "memory of launcher" not in text
    assert "kinds of calls without their effect" in text
    assert "GROWS" in text
    path, picture = report.write(tmp_path, {"warm_up_s": 100.0}, run, verdict)
    read = json.loads(path.read_text())
    assert read["passed"] is False
    assert read["rests"]["processes"]["speech"]["held_mb"][-1] == 239.0
    assert read["faults"] == [{"kind": "stream http", "ending": NO_ANSWER, "seconds": 330.0, "fault": "no answer"}]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 300_000


def test_a_run_that_saw_nothing_is_reported_all_the_same(tmp_path):
    run = Record(dict(PIDS), ended="the server did not speak the control sentence")
    verdict = verdict_on(run)
    assert not verdict.passed
    assert "restarts and dead processes" in report.as_text(run, verdict)
    assert report.write(tmp_path, {"warm_up_s": 100.0}, run, verdict)[1].exists()


def test_the_size_of_the_cache_is_read_from_the_configuration():
    assert cache_mb(ROOT / "model_repository") == 1_000.0
