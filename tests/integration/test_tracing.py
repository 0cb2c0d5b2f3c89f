"""One trace from the gateway's caller to the last model, as a real receiver of OpenTelemetry's gets it."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from chattts_client import TTSClient

from bench.first_audio import PARTS
from bench.server import Load, Target, measure_levels
from bench.spans import SpanReceiver, receiving
from chattts_serving.launcher.running import running_server
from gateway.process import running_gateway
from tests.conftest import Deployment

WAIT_S = 30.0
TEXT = "Hello there, how are you today?"
LIMITS = {"min_new_tokens": 8, "max_new_tokens": 60}  # random weights may end too early, again and again
BEGINNING = {"queue", "prompt", "tokens"}  # what the first chunk waits for


@pytest.fixture(scope="module")
def receiver() -> Iterator[SpanReceiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def server(tiny: Deployment, receiver: SpanReceiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Traces those requests alone that belong to a trace, as docs/operations.md has it."""
    settings = ["mode=opentelemetry", f"opentelemetry,url={receiver.url}", "opentelemetry,bsp_schedule_delay=200"]
    flags = [f"--triton-flag=--trace-config={one}" for one in (*settings, "level=TIMESTAMPS", "rate=0")]
    log = tmp_path_factory.mktemp("traced") / "server.log"
    with running_server(tiny.repository, log_path=log, launcher_flags=flags) as running:
        yield running


def wait_for(receiver: SpanReceiver, trace_id: str, names: set[str]) -> dict[str, dict[str, Any]]:
    """The spans of a trace, once all of `names` are there and all that others belong to but for the caller's."""
    end = time.monotonic() + WAIT_S
    while True:
        spans = receiver.trace(trace_id)
        missing = names - {span["name"] for span in spans.values()}
        parents = {span["parentSpanId"] for span in spans.values()} - spans.keys()
        if not missing and len(parents) == 1:
            return spans
        assert time.monotonic() < end, f"{missing} are missing, or spans among {parents}"
        time.sleep(0.1)


def ancestors(spans: dict[str, dict[str, Any]], span: dict[str, Any]) -> list[str]:
    """The names of those that `span` is part of, from the nearest on; the last one is the caller's id."""
    parent = spans.get(span["parentSpanId"])
    return [parent["name"], *ancestors(spans, parent)] if parent else [span["parentSpanId"]]


def test_the_trace_of_the_gateways_caller_shows_every_model(
    server: Any, receiver: SpanReceiver, tmp_path: Path, onnx_models_are_processes: bool
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    of_others = {span["traceId"] for span in receiver.spans()}
    body = {"model": "chattts", "input": TEXT, "response_format": "pcm", "max_new_tokens": 60}
    with running_gateway(server.grpc_url, tmp_path / "log") as gateway:
        for headers in ({"traceparent": f"00-{trace_id}-{caller}-01"}, {"traceparent": "00-no"}, {}):
            assert requests.post(f"{gateway.url}/v1/audio/speech", json=body, headers=headers, timeout=60).ok
    sound = {"dvae_decoder", "vocos"} if onnx_models_are_processes else set()
    sound |= BEGINNING
    check(wait_for(receiver, trace_id, {"text_frontend", "speech_chunk", "gpt_decoder"} | sound), caller)
    assert {span["traceId"] for span in receiver.spans()} - of_others == {trace_id}


def check(spans: dict[str, dict[str, Any]], caller: str) -> None:
    """Triton's own spans may be missing over gRPC."""
    for span in spans.values():
        above = ancestors(spans, span)
        assert above[-1] == caller
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        if span["name"] in {"dvae_decoder", "vocos"}:
            assert above[0] == "speech_chunk"
        if span["name"] in BEGINNING:
            assert above[0] == "gpt_decoder"
        if span["name"] in {"gpt_decoder", "speech_chunk"}:
            assert above[:-1] in ([], ["chattts_stream", "InferRequest"], ["speech", "chattts", "InferRequest"])


@pytest.mark.parametrize("way", ["synthesize", "stream"])
def test_tritons_own_spans_are_part_of_it_over_http(server: Any, receiver: SpanReceiver, way: str) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with TTSClient(server.http_url, "http") as client:
        spoken = getattr(client, way)(TEXT, **LIMITS, traceparent=f"00-{trace_id}-{caller}-01")
        assert spoken if way == "synthesize" else list(spoken)
    names = {"chattts", "speech"} if way == "synthesize" else {"chattts_stream"}
    check(
        wait_for(receiver, trace_id, names | {"InferRequest", "text_frontend", "speech_chunk", "gpt_decoder"}), caller
    )


def test_a_whole_answer_over_grpc_is_traced(server: Any, receiver: SpanReceiver) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with TTSClient(server.grpc_url) as client:
        client.synthesize(TEXT, **LIMITS, traceparent=f"00-{trace_id}-{caller}-01")
    check(wait_for(receiver, trace_id, {"speech_chunk", "gpt_decoder"}), caller)


def test_a_text_in_pieces_is_traced(server: Any, receiver: SpanReceiver) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with TTSClient(server.grpc_url) as client:
        assert list(client.stream(iter(TEXT), **LIMITS, traceparent=f"00-{trace_id}-{caller}-01"))
    check(wait_for(receiver, trace_id, {"speech_chunk", *BEGINNING}), caller)


def test_many_traced_streams_are_answered(server: Any, receiver: SpanReceiver) -> None:
    """Triton's own way to trace calls of models, given a request's trace when `execute` has returned, crashes it."""
    ids = [secrets.token_hex(16) for _ in range(16)]

    def speak(trace_id: str) -> None:
        with TTSClient(server.grpc_url) as client:
            assert list(client.stream(TEXT, **LIMITS, traceparent=f"00-{trace_id}-{'1' * 16}-01"))

    threads = [threading.Thread(target=speak, args=[one]) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in ids:
        wait_for(receiver, one, {"speech_chunk", "gpt_decoder"})
    assert server.launcher.poll() is None
    assert "Signal" not in server.log_path.read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["exact", "low_latency"])
def test_the_bench_says_where_the_time_to_first_audio_went(
    server: Any, receiver: SpanReceiver, mode: Any, onnx_models_are_processes: bool
) -> None:
    load = Load(tokens=160, concurrency=(2,), rates=(20.0,), seeds=1, turns=2, requests=4, stream=True, mode=mode)
    levels = asyncio.run(measure_levels(load, Target(server.grpc_url, None, receiver), None))
    assert [level["turn"] for level in levels] == [None, 0, 1]
    for level in levels:
        for first_s, parts in zip(level["first_s"], level["first_parts_ms"], strict=True):
            assert list(parts) == list(PARTS)
            of_models = ("decoder", "vocoder") if onnx_models_are_processes else ()
            assert min(parts[name] for name in ("request", "text", "prompt", "tokens", *of_models)) > 0
            assert min(ms for ms in parts.values() if ms is not None) >= 0
            assert sum(ms for ms in parts.values() if ms is not None) == pytest.approx(1e3 * first_s)
