"""One trace from the gateway's caller to the last model, as a real receiver of OpenTelemetry's gets it."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
from chattts_client import TTSClient

from chattts_serving.launcher.running import running_server
from gateway.process import running_gateway
from tests.conftest import Deployment

WAIT_S = 30.0
TEXT = "Hello there, how are you today?"


@dataclass
class Receiver:
    """OTLP over HTTP: what came, as JSON, by trace id."""

    url: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)

    def trace(self, trace_id: str) -> dict[str, dict[str, Any]]:
        """The trace's spans by their ids."""
        return {span["spanId"]: span for span in list(self.spans) if span["traceId"] == trace_id}

    def names(self, trace_id: str) -> set[str]:
        return {span["name"] for span in self.trace(trace_id).values()}


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    received = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for resource in content["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    received.spans.extend(scope["spans"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        received.url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        yield received
        server.shutdown()


@pytest.fixture(scope="module")
def server(tiny: Deployment, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Traces those requests alone that belong to a trace, as docs/operations.md has it."""
    settings = ["mode=opentelemetry", f"opentelemetry,url={receiver.url}", "opentelemetry,bsp_schedule_delay=200"]
    flags = [f"--triton-flag=--trace-config={one}" for one in (*settings, "level=TIMESTAMPS", "rate=0")]
    log = tmp_path_factory.mktemp("traced") / "server.log"
    with running_server(tiny.repository, log_path=log, launcher_flags=flags) as running:
        yield running


def wait_for(receiver: Receiver, trace_id: str, names: set[str]) -> dict[str, dict[str, Any]]:
    end = time.monotonic() + WAIT_S
    while not names <= receiver.names(trace_id):
        assert time.monotonic() < end, f"{names - receiver.names(trace_id)} are missing"
        time.sleep(0.1)
    return receiver.trace(trace_id)


def ancestors(spans: dict[str, dict[str, Any]], span: dict[str, Any]) -> list[str]:
    """The names of those that `span` is part of, from the nearest on; the last one is the caller's id."""
    parent = spans.get(span["parentSpanId"])
    return [parent["name"], *ancestors(spans, parent)] if parent else [span["parentSpanId"]]


def test_the_trace_of_the_gateways_caller_shows_every_model(
    server: Any, receiver: Receiver, tmp_path: Path, onnx_models_are_processes: bool
) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    of_others = {span["traceId"] for span in receiver.spans}
    body = {"model": "chattts", "input": TEXT, "response_format": "pcm", "max_new_tokens": 60}
    with running_gateway(server.grpc_url, tmp_path / "log") as gateway:
        for headers in ({"traceparent": f"00-{trace_id}-{caller}-01"}, {"traceparent": "00-no"}, {}):
            assert requests.post(f"{gateway.url}/v1/audio/speech", json=body, headers=headers, timeout=60).ok
    sound = {"dvae_decoder", "vocos"} if onnx_models_are_processes else set()
    check(wait_for(receiver, trace_id, {"text_frontend", "speech_chunk", "gpt_decoder"} | sound), caller)
    assert {span["traceId"] for span in receiver.spans} - of_others == {trace_id}


def check(spans: dict[str, dict[str, Any]], caller: str) -> None:
    """Triton's own spans may be missing over gRPC."""
    for span in spans.values():
        above = ancestors(spans, span)
        assert above[-1] == caller
        assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        if span["name"] in {"dvae_decoder", "vocos"}:
            assert above[0] == "speech_chunk"
        if span["name"] in {"gpt_decoder", "speech_chunk"}:
            assert above[:-1] in ([], ["chattts_stream", "InferRequest"], ["speech", "chattts", "InferRequest"])


@pytest.mark.parametrize("way", ["synthesize", "stream"])
def test_tritons_own_spans_are_part_of_it_over_http(server: Any, receiver: Receiver, way: str) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with TTSClient(server.http_url, "http") as client:
        spoken = getattr(client, way)(TEXT, max_new_tokens=60, traceparent=f"00-{trace_id}-{caller}-01")
        assert spoken if way == "synthesize" else list(spoken)
    names = {"chattts", "speech"} if way == "synthesize" else {"chattts_stream"}
    check(
        wait_for(receiver, trace_id, names | {"InferRequest", "text_frontend", "speech_chunk", "gpt_decoder"}), caller
    )


def test_a_whole_answer_over_grpc_is_traced(server: Any, receiver: Receiver) -> None:
    trace_id, caller = secrets.token_hex(16), secrets.token_hex(8)
    with TTSClient(server.grpc_url) as client:
        client.synthesize(TEXT, max_new_tokens=60, traceparent=f"00-{trace_id}-{caller}-01")
    check(wait_for(receiver, trace_id, {"speech_chunk", "gpt_decoder"}), caller)


def test_many_traced_streams_are_answered(server: Any, receiver: Receiver) -> None:
    """Triton's own way to trace calls of models, given a request's trace when `execute` has returned, crashes it."""
    ids = [secrets.token_hex(16) for _ in range(16)]

    def speak(trace_id: str) -> None:
        with TTSClient(server.grpc_url) as client:
            assert list(client.stream(TEXT, max_new_tokens=60, traceparent=f"00-{trace_id}-{'1' * 16}-01"))

    threads = [threading.Thread(target=speak, args=[one]) for one in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in ids:
        wait_for(receiver, one, {"speech_chunk", "gpt_decoder"})
    assert server.launcher.poll() is None
    assert "Signal" not in server.log_path.read_text(encoding="utf-8")
