"""The benchmark of too much load: its arithmetic on made-up outcomes, and a run on the live tiny server."""

import asyncio
import re
import sys
from dataclasses import asdict

import pytest
from chattts_client.errors import OverloadedError
from hypothesis import given
from hypothesis import strategies as st

from bench import overload, plots, report
from bench.__main__ import main
from bench.load import Chunk, Outcome
from bench.overload import IN_A_ROW, LOST, Arrival, Overload, Probe, fates, knee, per_second, recovered_s, timeline
from bench.server import Target
from chattts_serving.errors import ConfigError
from tests.bench.test_plots import panels_with_curves, pixels

KINDS = (None, "UNAVAILABLE", "INTERNAL", *LOST)


def arrival(due_s, latency_s, error=None, priority="interactive"):
    return Arrival(due_s, priority, Outcome(latency_s, 0.0, () if error else (Chunk(latency_s, 2.0),), error))


def test_the_knee_is_where_more_callers_bring_no_more():
    assert knee({1: 1.0, 4: 3.0, 16: 5.2, 64: 5.4}) == 16
    assert knee({1: 1.0, 4: 3.0, 16: 5.0, 64: 5.4}) == 64
    assert knee({8: 2.0}) == 8


def test_figures_are_of_requests_due_in_the_stretch_and_goodput_of_answers_that_came_in_it():
    arrivals = [
        arrival(0.0, 12.0),  # due before it, answered in it
        arrival(0.5, 9.6),  # as well
        arrival(1.0, 0.01, "UNAVAILABLE"),  # before it
        arrival(10.0, 4.0),
        arrival(11.0, 0.030, "UNAVAILABLE"),
        arrival(12.0, 0.020, "UNAVAILABLE"),
        arrival(13.0, 1.0, "INTERNAL"),
        arrival(14.0, 120.0, "DEADLINE_EXCEEDED"),
        arrival(19.0, 6.0),  # answered after it
        arrival(20.0, 1.0),  # due after it
    ]
    found = fates(arrivals, 10.0, 20.0)
    assert (found.requests, found.answered, found.refused, found.failed, found.unanswered) == (6, 2, 2, 1, 1)
    assert found.errors == {"UNAVAILABLE": 2, "INTERNAL": 1, "DEADLINE_EXCEEDED": 1}
    assert found.sentences_per_s == pytest.approx(3 / 10)
    assert (found.p50_s, found.p99_s) == (4.0, 6.0)
    assert (found.refused_p50_ms, found.refused_p99_ms) == pytest.approx((20.0, 30.0))


def test_without_answers_or_refusals_there_are_no_percentiles():
    found = fates([arrival(0.0, 1.0, "INTERNAL")], 0.0, 1.0)
    assert (found.p50_s, found.p99_s, found.refused_p50_ms, found.refused_p99_ms) == (None, None, None, None)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0.001, 200), st.sampled_from(KINDS))))
def test_each_request_has_one_fate_in_one_stretch(rows):
    arrivals = [arrival(*row) for row in rows]
    first, second = fates(arrivals, 0.0, 10.0), fates(arrivals, 10.0, 31.0)
    for one in (first, second):
        assert one.requests == one.answered + one.refused + one.failed + one.unanswered
        assert one.requests == one.answered + sum(one.errors.values())
    assert first.requests + second.requests == len(rows)


@given(st.lists(st.floats(0, 50)))
def test_counts_per_second_are_of_all_moments(moments):
    counts = per_second(moments)
    assert sum(counts) == len(moments)
    assert all(counts[second] == sum(int(moment) == second for moment in moments) for second in range(len(counts)))


@pytest.mark.parametrize(
    ("latencies", "found"),
    [
        ([1.0, 1.0, 1.0], 0.0),
        ([5.0, 1.3, 1.2, 1.1, 1.0], 20.0),
        ([None, None, 1.0, 1.1, 1.0], 20.0),
        ([5.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0], 40.0),  # as quick as before by chance
        ([1.0, 1.0], None),
        ([5.0, 1.0, 1.0], None),
        ([], None),
    ],
)
def test_recovery_begins_where_all_are_quick_again(latencies, found):
    assert IN_A_ROW == 3
    probes = [Probe(10.0 * number, latency) for number, latency in enumerate(latencies)]
    assert recovered_s(probes, 1.2) == found


def test_the_lonely_caller_goes_on_until_the_server_is_as_quick_as_before(monkeypatch):
    """Refused twice, then slow, then quick; and one who is never served gives up."""
    monkeypatch.setattr(overload, "RETRY_S", 0.01)
    sent = []

    async def speak(number):
        sent.append(number)
        if len(sent) <= 2:
            raise OverloadedError("full")
        await asyncio.sleep(0.2 if len(sent) == 3 else 0.0)
        yield 2.0

    probes = asyncio.run(overload._probe(speak, lambda probes: overload._is_over(probes, 0.1, 60.0)))
    assert sent == [0] * 6  # always the same sentence
    assert [probe.latency_s is None for probe in probes] == [True, True, False, False, False, False]
    assert recovered_s(probes, 0.1) == probes[3].due_s > probes[2].due_s + 0.19

    async def refuse(number):
        raise OverloadedError("full")
        yield

    probes = asyncio.run(overload._probe(refuse, lambda probes: overload._is_over(probes, 0.1, 0.05)))
    assert recovered_s(probes, 0.1) is None
    assert len(probes) <= 8


def test_arrivals_fill_the_time_and_the_share_of_batch_requests_is_kept():
    due_s, priorities = overload._plan(Overload(batch_share=0.25), 100.0, 30.0)
    assert len(due_s) == len(priorities) == pytest.approx(3_000, rel=0.1)
    assert due_s == sorted(due_s)
    assert 29.5 < due_s[-1] < 30.0
    assert priorities.count("batch") / len(priorities) == pytest.approx(0.25, abs=0.04)
    assert set(overload._plan(Overload(), 10.0, 5.0)[1]) == {"interactive"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"seconds": -1.0},
        {"factor": 0.0},
        {"seconds": float("nan")},
        {"callers": -2},
        {"max_requests": -1},
        {"batch_share": 1.5},
        {"callers": 8, "max_requests": 7},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Overload(**wrong)


def test_flags_become_an_overload(monkeypatch):
    seen = []
    monkeypatch.setattr(overload, "run", lambda *given: seen.append(given))
    line = "overload --callers 8 --max-requests 9 --factor 2 --seconds 5 --batch-share 0.5 --protocol http --tokens 32"
    monkeypatch.setattr(sys, "argv", ["bench", *line.split(), "--precision", "int8"])
    assert main() == 0
    ((load, _, precisions),) = seen
    assert load == Overload("http", 32, 120.0, 8, 9, 2.0, 5.0, 0.5)
    assert precisions == ["int8"]


def test_both_limits_of_the_copy_are_set_and_nothing_else(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr("bench.repository.FOLDER", tmp_path)
    path = "gpt_decoder/config.pbtxt"
    before = (tiny.repository / path).read_text()
    after = (overload.with_max_requests(tiny.repository, "fp32", 24) / path).read_text()
    assert (tiny.repository / path).read_text() == before
    changed = [
        re.findall(r'key: "(\w+)" value: \{ string_value: "(\w+)"', line)[0]
        for line, old in zip(after.splitlines(), before.splitlines(), strict=True)
        if line != old
    ]
    assert changed == [("max_requests", "24"), ("max_batch_requests", "12"), ("precision", "fp32")]


def overload_run():
    """Twenty arrivals a second for ten seconds, of which every fourth is answered."""
    arrivals = [
        arrival(
            n / 20,
            2.0 if n % 4 == 0 else 0.02,
            None if n % 4 == 0 else "UNAVAILABLE",
            "batch" if n % 2 else "interactive",
        )
        for n in range(200)
    ]
    figures = asdict(fates(arrivals, 3.0, 10.0))
    return {
        "settings": asdict(Overload(callers=16, max_requests=24)) | {"precision": "int8"},
        "search": [],
        "capacity": {"sentences_per_s": 5.0, "p50_s": 1.5, "p99_s": 1.9},
        "overload": {"settle_s": 3.0, "end_s": 10.0, "all": figures, "by_priority": {}},
        "recovery": {
            "seconds": 2.1,
            "limit_s": 0.6,
            "due_s": [0.0, 1.5, 2.1, 2.6],
            "latencies_s": [None, 0.6, 0.5, 0.5],
        },
        "timeline": timeline(arrivals),
    }


@pytest.mark.parametrize("count", [1, 2])
def test_each_run_is_drawn_with_its_rates_and_latencies(tmp_path, monkeypatch, count):
    paths = []
    for number in range(count):
        monkeypatch.setattr(report, "RESULTS", tmp_path / str(number))
        paths.append(report.write("overload", overload_run()))
    assert panels_with_curves(pixels(plots.draw(paths)), 2 * count) == 2 * count


def test_a_whole_run_on_a_live_server_adds_up(tiny, tmp_path, monkeypatch, capsys):
    """Its server has room for more than is sent, so that nobody is refused."""
    load = Overload(tokens=8, callers=2, max_requests=4, factor=1.0, seconds=1.0, batch_share=0.5)
    target = Target(tiny.server.grpc_url, tiny.server.launcher.pid)
    results = asyncio.run(overload.measure(load, target, 2, 4))
    under = results["overload"]
    assert (
        under["all"]["answered"]
        == under["all"]["requests"]
        == sum(one["answered"] for one in under["by_priority"].values())
    )
    assert set(under["by_priority"]) == {"interactive", "batch"}
    assert under["unanswered"] == 0
    assert 0 < under["client_cpu_cores"] < 2
    assert results["capacity"]["answered"] == 16
    assert sum(results["timeline"]["arrivals_per_s"]) == sum(results["timeline"]["answered_per_s"])
    assert len(results["timeline"]["answered_due_s"]) == sum(results["timeline"]["arrivals_per_s"])
    assert len(results["recovery"]["latencies_s"]) >= IN_A_ROW
    overload._print(results, load, 2)
    assert "goodput / capacity" in capsys.readouterr().out
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    path = report.write("overload", {"settings": asdict(load) | {"precision": "fp32"}, **results})
    assert plots.draw([path]).exists()
