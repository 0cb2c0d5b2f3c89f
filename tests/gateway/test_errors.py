"""Every bad request gets its status and a message that names the field, and a gateway that goes on."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import openai
import pytest
import requests

from gateway.process import running_gateway

GOOD = {"model": "chattts", "input": "Hello", "voice": "default", "response_format": "pcm"}


def speech(gateway, **fields):
    body = {name: value for name, value in (GOOD | fields).items() if value != "absent"}
    return requests.post(gateway.url + "/v1/audio/speech", json=body, timeout=30)


BAD = {
    "no input": ({"input": "absent"}, 400, "input", "'input': Field required"),
    "empty input": ({"input": ""}, 400, "input", "'input': String should have at least 1 character"),
    "long input": ({"input": "a" * 20_001}, 400, "input", "at most 20000 characters"),
    "input that is a number": ({"input": 7}, 400, "input", "'input': Input should be a valid string; it is 7"),
    "no turns": ({"input": []}, 400, "input", "'input': List should have at least 1 item"),
    "a turn without text": (
        {"input": [{"text": "a"}, {"voice": "b"}]},
        400,
        "input",
        "'input[1].text': Field required",
    ),
    "a turn of another key": (
        {"input": [{"text": "a", "seed": 3}]},
        400,
        "input",
        "'input[0].seed' is no field of this",
    ),
    "a turn of a broken clone": (
        {"input": [{"text": "a", "voice": "clone_!!"}]},
        400,
        "voice",
        "'voice' is no id of a cloned voice",
    ),
    "what the server refuses of a turn": (
        {"input": "fail INVALID_ARG input 'turns' is {'text': '...'}; allowed is for turn 2: text"},
        400,
        "input",
        "'input' is {'text': '...'}; allowed is for turn 2: text",
    ),
    "a lexicon of numbers": (
        {"lexicon": {"a": 3}},
        400,
        "lexicon",
        "'lexicon': Input should be a valid string; it is 3",
    ),
    "no model": ({"model": "absent"}, 400, "model", "'model': Field required"),
    "unknown model": ({"model": "gpt-9"}, 404, "model", "the model 'gpt-9' does not exist; allowed is chattts"),
    "model that is null": ({"model": None}, 400, "model", "'model'"),
    "broken clone": ({"voice": {"id": "clone_!!"}}, 400, "voice", "'voice' is no id of a cloned voice"),
    "clone of other data": ({"voice": {"id": "clone_AAAA"}}, 400, "voice", "'voice' is no id of a cloned voice"),
    "voice without id": ({"voice": {}}, 400, "voice", "'voice'"),
    "voice that is a list": ({"voice": []}, 400, "voice", "'voice'"),
    "unknown format": (
        {"response_format": "wma"},
        400,
        "response_format",
        "'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'",
    ),
    "slow": ({"speed": 0.2}, 400, "speed", "greater than or equal to 0.25; it is 0.2"),
    "fast": ({"speed": 4.1}, 400, "speed", "less than or equal to 4"),
    "speed in words": ({"speed": "fast"}, 400, "speed", "'speed'"),
    "unknown stream format": ({"stream_format": "websocket"}, 400, "stream_format", "'audio' or 'sse'"),
    "unknown field": ({"volume": 3}, 400, "volume", "'volume' is no field of this API"),
    "unknown strange field": ({"\ud800": 3}, 400, "body", "unable to parse raw data as a unicode string"),
    "Chinese voice": ({"voice": ["默认"]}, 400, "voice", "it is ['默认']"),
    "Chinese model": ({"model": "默认"}, 404, "model", "the model '默认' does not exist"),
    "long strange input": ({"input": "默" * 20_001}, 400, "input", f"it is '{'默' * 60}'... (20001 characters)"),
    "unknown mode": ({"mode": "fast"}, 400, "mode", "'exact' or 'low_latency'"),
    "seed that is a fraction": ({"seed": 1.5}, 400, "seed", "'seed'"),
    "seed beyond 64 bits": ({"seed": 2**63}, 400, "seed", "'seed'"),
    "surrogate": ({"input": "\ud800"}, 400, "input", "input"),
    "refine in words": ({"refine": "perhaps"}, 400, "refine", "'refine'"),
    "what the server refuses": (
        {"input": "fail INVALID_ARG input 'speaker' is 'x'; allowed is a voice"},
        400,
        "voice",
        "'voice' is 'x'; allowed is a voice",
    ),
    "what the server refuses by the same name": (
        {"input": "fail INVALID_ARG input 'top_p' is 2.0; allowed is (0, 1]"},
        400,
        "top_p",
        "'top_p' is 2.0; allowed is (0, 1]",
    ),
    "what the server refuses because of two": (
        {"input": "fail INVALID_ARG input 'speaker' is ''text''; allowed is one without 'speaker_sample' or 'text'"},
        400,
        "voice",
        "'voice' is ''text''; allowed is one without 'voice' or 'input'",
    ),
    "what the server refuses in Chinese": (
        {"input": "fail INVALID_ARG input 'speaker' is '默认'; allowed is 声音"},
        400,
        "voice",
        "'voice' is '默认'; allowed is 声音",
    ),
    "a full server": ({"input": "fail UNAVAILABLE the queue is full; try again later"}, 503, None, "try again later"),
    "a failing server": ({"input": "fail INTERNAL out of luck"}, 500, None, "out of luck"),
    "a passed deadline": ({"input": "fail CANCELLED deadline exceeded"}, 504, None, "deadline exceeded"),
}


@pytest.mark.parametrize(("fields", "status", "param", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_request_is_told_what_is_wrong(gateway, fields, status, param, message):
    answer = speech(gateway, **fields)
    error = answer.json()["error"]
    assert "\\u" not in answer.text.replace("\\ud800", "")
    assert (answer.status_code, error["param"]) == (status, param), error
    assert message in error["message"]
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert answer.headers["x-request-id"].startswith("req_")
    assert speech(gateway).ok


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/audio/speech", 405),
        ("POST", "/v2/models", 404),
        ("GET", "/nothing", 404),
    ],
)
def test_a_wrong_path_or_method_is_answered_in_the_same_form(gateway, method, path, status):
    answer = requests.request(method, gateway.url + path, timeout=30)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"input": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_object_is_refused(gateway, body):
    answer = requests.post(
        gateway.url + "/v1/audio/speech", data=body, headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_body_of_another_type_is_refused(gateway):
    """A form of another site could send this without asking."""
    answer = requests.post(
        gateway.url + "/v1/audio/speech", data=json.dumps(GOOD), headers={"content-type": "text/plain"}, timeout=30
    )
    assert answer.status_code == 400


def test_a_large_body_is_refused_by_its_header(gateway):
    answer = speech(gateway, input="a" * 600_000)
    assert answer.status_code == 413
    assert "allowed are 524288 bytes" in answer.json()["error"]["message"]


def test_a_large_body_without_a_length_is_refused_while_it_comes(gateway):
    def parts():
        yield b'{"input": "'
        for _ in range(20):
            yield b"a" * 50_000

    answer = requests.post(
        gateway.url + "/v1/audio/speech", data=parts(), headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == 413


def test_a_server_that_is_not_there_is_a_bad_gateway(refusing_url, tmp_path):
    with running_gateway(refusing_url, tmp_path / "gateway.log") as alone:
        answer = speech(alone)
        assert answer.status_code == 502
        assert refusing_url in answer.json()["error"]["message"]
        assert requests.get(alone.url + "/health", timeout=30).ok
        assert requests.get(alone.url + "/health/ready", timeout=30).status_code == 503


def test_the_package_raises_its_own_errors(gateway):
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.audio.speech.create(model="chattts", voice="default", input="Hello", speed=9)
        assert raised.value.param == "speed"
        with pytest.raises(openai.NotFoundError):
            client.audio.speech.create(model="whisper-1", voice="default", input="Hello")


def test_no_path_leads_out_of_the_page(gateway):
    address = urlsplit(gateway.url)
    for path in ("/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd"):
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 404 ")
