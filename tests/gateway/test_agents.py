"""What agents send, byte for byte as it was recorded between each of them and a gateway, and read as they read it.

The packages are heavy, or want another Python or Node.js; docs/agents.md has their versions and how they were tried.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import struct
from urllib.parse import urlsplit

import pytest
import requests

from gateway.process import running_gateway
from tests.client.fake_synthesis import SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.test_speech import decoded

KEY = "a-key-of-sixteen-characters"
TEXT = "Hello there. The library opens at nine."
SECONDS = len(TEXT) * SAMPLES_PER_CHARACTER / SAMPLE_RATE

WYOMING_OPENAI = """\
POST /v1/audio/speech HTTP/1.1
Host: 127.0.0.1:18081
Accept-Encoding: gzip, deflate
Connection: keep-alive
authorization: Bearer a-key-of-sixteen-characters
accept: application/octet-stream
content-type: application/json
user-agent: CustomAsyncOpenAI/Python 3.22.1
x-stainless-lang: python
x-stainless-package-version: 3.22.1
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: async:asyncio
x-stainless-raw-response: stream
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: 107

{"input":"Hello there. The library opens at nine.","model":"chattts","voice":"slt","response_format":"wav"}"""

WYOMING_OPENAI_VOICES = """\
GET /v1/audio/voices HTTP/1.1
Host: 127.0.0.1:18081
Accept: */*
Accept-Encoding: gzip, deflate
Connection: keep-alive
User-Agent: python-httpx2/2.16.2

"""

LIVEKIT = """\
POST /v1/audio/speech HTTP/1.1
Host: 127.0.0.1:18081
Accept-Encoding: gzip, deflate
Connection: keep-alive
authorization: Bearer a-key-of-sixteen-characters
accept: application/octet-stream
content-type: application/json
user-agent: AsyncOpenAI/Python 3.57.0
x-stainless-lang: python
x-stainless-package-version: 3.57.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: async:asyncio
x-stainless-raw-response: stream
x-stainless-retry-count: 0
x-stainless-read-timeout: 30
Content-Length: 141

{"model":"chattts","input":"Hello there. The library opens at nine.","voice":"slt","response_format":"mp3","speed":1.0,"stream_format":"sse"}"""  # noqa: E501

PIPECAT = """\
POST /v1/audio/speech HTTP/1.1
Host: 127.0.0.1:18081
Accept-Encoding: gzip, deflate
Connection: keep-alive
authorization: Bearer a-key-of-sixteen-characters
accept: application/octet-stream
content-type: application/json
user-agent: AsyncOpenAI/Python 3.57.0
x-stainless-lang: python
x-stainless-package-version: 3.57.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: async:asyncio
x-stainless-raw-response: stream
x-stainless-retry-count: 0
x-stainless-read-timeout: 600
Content-Length: 134

{"model":"chattts","input":"Hello there. The library opens at nine.","voice":"nova","instructions":"Be calm.","response_format":"pcm"}"""  # noqa: E501

LITELLM = """\
POST /v1/audio/speech HTTP/1.1
Host: 127.0.0.1:18081
Accept-Encoding: gzip, deflate
Connection: keep-alive
authorization: Bearer a-key-of-sixteen-characters
accept: application/octet-stream
content-type: application/json
user-agent: OpenAI/Python 3.57.0
x-stainless-lang: python
x-stainless-package-version: 3.57.0
x-stainless-os: Linux
x-stainless-arch: x64
x-stainless-runtime: CPython
x-stainless-runtime-version: 3.11.7
x-stainless-async: false
x-stainless-retry-count: 0
x-stainless-read-timeout: 6000.0
Content-Length: 83

{"model":"chattts","input":"Hello there. The library opens at nine.","voice":"slt"}"""

AI_SDK = """\
POST /v1/audio/speech HTTP/1.1
host: 127.0.0.1:18081
connection: keep-alive
authorization: Bearer a-key-of-sixteen-characters
content-type: application/json
user-agent: ai/6.0.326 ai-sdk/provider-utils/4.0.66 runtime/node.js/v20.20.2
accept: */*
accept-language: *
sec-fetch-mode: cors
accept-encoding: gzip, deflate
content-length: 107

{"model":"chattts","input":"Hello there. The library opens at nine.","voice":"slt","response_format":"mp3"}"""


@pytest.fixture(scope="module")
def agents(server, tmp_path_factory):
    """A gateway as docs/agents.md has it started."""
    log = tmp_path_factory.mktemp("agents") / "gateway.log"
    flags = ["--allow-silence", "--public-voices", "--voice-alias", "nova=slt"]
    with running_gateway(server.grpc_url, log, *flags, keys=KEY) as running:
        yield running


def answered(gateway, recorded):
    """The answer to `recorded`, and its body."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head, _, body = recorded.partition("\n\n")
        connection.sendall(f"{head}\n\n".replace("\n", "\r\n").encode() + body.encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        return answer, answer.read()


def test_wyoming_openai_reads_a_wav_of_an_open_length(agents):
    """It finds `fmt ` and `data` among the chunks, and takes what follows for samples until the end."""
    answer, body = answered(agents, WYOMING_OPENAI)
    assert (answer.status, body[:4], body[8:12]) == (200, b"RIFF", b"WAVE")
    place, chunks = 12, {}
    while "data" not in chunks:
        name, size = struct.unpack_from("<4sI", body, place)
        chunks[name.decode()] = place + 8
        place += 8 + size + size % 2
    _, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body, chunks["fmt "])
    assert (channels, rate, bits) == (1, 24_000, 16)
    assert (len(body) - chunks["data"]) / 2 / rate == pytest.approx(SECONDS)


def test_wyoming_openai_finds_the_voices_without_its_key(agents):
    answer, body = answered(agents, WYOMING_OPENAI_VOICES)
    assert answer.status == 200
    assert [voice["id"] for voice in json.loads(body)["voices"]]


def test_livekit_reads_events(agents):
    """Lines that begin with `data: `, whose `audio` in base64 is one MP3."""
    answer, body = answered(agents, LIVEKIT)
    assert answer.headers["content-type"].partition(";")[0] == "text/event-stream"
    events = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: ")]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    audio, rate = decoded(b"".join(base64.b64decode(event["audio"]) for event in deltas), "mp3")
    assert len(audio) / rate == pytest.approx(SECONDS, abs=0.05)
    assert (done["type"], done["usage"]["output_tokens"]) == ("speech.audio.done", len(TEXT))


def test_livekit_reads_the_file_of_an_older_model(agents):
    older = LIVEKIT.replace('"chattts"', '"tts-1"').replace('"sse"', '"audio"')
    answer, body = answered(agents, older)
    assert answer.headers["content-type"] == "audio/mpeg"
    audio, rate = decoded(body, "mp3")
    assert len(audio) / rate == pytest.approx(SECONDS, abs=0.05)


def test_pipecat_reads_samples(agents):
    """It has no voices but OpenAI's, so one of those names has to lead to another voice."""
    answer, body = answered(agents, PIPECAT)
    assert (answer.status, answer.headers["x-ignored"]) == (200, "instructions")
    assert len(body) / 2 / 24_000 == pytest.approx(SECONDS)


@pytest.mark.parametrize("recorded", [LITELLM, AI_SDK], ids=["LiteLLM", "AI SDK"])
def test_litellm_and_the_ai_sdk_read_an_mp3(agents, recorded):
    answer, body = answered(agents, recorded)
    assert (answer.status, answer.headers["content-type"]) == (200, "audio/mpeg")
    audio, rate = decoded(body, "mp3")
    assert len(audio) / rate == pytest.approx(SECONDS, abs=0.05)


def test_open_webui_finds_voices_and_falls_back_for_models(agents):
    """As its source has it: lists are asked for without the key, and a name of OpenAI's is the model without one."""
    assert requests.get(agents.url + "/v1/audio/voices", timeout=30).json()["voices"][0].keys() >= {"id", "name"}
    assert requests.get(agents.url + "/v1/audio/models", timeout=30).status_code == 401
    body = {"input": TEXT, "model": "tts-1", "voice": "slt"}
    sent = {"authorization": f"Bearer {KEY}"}
    answer = requests.post(agents.url + "/v1/audio/speech", json=body, headers=sent, timeout=30)
    assert answer.headers["content-type"] == "audio/mpeg"
