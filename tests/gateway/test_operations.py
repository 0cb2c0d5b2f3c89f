"""What operators see: health, metrics, the log; and every path of the API with whatever may be sent."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from gateway.process import running_gateway
from tests.client.conftest import content
from tests.client.fake_synthesis import SAMPLE_RATE, SAMPLES_PER_CHARACTER

BODY = {"model": "chattts", "input": "Hello there", "response_format": "pcm"}


@pytest.fixture
def fresh(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path / "gateway.log") as gateway:
        yield gateway


def speak(gateway, headers=None, **fields):
    return requests.post(gateway.url + "/v1/audio/speech", json=BODY | fields, headers=headers, timeout=30)


def metrics(gateway) -> dict[tuple, float]:
    text = requests.get(gateway.url + "/metrics", timeout=30).text
    return {
        (sample.name.removeprefix("chattts_gateway_"), *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def logged(gateway, request_id) -> dict:
    """The line about one request, which is written after its answer."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        for line in gateway.log.read_text().splitlines():
            if request_id in line:
                return json.loads(line)
        time.sleep(0.02)
    raise AssertionError(gateway.log.read_text())


def test_a_gateway_in_front_of_a_server_is_ready(gateway):
    assert requests.get(gateway.url + "/health", timeout=30).json() == {"status": "ok"}
    assert requests.get(gateway.url + "/health/ready", timeout=30).json() == {"status": "ready"}


def test_metrics_count_what_clients_saw(fresh, tmp_path):
    for _ in range(3):
        assert speak(fresh).ok
    assert speak(fresh, input="fail UNAVAILABLE try again later").status_code == 503
    assert speak(fresh, speed=9).status_code == 400
    with requests.post(
        fresh.url + "/v1/audio/speech", json=BODY | {"input": f"endless {tmp_path / 'ended'}"}, stream=True, timeout=30
    ):
        assert metrics(fresh)["syntheses",] == 1
    assert content(tmp_path / "ended") == "cancelled"
    end = time.monotonic() + 20
    counted = ("requests_total", "/v1/audio/speech", "200")  # the last that is
    while (found := metrics(fresh)).get(counted) != 4 and time.monotonic() < end:
        time.sleep(0.02)
    assert found["syntheses",] == 0
    assert found["syntheses_ended_total", "spoken"] == 3
    assert found["syntheses_ended_total", "error_503"] == 1
    assert found["syntheses_ended_total", "left"] == 1
    assert found["first_audio_seconds_count",] == 4
    assert found["real_time_factor_count",] == 3
    spoken = 3 * len(BODY["input"]) * SAMPLES_PER_CHARACTER / SAMPLE_RATE
    assert found["audio_seconds_total",] > spoken
    assert {key: value for key, value in found.items() if key[0] == "requests_total" and "/v1/audio/speech" in key} == {
        ("requests_total", "/v1/audio/speech", "200"): 4,
        ("requests_total", "/v1/audio/speech", "400"): 1,
        ("requests_total", "/v1/audio/speech", "503"): 1,
    }


def test_the_log_has_a_line_for_each_request_without_its_text(fresh):
    answer = speak(fresh, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    line = logged(fresh, "mine-1")
    assert (line["path"], line["status"], line["characters"], line["owner"]) == (
        "/v1/audio/speech",
        200,
        len(BODY["input"]),
        "anybody",
    )
    assert BODY["input"] not in fresh.log.read_text()


def test_the_log_has_texts_when_asked(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path / "gateway.log", "--log-text") as gateway:
        speak(gateway, headers={"x-request-id": "mine-2"})
        assert logged(gateway, "mine-2")["text"] == BODY["input"]


@pytest.mark.parametrize("sent", ["", "a" * 65, "two words", "new\tline", "ü"])
def test_an_id_that_would_harm_the_log_is_replaced(gateway, sent):
    answer = speak(gateway, headers={"x-request-id": sent.encode()})
    assert answer.headers["x-request-id"].startswith("req_")


def test_stopping_ends_what_is_open(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path / "gateway.log", "--drain-timeout", "1") as gateway:
        body = BODY | {"input": f"endless {tmp_path / 'ended'}"}
        with requests.post(gateway.url + "/v1/audio/speech", json=body, stream=True, timeout=30):
            gateway.process.send_signal(signal.SIGTERM)
            gateway.process.wait(30)
    assert content(tmp_path / "ended") == "cancelled"


def test_stopping_waits_for_open_answers_as_long_as_it_is_told(server, tmp_path):
    """The answer begins 12 s after the signal, longer than the 10 s that are left without a word."""
    with running_gateway(server.grpc_url, tmp_path / "gateway.log", "--drain-timeout", "60") as gateway:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(speak, gateway, input="hang 12")
            while not metrics(gateway)["syntheses",]:
                time.sleep(0.02)
            gateway.process.send_signal(signal.SIGTERM)
            assert answer.result().status_code == 200
        assert gateway.process.wait(30) in (0, -signal.SIGTERM)
    with pytest.raises(requests.ConnectionError):
        speak(gateway)


def test_the_schema_says_what_is_answered_to_whatever_is_sent(gateway, tmp_path):
    """schemathesis draws requests from the gateway's own description of itself."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", gateway.url + "/openapi.json"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    flags = ["--checks", checks, "--max-examples", "50", "--request-timeout", "30", "--no-color"]
    found = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stdout[-5_000:]
    assert "Tested: 9" in found.stdout, found.stdout[-5_000:]
