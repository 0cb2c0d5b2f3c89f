"""What clients of all kinds send that OpenAI's documentation does not make them send."""

from __future__ import annotations

import json

import openai
import pytest
import requests

from gateway.process import running_gateway
from gateway.request import SpeechRequest
from gateway.settings import parse
from gateway.speech import SILENCE_RATE, SILENCE_S
from tests.client.fake_synthesis import SAMPLES_PER_CHARACTER

KEY = "a-key-of-sixteen-characters"
BODY = {"model": "chattts", "input": "Hello", "response_format": "pcm"}
NUM_BYTES = 2 * SAMPLES_PER_CHARACTER * len(BODY["input"])
NOTHING_TO_SAY = (
    "fail INVALID_ARG input 'text' is '😀'; allowed is text with at least one word, Chinese character or number"
)
OPTIONAL = sorted(set(SpeechRequest.model_fields) - {"model", "input", "response_format"})


def speech(gateway, **fields):
    return requests.post(gateway.url + "/v1/audio/speech", json=BODY | fields, timeout=30)


@pytest.fixture(scope="module")
def other(server, tmp_path_factory):
    """A gateway with keys and every switch of its own."""
    log = tmp_path_factory.mktemp("other") / "gateway.log"
    flags = ["--strict", "--public-voices", "--allow-silence"]
    with running_gateway(server.grpc_url, log, *flags, keys=KEY) as running:
        yield running


def other_speech(other, **fields):
    sent = {"authorization": f"Bearer {KEY}"}
    return requests.post(other.url + "/v1/audio/speech", json=BODY | fields, headers=sent, timeout=30)


# Null and names


def test_null_is_a_field_that_is_not_given(gateway):
    answer = speech(gateway, **dict.fromkeys(OPTIONAL))
    assert (answer.status_code, len(answer.content)) == (200, NUM_BYTES)
    assert "x-ignored" not in answer.headers
    assert speech(gateway, response_format=None).headers["content-type"] == "audio/mpeg"


def test_the_schema_allows_null_where_it_is_taken(gateway):
    schema = requests.get(gateway.url + "/openapi.json", timeout=30).json()["components"]["schemas"]["SpeechRequest"]
    allowed = {
        name
        for name, field in schema["properties"].items()
        if not {"anyOf", "oneOf", "type"} & set(field) or {"type": "null"} in field.get("anyOf", ())
    }
    assert allowed == {*OPTIONAL, "response_format"}


@pytest.mark.parametrize("voice", ["", " ", "\ufeff", " alloy\n", "\ufeffdefault ", {"id": ""}])
def test_a_voice_without_a_name_is_the_default_one(voice):
    assert SpeechRequest(model="chattts", input="Hello", voice=voice).voice_names[0] in ("default", "alloy")


@pytest.mark.parametrize(
    "model",
    [
        "gpt-4o-mini-tts-2025-12-15",
        "openai/gpt-4o-mini-tts",
        "openai/gpt-4o-mini-tts-2025-03-20",
        "tts-1-1106",
        "tts-1-hd-1106",
        "openai/tts-1",
        "openai/chattts",
    ],
)
def test_dated_and_prefixed_names_of_models_are_taken(gateway, model):
    assert speech(gateway, model=model).ok
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused") as client:
        assert client.models.retrieve(model).id == model


@pytest.mark.parametrize("model", ["gpt-4o", "tts-2", "tts-1-11", "openai/whisper-1", "chattts-x", "tts-1\n"])
def test_other_models_are_not(gateway, model):
    assert speech(gateway, model=model).status_code == 404


# Headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/health",
        "/health/ready",
        "/metrics",
        "/openapi.json",
        "/v1/models",
        "/v1/models/tts-1",
        "/v1/audio/voices",
    ],
)
def test_head_is_answered_as_get_without_its_body(gateway, path):
    got, headed = (requests.request(method, gateway.url + path, timeout=30) for method in ("GET", "HEAD"))
    assert (headed.status_code, headed.content) == (200, b"")
    assert headed.headers["content-type"] == got.headers["content-type"]


def test_head_is_counted_at_its_path(other):
    requests.head(other.url + "/health", timeout=30)
    sent = {"authorization": f"Bearer {KEY}"}
    assert 'requests_total{route="/health"' in requests.get(other.url + "/metrics", headers=sent, timeout=30).text


def test_head_is_not_allowed_where_get_is_not(gateway):
    answer = requests.head(gateway.url + "/v1/audio/speech", timeout=30)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "["}, 400), ({"Host": "[::1"}, 400), ({"Origin": "http://["}, 403), ({"Origin": "null"}, 403)],
)
def test_broken_addresses_in_headers_are_refused(gateway, headers, status):
    answer = requests.post(gateway.url + "/v1/audio/speech", json=BODY, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error")
    assert "Traceback" not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("path", "sent", "message"),
    [
        ("/v1/audio/speech", {}, "the header Content-Type is missing; allowed is application/json"),
        (
            "/v1/audio/speech",
            {"content-type": "text/plain"},
            "the header Content-Type is 'text/plain'; allowed is application/json",
        ),
        ("/v1/audio/voices", {}, "the header Content-Type is missing; allowed is multipart/form-data"),
        (
            "/v1/audio/voices",
            {"content-type": "application/json"},
            "the header Content-Type is 'application/json'; allowed is multipart/form-data",
        ),
    ],
)
def test_a_wrong_content_type_is_named(gateway, path, sent, message):
    answer = requests.post(gateway.url + path, data=json.dumps(BODY).encode(), headers=sent, timeout=30)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


# Fields that change nothing, and fields of others


def test_what_cannot_be_followed_is_ignored_and_told(gateway):
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused", max_retries=0) as client:
        answer = client.audio.speech.create(
            model="gpt-4o-mini-tts",
            voice="nova",
            input="Hello",
            instructions="Whisper.",
            response_format="pcm",
            extra_body={"user": "anna", "metadata": {"a": 1}, "stream": True},
        )
    assert answer.response.headers["x-ignored"] == "instructions, user, metadata"
    assert len(answer.content) == NUM_BYTES
    assert "x-ignored" not in speech(gateway, instructions="").headers


def test_what_is_not_spoken_is_told(gateway):
    assert speech(gateway, input="a ☃").headers["x-warning"] == "not all"
    assert "x-warning" not in speech(gateway).headers


def test_a_strict_gateway_ignores_nothing(other):
    for name in ("instructions", "user", "metadata"):
        error = other_speech(other, **{name: "Whisper."}).json()["error"]
        assert (error["param"], error["code"]) == (name, "invalid_value")
        assert "--strict" in error["message"]
    assert other_speech(other, instructions="").ok


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lang_code", "language"),
        ("output_format", "response_format"),
        ("text", "input"),
        ("voice_id", "voice"),
        ("word_timestamps", "word_times"),
    ],
)
def test_a_field_of_other_interfaces_is_told_its_name_here(gateway, name, meant):
    error = speech(gateway, **{name: "en"}).json()["error"]
    assert error["param"] == name
    assert error["message"] == f"'{name}' is no field of this API; '{meant}' does what it says"


# Voices


@pytest.mark.parametrize("alias", ["nova", "=awb", "nova=", " = "])
def test_a_bad_alias_is_refused(alias, capsys):
    with pytest.raises(SystemExit):
        parse(["--voice-alias", alias], {})
    assert "allowed is NAME=VOICE" in capsys.readouterr().err


def test_voices_may_be_listed_without_a_key(other):
    url = other.url + "/v1/audio/voices"
    assert requests.get(url, timeout=30).json()["voices"]
    assert requests.head(url, timeout=30).status_code == 200
    assert requests.post(url, timeout=30).status_code == 401
    assert requests.get(other.url + "/v1/models", timeout=30).status_code == 401


# Nothing to say


def test_nothing_to_say_is_a_silence_for_who_asks(gateway):
    refused = speech(gateway, input=NOTHING_TO_SAY)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input")
    for fields in ({}, {"stream": False}):
        answer = speech(gateway, input=NOTHING_TO_SAY, allow_silence=True, seed=7, **fields)
        assert answer.content == bytes(2 * round(SILENCE_S * SILENCE_RATE))
        assert (answer.headers["x-seed"], answer.headers["x-sample-rate"]) == ("7", str(SILENCE_RATE))


def test_other_errors_are_no_silence(gateway):
    answer = speech(gateway, input="fail INVALID_ARG input 'text' is 'x'; allowed is y", allow_silence=True)
    assert answer.status_code == 400


def test_a_gateway_may_be_silent_for_all_who_do_not_decide(other):
    assert len(other_speech(other, input=NOTHING_TO_SAY).content) == 2 * round(SILENCE_S * SILENCE_RATE)
    assert other_speech(other, input=NOTHING_TO_SAY, allow_silence=False).status_code == 400
