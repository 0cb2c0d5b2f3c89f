"""Files of every format as the programs that people open them with read them."""

from __future__ import annotations

import base64
import io
import re
import wave
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
import requests
import soundfile
from chattts_client.audio_file import MARK

from gateway.audio import FORMATS
from tests.client.fake_synthesis import SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.test_speech import events

TEXT = "Good morning, ladies and gentlemen."
SAMPLES = len(TEXT) * SAMPLES_PER_CHARACTER
LENGTH_S = SAMPLES / SAMPLE_RATE
BY_SOUNDFILE = ["mp3", "opus", "flac", "wav"]
SPARE_S = 0.05  # that MP3 and AAC encoders add

# Length and sample of a file as the browser hears it, or what it says instead.
LOAD = """
async ([type, data]) => {
  const audio = new Audio(`data:${type};base64,${data}`);
  return new Promise((resolve) => {
    audio.onloadedmetadata = () => resolve(audio.duration);
    audio.onerror = () => resolve(audio.error.message);
  });
}
"""


def spoken(gateway, name, **fields) -> requests.Response:
    body = {"model": "chattts", "input": TEXT, "response_format": name} | fields
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body, timeout=30)
    assert answer.ok, answer.text
    return answer


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", BY_SOUNDFILE)
def test_soundfile_reads_every_format_but_aac(gateway, name, stream):
    audio, rate = soundfile.read(io.BytesIO(spoken(gateway, name, stream=stream).content))
    assert len(audio) / rate == pytest.approx(LENGTH_S, abs=SPARE_S)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "pcm"])
def test_ffmpeg_reads_every_format(gateway, name, stream):
    with av.open(io.BytesIO(spoken(gateway, name, stream=stream).content)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert seconds == pytest.approx(LENGTH_S, abs=SPARE_S)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_every_file_says_that_a_machine_made_it(gateway, name, stream):
    answer = spoken(gateway, name, stream=stream)
    assert answer.headers["x-ai-generated"] == "true"
    with av.open(io.BytesIO(answer.content)) as container:
        (stream,) = container.streams
        comments = {**container.metadata, **stream.metadata}
    assert next(comments[key] for key in comments if key.lower() in ("comment", "description")) == MARK


@pytest.mark.parametrize("name", ["aac", "pcm"])
def test_formats_without_a_place_for_it_have_the_header(gateway, name):
    assert spoken(gateway, name).headers["x-ai-generated"] == "true"


@pytest.mark.parametrize("stream", [True, False])
def test_flac_always_says_its_length(gateway, stream):
    answer = spoken(gateway, "flac", stream=stream)
    assert soundfile.info(io.BytesIO(answer.content)).frames == SAMPLES
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_no_stream_has_its_length(gateway, name):
    answer = spoken(gateway, name, stream=False)
    assert answer.headers["content-length"] == str(len(answer.content))
    assert "transfer-encoding" not in answer.headers


def test_wave_knows_the_length_of_a_wav_file_that_is_no_stream(gateway):
    with wave.open(io.BytesIO(spoken(gateway, "wav", stream=False).content)) as reader:
        assert reader.getnframes() == SAMPLES
        whole = np.frombuffer(reader.readframes(SAMPLES), "<i2")
    with wave.open(io.BytesIO(spoken(gateway, "wav").content)) as reader:
        assert reader.getnframes() > SAMPLES  # as OpenAI's own streams have it
        np.testing.assert_array_equal(np.frombuffer(reader.readframes(SAMPLES), "<i2"), whole)


@pytest.mark.parametrize("name", ["flac", "wav", "mp3"])
def test_a_whole_file_in_events_is_the_same(gateway, name):
    *deltas, done = events(spoken(gateway, name, stream=False, stream_format="sse"))
    assert [delta["type"] for delta in deltas] == ["speech.audio.delta"]
    assert base64.b64decode(deltas[0]["audio"]) == spoken(gateway, name, stream=False).content
    assert done["type"] == "speech.audio.done"


def test_an_error_amid_a_whole_file_has_its_status(gateway):
    body = {
        "model": "chattts",
        "input": "break INTERNAL the decoder fell over",
        "response_format": "wav",
        "stream": False,
    }
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body, timeout=30)
    assert answer.status_code == 500
    assert "the decoder fell over" in answer.json()["error"]["message"]


@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_the_length_is_that_at_another_speed(gateway, speed):
    data = spoken(gateway, "flac", speed=speed).content
    assert soundfile.info(io.BytesIO(data)).duration == pytest.approx(LENGTH_S / speed, abs=0.09)


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav"])
def test_chromium_knows_the_length_of_whole_files(gateway, browser, name):
    data = base64.b64encode(spoken(gateway, name, stream=False).content).decode()
    page = browser.new_page()
    duration = page.evaluate(LOAD, [FORMATS[name].media_type, data])
    page.close()
    assert duration == pytest.approx(LENGTH_S, abs=SPARE_S)


# Samples that were spoken before


FILES = "/v1/audio/files"


def spoken_seconds(gateway) -> str:
    return re.search(r"^chattts_gateway_audio_seconds_total .*", requests.get(gateway.url + "/metrics").text, re.M)[0]


def test_samples_become_a_file_without_being_spoken_again(gateway):
    """Sent in parts that are cut amid samples, and without a length."""
    samples = spoken(gateway, "pcm").content
    before = spoken_seconds(gateway)
    parts = (samples[start : start + 1_001] for start in range(0, len(samples), 1_001))
    answer = requests.post(f"{gateway.url}{FILES}?response_format=flac", data=parts, timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/flac")
    audio, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
    assert rate == SAMPLE_RATE
    np.testing.assert_array_equal(audio, np.frombuffer(samples, "<i2"))
    assert spoken_seconds(gateway) == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_of_samples_is_that_of_the_speech(gateway, name):
    samples = spoken(gateway, "pcm").content
    answer = requests.post(f"{gateway.url}{FILES}?response_format={name}", data=samples, timeout=30)
    assert answer.headers["x-ai-generated"] == "true"
    speech = spoken(gateway, name, stream=False).content
    if name == "opus":  # a stream has a number of its own
        assert len(answer.content) == len(speech)
    else:
        assert answer.content == speech


@pytest.mark.parametrize(
    ("query", "body", "blamed"),
    [
        ("", b"", "'body' has 0 bytes"),
        ("", b"odd", "'body' has 3 bytes"),
        ("?response_format=ogg", b"ab", "'response_format'"),
        ("?sample_rate=7999", b"ab", "'sample_rate'"),
    ],
)
def test_what_is_no_samples_is_refused(gateway, query, body, blamed):
    answer = requests.post(gateway.url + FILES + query, data=body, timeout=30)
    assert answer.status_code == 400
    assert blamed in answer.json()["error"]["message"]


def test_more_samples_than_the_longest_speech_has_are_refused(gateway):
    host = urlsplit(gateway.url)
    with closing(HTTPConnection(host.hostname, host.port, timeout=30)) as connection:
        connection.putrequest("POST", FILES)
        connection.putheader("content-length", str(2 * 98_304 * 512 + 2))
        connection.endheaders()
        assert connection.getresponse().status == 413
