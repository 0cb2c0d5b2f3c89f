"""OpenAI's own package, unchanged, against the gateway."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from urllib.parse import urlsplit

import av
import numpy as np
import openai
import pytest
import requests
from chattts_client import TTSClient

from gateway.audio import FORMATS
from gateway.process import running_gateway
from tests.client.conftest import content
from tests.client.fake_synthesis import CHARACTERS_PER_CHUNK, DEFAULT_SEED, SAMPLE_RATE, SAMPLES_PER_CHARACTER

TEXT = "Good morning, ladies and gentlemen. This is a sentence that has some length.\nAnd this is another one."
TONE_HZ = 440


@pytest.fixture
def sdk(gateway):
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused", max_retries=0) as client:
        yield client


def decoded(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """Samples and rate as FFmpeg hears them."""
    if name == "pcm":
        return np.frombuffer(data, "<i2") / 32768, SAMPLE_RATE
    with av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler("flt", "mono", container.streams.audio[0].rate)
        frames = [part for frame in [*container.decode(audio=0), None] for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


def pitch(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio)).argmax() * rate / len(audio))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_lasts_as_long_as_the_answer_of_the_server(sdk, server, name):
    spoken = sdk.audio.speech.create(model="chattts", voice="default", input=TEXT, response_format=name)
    audio, rate = decoded(spoken.content, name)
    with TTSClient(server.grpc_url) as client:
        whole = client.synthesize(TEXT)
    assert abs(len(audio) / rate - whole.duration) < 0.05
    assert pitch(audio, rate) == pytest.approx(TONE_HZ, abs=2)
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
    assert spoken.response.headers["content-type"] == FORMATS[name].media_type


@pytest.mark.parametrize("name", ["wav", "pcm", "flac"])
def test_formats_without_loss_have_the_samples_of_the_server(sdk, server, name):
    data = sdk.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, response_format=name).content
    with TTSClient(server.grpc_url) as client:
        whole = client.synthesize(TEXT).audio
    audio, _ = decoded(data, name)
    np.testing.assert_allclose(audio, whole, atol=1.01 / 32768)


def test_mp3_is_the_format_of_who_names_none(sdk):
    assert sdk.audio.speech.create(model="chattts", voice="default", input="Hello").response.headers[
        "content-type"
    ] == ("audio/mpeg")


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.streams])
def test_speech_arrives_while_the_model_speaks(gateway, tmp_path, name):
    """The text never ends, so what arrives cannot have waited for its end."""
    body = {"model": "chattts", "voice": "default", "input": f"endless {tmp_path / 'ended'}", "response_format": name}
    with requests.post(gateway.url + "/v1/audio/speech", json=body, stream=True) as answer:
        assert answer.raw.read(1_000)
    assert content(tmp_path / "ended") == "cancelled"


def test_a_client_that_leaves_before_the_first_sound_is_noticed(gateway, tmp_path):
    body = json.dumps({"model": "chattts", "input": f"mute {tmp_path / 'ended'}"}).encode()
    address = urlsplit(gateway.url)
    kind = "Content-Type: application/json"
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {len(body)}"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        end = time.monotonic() + 20
        while b"syntheses 1.0" not in requests.get(gateway.url + "/metrics", timeout=30).content:
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.5)  # until Triton has the request
    assert content(tmp_path / "ended") == "cancelled"


def test_the_package_streams(sdk, tmp_path):
    with sdk.audio.speech.with_streaming_response.create(
        model="chattts", voice="default", input=TEXT, response_format="pcm"
    ) as answer:
        parts = list(answer.iter_bytes())
    assert len(b"".join(parts)) == len(TEXT) * SAMPLES_PER_CHARACTER * 2


def events(answer: requests.Response) -> list[dict]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_server_sent_events_carry_the_same_audio(gateway):
    body = {"model": "chattts", "input": TEXT, "response_format": "pcm", "stream_format": "sse"}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events(answer)
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert len(deltas) == -(-len(TEXT) // CHARACTERS_PER_CHUNK)
    audio = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    assert len(audio) == len(TEXT) * SAMPLES_PER_CHARACTER * 2
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == len(TEXT)


@pytest.mark.parametrize("stream", [True, False])
def test_events_say_when_words_are_heard(gateway, stream):
    body = {
        "model": "chattts",
        "input": "one\ntwo",
        "stream_format": "sse",
        "word_times": True,
        "speed": 2,
        "stream": stream,
    }
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body)
    told = [event["words"] for event in events(answer) if event["type"] == "speech.audio.words"]
    second = SAMPLES_PER_CHARACTER / SAMPLE_RATE / 2  # at twice the speed
    assert told == [
        [{"text": "one", "start": 0.0, "end": pytest.approx(3 * second), "sentence": 0, "confidence": 0.5}],
        [
            {
                "text": "two",
                "start": pytest.approx(4 * second),
                "end": pytest.approx(7 * second),
                "sentence": 1,
                "confidence": 0.5,
            }
        ],
    ]


@pytest.mark.parametrize("word_times", [True, False])
def test_events_end_with_what_was_not_spoken(gateway, word_times):
    body = {"model": "chattts", "input": "a ☃", "stream_format": "sse", "word_times": word_times}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body)
    assert answer.headers["x-warning"] == "not all"
    *others, done = events(answer)
    assert (done["type"], done["warning"]) == ("speech.audio.done", "not all")
    assert not any("warning" in event for event in others)
    assert "warning" not in events(requests.post(gateway.url + "/v1/audio/speech", json=body | {"input": "a"}))[-1]


def test_words_beside_audio_that_has_no_place_for_them_are_refused(gateway):
    body = {"model": "chattts", "input": "one", "word_times": True}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "word_times"
    assert "stream_format" in answer.json()["error"]["message"]


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.25, 2.0, 4.0])
@pytest.mark.parametrize("name", ["wav", "mp3"])
def test_speed_changes_the_length_and_not_the_pitch(sdk, name, speed):
    data = sdk.audio.speech.create(model="chattts", voice="default", input=TEXT, response_format=name, speed=speed)
    audio, rate = decoded(data.content, name)
    usual = len(TEXT) * SAMPLES_PER_CHARACTER / SAMPLE_RATE
    assert len(audio) / rate == pytest.approx(usual / speed, abs=0.09)
    assert pitch(audio, rate) == pytest.approx(TONE_HZ, abs=3)


def test_the_seed_that_was_used_comes_back(gateway):
    body = {"model": "chattts", "input": "Hello", "response_format": "pcm"}
    answers = [requests.post(gateway.url + "/v1/audio/speech", json=body | extra) for extra in ({}, {"seed": 7})]
    assert [answer.headers["x-seed"] for answer in answers] == [str(DEFAULT_SEED), "7"]
    assert answers[0].headers["x-sample-rate"] == str(SAMPLE_RATE)


def test_an_error_amid_speech_ends_the_answer_before_its_end(gateway):
    body = {"model": "chattts", "input": "break INTERNAL the decoder fell over", "response_format": "pcm"}
    before = gateway.log.read_text().count("Traceback")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(gateway.url + "/v1/audio/speech", json=body)
    assert gateway.log.read_text().count("Traceback") == before  # it is no fault of the gateway
    *_, last = events(requests.post(gateway.url + "/v1/audio/speech", json=body | {"stream_format": "sse"}))
    assert "the decoder fell over" in last["error"]["message"]


@pytest.mark.parametrize(("name", "start"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("opus", b"OggS"), ("pcm", b"")])
def test_silence_is_an_empty_file(gateway, name, start):
    body = {"model": "chattts", "input": "silence", "response_format": name}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body)
    assert answer.status_code == 200
    assert answer.content[:4] == start


def test_a_client_that_does_not_read_is_given_up(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path / "log", "--timeout", "3", "--max-concurrent", "1") as gateway:
        body = {"model": "chattts", "input": f"endless {tmp_path / 'ended'}", "response_format": "wav"}
        url = gateway.url + "/v1/audio/speech"
        with requests.post(url, json=body, stream=True, timeout=30):
            assert requests.post(url, json=body, timeout=30).status_code == 429
            assert content(tmp_path / "ended") == "cancelled"
            end = time.monotonic() + 30
            while requests.post(url, json={"model": "chattts", "input": "Hello"}, timeout=30).status_code == 429:
                assert time.monotonic() < end
                time.sleep(0.05)
