"""Spans without a receiver, and of requests that say odd things; tests/integration/test_tracing.py has the rest."""

from __future__ import annotations

import json
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from bench.spans import receiving
from chattts_serving.triton.tracing import MOST_WAITING, UNTRACED, Tracer
from chattts_serving.variables import TRACES_URL

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"


def request(context: str | None = None, **parameters: Any) -> Any:
    trace = SimpleNamespace(get_context=lambda: context)
    return SimpleNamespace(trace=lambda: trace, parameters=lambda: json.dumps(parameters))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An address at which nobody listens is where spans go."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv(TRACES_URL, f"http://127.0.0.1:{bound.getsockname()[1]}/v1/traces")
        yield


def test_without_a_receiver_the_log_says_so_once(nowhere: None, caplog: pytest.LogCaptureFixture) -> None:
    tracer = Tracer()
    with caplog.at_level(logging.WARNING):
        for _ in range(MOST_WAITING + 1000):
            with tracer.of(request(traceparent=PARENT)).span("vocos") as own:
                assert own.startswith(f"00-{'a' * 32}-")
        tracer.close()
    assert len([record for record in caplog.records if "spans cannot be sent" in record.getMessage()]) == 1


def test_an_error_in_a_span_is_its_own(nowhere: None) -> None:
    tracer = Tracer()
    with pytest.raises(ValueError, match="the words"), tracer.of(request(traceparent=PARENT)).span("vocos"):
        raise ValueError("the words")
    tracer.close()


def test_tritons_trace_goes_before_a_parameter(nowhere: None) -> None:
    tracer, other = Tracer(), PARENT.replace("a", "c")
    with tracer.of(request(json.dumps({"traceparent": other}), traceparent=PARENT)).span("vocos") as own:
        assert own.startswith(other[:36])
    tracer.close()


def test_what_is_over_becomes_a_span_of_the_one_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        monkeypatch.setenv(TRACES_URL, receiver.url)
        tracer = Tracer()
        tracer.under(PARENT).add("prompt", 1_000, 3_000)
        tracer.under("").add("of nobody", 1_000, 3_000)
        tracer.close()
    [span] = receiver.trace("a" * 32).values()
    assert (span["name"], span["parentSpanId"]) == ("prompt", "b" * 16)
    assert (span["startTimeUnixNano"], span["endTimeUnixNano"]) == ("1000", "3000")
    assert receiver.spans() == [span]


def not_utf8() -> str:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


@pytest.mark.parametrize("said", [{}, {"traceparent": "no"}, {"traceparent": 7}, {"other": PARENT}])
def test_what_says_no_trace_is_not_traced(said: dict[str, Any], nowhere: None) -> None:
    tracer = Tracer()
    assert tracer.of(request(**said)) is UNTRACED
    odd = request()
    odd.parameters = not_utf8
    assert tracer.of(odd) is UNTRACED
    tracer.close()


def test_nothing_is_looked_at_where_nobody_receives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TRACES_URL, raising=False)
    tracer = Tracer()
    with tracer.of(None).span("vocos") as own:
        assert own == ""
    tracer.close()
