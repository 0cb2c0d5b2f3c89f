"""Metrics and reports, with a stand-in for Triton's side of them."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from chattts_serving.engine.sequence import Kind
from chattts_serving.errors import CalledModelError, DeadlineExceededError, InvalidInputError, OverloadedError
from chattts_serving.speech.observer import Load, Step
from chattts_serving.triton.metrics import Metrics
from chattts_serving.triton.reports import EngineReports, RequestReports
from chattts_serving.variables import LOG_REQUESTS
from tests import fake_pb_utils as pb


@contextmanager
def written():
    """Metrics, and a dictionary that has their values by name and labels once the block has ended."""
    pb.metrics.clear()
    values = {}
    metrics = Metrics(pb)
    try:
        yield metrics, values
    finally:
        metrics.close()
        values |= {(one.family.name, *sorted(one.labels.items())): one.value for one in pb.metrics}


def test_gauges_are_set_and_counters_grow():
    with written() as (metrics, values):
        gauge, counter = metrics.gauge("open", "Open."), metrics.counter("done_total", "Done.", kind="a")
        other = metrics.counter("done_total", "Done.", kind="b")
        gauge.set(3)
        gauge.set(2)
        counter.add()
        counter.add(4)
        other.add(0.5)
    assert values == {
        ("chattts_open",): 2,
        ("chattts_done_total", ("kind", "a")): 5,
        ("chattts_done_total", ("kind", "b")): 0.5,
    }
    assert len({one.family for one in pb.metrics}) == 2


def test_a_histogram_counts_as_prometheus_has_it():
    with written() as (metrics, values):
        histogram = metrics.histogram("wait_seconds", "Waited.", (0.1, 1, 5), model="m")
        for seconds in (0.05, 0.1, 0.5, 7):
            histogram.observe(seconds)
    model = ("model", "m")
    buckets = {
        dict(labels)["le"]: value for (name, *labels), value in values.items() if name == "chattts_wait_seconds_bucket"
    }
    assert buckets == {"0.1": 2, "1": 3, "5": 3, "+Inf": 4}
    assert values["chattts_wait_seconds_count", model] == 4
    assert values["chattts_wait_seconds_sum", model] == pytest.approx(7.65)


def test_a_server_that_takes_no_metric_disturbs_nobody(caplog):
    class Deaf(pb.MetricFamily):
        def Metric(self, labels):  # noqa: N802
            return object()

    with_deaf = type("module", (), {"MetricFamily": Deaf})
    metrics = Metrics(with_deaf)
    metrics.gauge("open", "Open.").set(1)
    metrics.close()
    assert "metrics could not be written" in caplog.text


def test_what_the_engine_does_is_counted():
    with written() as (metrics, values):
        reports = EngineReports(metrics)
        reports.load(Load(requests_open=3, sequences_running=5, cache_tokens=100))
        reports.step(Step(0.004, 5, {Kind.AUDIO: 4, Kind.TEXT: 1}))
        reports.step(Step(0.03, 2, {Kind.AUDIO: 2, Kind.TEXT: 0}))
    assert values["chattts_requests_open",] == 3
    assert values["chattts_cache_tokens",] == 100
    assert values["chattts_tokens_total", ("kind", "audio")] == 6
    assert values["chattts_tokens_total", ("kind", "text")] == 1
    assert values["chattts_step_seconds_bucket", ("le", "0.005")] == 1
    assert values["chattts_step_sequences_sum",] == 7
    assert values["chattts_step_sequences_count",] == 2


class Arrived:
    """A request of Triton's."""

    def __init__(self, name):
        self.name = name

    def request_id(self):
        return self.name


def chunk(samples, tokens):
    return {"audio": np.zeros(samples, np.float32), "num_tokens": np.array([tokens], np.int32)}


ENDINGS = {
    "answered": None,
    "invalid": InvalidInputError("text", "", "something"),
    "overloaded": OverloadedError("overloaded: 9 requests are open"),
    "deadline_exceeded": CalledModelError("deadline exceeded before the audio was complete", "INTERNAL"),
    "shutting_down": CalledModelError("the server is shutting down", "UNAVAILABLE"),
    "cancelled": CalledModelError("Triton's own words", "CANCELLED"),
    "failed": RuntimeError("planted"),
}


@pytest.mark.parametrize("log", ["0", "1"])
def test_a_request_is_counted_by_its_outcome_and_logged_if_wanted(log, monkeypatch, capsys):
    monkeypatch.setenv(LOG_REQUESTS, log)
    with written() as (metrics, values):
        reports = RequestReports(metrics, "chattts_stream", streams=True)
        for name, error in ENDINGS.items():
            report = reports.arrived(Arrived(f"id {name}"))
            if name in ("answered", "deadline_exceeded"):
                report.heard(chunk(0, 0))
                report.heard(chunk(24_000, 47))
                report.heard(chunk(12_000, 23))
            report.ended(error)
            report.gone()
    model = ("model", "chattts_stream")
    found = {dict(key[1:])["outcome"]: value for key, value in values.items() if key[0] == "chattts_requests_total"}
    assert found == dict.fromkeys(ENDINGS, 1)
    assert values["chattts_requests_come_total", model] == values["chattts_requests_gone_total", model] == len(ENDINGS)
    assert values["chattts_first_audio_seconds_count",] == 2
    assert values["chattts_realtime_factor_count", model] == 1
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    if log == "0":
        assert lines == []
        return
    assert [line["outcome"] for line in lines] == list(ENDINGS)
    assert [line["request_id"] for line in lines] == [f"id {name}" for name in ENDINGS]
    answered, invalid = lines[:2]
    assert (answered["event"], answered["model"]) == ("request", "chattts_stream")
    assert (answered["audio_s"], answered["tokens"], answered["error"]) == (1.5, 70, None)
    assert 0 <= answered["first_audio_s"] <= answered["seconds"]
    assert (invalid["audio_s"], invalid["first_audio_s"]) == (0, None)
    assert invalid["error"] == "input 'text' is ''; allowed is something"


def test_whole_answers_have_no_first_audio():
    with written() as (metrics, values):
        report = RequestReports(metrics, "speech").arrived(Arrived(""))
        report.heard(chunk(24_000, 47))
        report.ended(DeadlineExceededError("deadline exceeded"))
    assert not [name for name, *_ in values if "first_audio" in name]


def test_a_model_that_only_prepares_counts_what_ends_there():
    with written() as (metrics, values):
        RequestReports(metrics, "text_frontend", speaks=False).arrived(Arrived("")).ended(OverloadedError("overloaded"))
    assert {name for name, *_ in values} == {"chattts_requests_total"}
    assert values["chattts_requests_total", ("model", "text_frontend"), ("outcome", "overloaded")] == 1
    assert not [labels for _, *labels in values if ("outcome", "answered") in labels]
