"""Voices by name, cloned voices that no gateway keeps, and recordings that are none."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import zlib

import numpy as np
import openai
import pytest
import requests
import soundfile
from chattts_client import TTSClient, Voice

from gateway.errors import GatewayError
from gateway.request import SpeechRequest, speed_tag
from gateway.voices import CLONE_PREFIX, RECORDING_RATE, ServerVoices, clone_id, decoded, spoken_by


def recording(seconds=2.0, rate=24_000, channels=1, form="WAV", subtype=None) -> bytes:
    times = np.arange(round(seconds * rate)) / rate
    audio = 0.3 * np.sin(2 * np.pi * 440 * times)
    file = io.BytesIO()
    soundfile.write(file, np.repeat(audio[:, None], channels, 1), rate, format=form, subtype=subtype)
    return file.getvalue()


def test_the_voices_of_the_server_are_listed(gateway, server):
    listed = requests.get(gateway.url + "/v1/audio/voices", timeout=30).json()
    with TTSClient(server.grpc_url) as client:
        known = client.voices()
    assert [(voice["id"], voice["description"]) for voice in listed["data"]] == [(v.name, v.description) for v in known]
    assert listed["voices"] == listed["data"]


def test_models_are_listed(gateway):
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused") as client:
        assert "chattts" in [model.id for model in client.models.list()]
        assert client.models.retrieve("chattts").object == "model"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("gpt-9")


def test_a_slash_at_the_end_is_no_model(gateway):
    assert requests.get(gateway.url + "/v1/models/", timeout=30).json()["object"] == "list"


def cloned(gateway, **fields):
    data = {"name": "anna"} | fields
    sound = data.pop("audio_sample", recording())
    return requests.post(
        gateway.url + "/v1/audio/voices", data=data, files={"audio_sample": ("a.wav", sound)}, timeout=30
    )


def test_a_cloned_voice_is_its_id(gateway):
    answer = cloned(gateway, transcript="Hello there.")
    voice = answer.json()
    assert (answer.status_code, voice["object"], voice["name"]) == (200, "audio.voice", "anna")
    inputs = spoken_by(voice["id"])
    assert json.loads(inputs["speaker_sample"])["sample_rate"] == RECORDING_RATE
    assert json.loads(inputs["speaker_sample"])["shapes"][0] == [1, 2 * RECORDING_RATE]
    assert inputs["sample_text"] == "Hello there."
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key="unused") as client:
        assert client.audio.speech.create(model="chattts", input="Hello", voice={"id": voice["id"]}).content


@pytest.mark.parametrize(
    ("rate", "channels", "form", "subtype"),
    [
        (8_000, 1, "WAV", None),
        (44_100, 2, "WAV", "FLOAT"),
        (48_000, 1, "FLAC", None),
        (44_100, 1, "OGG", "VORBIS"),
        (48_000, 2, "OGG", "OPUS"),
        (44_100, 2, "MP3", None),
    ],
)
def test_recordings_of_all_kinds_are_the_same_sound(rate, channels, form, subtype):
    audio = decoded(recording(rate=rate, channels=channels, form=form, subtype=subtype))
    assert len(audio) == pytest.approx(2 * RECORDING_RATE, abs=0.1 * RECORDING_RATE)
    middle = audio[RECORDING_RATE // 2 : -RECORDING_RATE // 2]
    assert np.abs(np.fft.rfft(middle)).argmax() * RECORDING_RATE / len(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.05)


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n"
BROKEN = {
    "nothing": (b"", "no recording"),
    "text": (b"Hello there.", "no recording"),
    "a playlist": (PLAYLIST, "no recording"),
    "a list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "no recording"),
    "half a header": (recording()[:20], "no recording"),
    "no samples": (recording(seconds=0), "has no sound"),
    "too long": (recording(seconds=31), "longer than 30 s"),
    "a low rate": (recording(rate=4_000), "4000 samples per second; allowed are 8000 to 192000"),
}


@pytest.mark.parametrize(("sound", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_recording_is_refused(sound, message):
    with pytest.raises(GatewayError, match=message) as raised:
        decoded(sound)
    assert (raised.value.status, raised.value.param) == (400, "audio_sample")


def test_a_playlist_opens_no_file(tmp_path):
    """FFmpeg would read what a playlist names."""
    (tmp_path / "secret.wav").write_bytes(recording())
    with pytest.raises(GatewayError):
        decoded(f"#EXTM3U\n#EXTINF:2,\nfile://{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n".encode())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "a" * 101}, "name"),
        ({"transcript": "a" * 1_001}, "transcript"),
        ({"audio_sample": b"noise"}, "audio_sample"),
    ],
)
def test_a_wrong_field_is_named(gateway, fields, param):
    answer = cloned(gateway, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_a_large_upload_is_refused(gateway):
    assert cloned(gateway, audio_sample=b"a" * (11 * 2**20)).status_code == 413


def test_an_upload_that_ffmpeg_has_no_decoder_for_is_refused():
    sound = bytearray(recording())
    sound[20:22] = b"\xfe\x12"  # the codec of a WAV file
    with pytest.raises(GatewayError, match="audio_sample"):
        decoded(bytes(sound))


def test_an_id_of_nothing_but_brackets_is_refused():
    packed = base64.urlsafe_b64encode(zlib.compress(b"[" * 100_000)).decode()
    with pytest.raises(GatewayError, match="no id of a cloned voice"):
        spoken_by(CLONE_PREFIX + packed)


def test_an_id_that_unpacks_to_too_much_is_refused():
    bomb = clone_id("a" * 10_000_000, "")
    assert len(bomb) < 65_536
    with pytest.raises(GatewayError, match="no id of a cloned voice"):
        spoken_by(bomb)


class _Asked:
    """In place of the client: a server with a voice that is called like one of OpenAI's."""

    def __init__(self):
        self.times, self.names = 0, ["default", "nova"]

    async def voices(self):
        self.times += 1
        return [Voice(name, "") for name in self.names]


@pytest.mark.parametrize(
    ("voice", "resolved"), [("alloy", "default"), ("nova", "nova"), ("default", "default"), ("seed-1", "seed-1")]
)
def test_names_of_openai_are_the_default_voice_unless_the_server_has_one(voice, resolved):
    assert asyncio.run(ServerVoices(_Asked()).resolved(voice)) == resolved
    assert spoken_by(resolved) == {"speaker": resolved}


def test_the_server_is_asked_for_its_voices_once_a_minute_and_for_names_of_openai_only():
    asked, now = _Asked(), [0.0]
    voices = ServerVoices(asked, clock=lambda: now[0])

    async def resolve():
        assert await voices.resolved("anna") == "anna"
        assert asked.times == 0
        assert [await voices.resolved(name) for name in ("alloy", "nova", "sage")] == ["default", "nova", "default"]
        asked.names = ["sage"]
        assert (await voices.resolved("sage"), asked.times) == ("default", 1)
        now[0] = 61.0
        assert [await voices.resolved(name) for name in ("sage", "nova")] == ["sage", "default"]
        assert asked.times == 2

    asyncio.run(resolve())


def test_clones_come_back_from_their_ids():
    assert spoken_by(clone_id("蘁淰", "你好")) == {"speaker_sample": "蘁淰", "sample_text": "你好"}
    assert spoken_by(clone_id("蘁淰", "")) == {"speaker_sample": "蘁淰"}
    assert clone_id("x", "").startswith(CLONE_PREFIX)


# Speed


@pytest.mark.parametrize(
    ("speed", "tags", "tag", "tempo"),
    [
        (1.0, {}, 5, 1.0),
        (2.0, {}, 5, 2.0),
        (1.2, {7: 1.2}, 7, 1.0),
        (1.5, {7: 1.2, 9: 1.4}, 9, 1.5 / 1.4),
        (0.9, {7: 1.2, 3: 0.85}, 3, 0.9 / 0.85),
        (1.0, {5: 1.1, 4: 1.0}, 4, 1.0),
    ],
)
def test_the_nearest_speed_tag_is_taken_and_the_rest_is_stretched(speed, tags, tag, tempo):
    assert speed_tag(speed, tags) == (tag, pytest.approx(tempo))


def test_a_prompt_of_the_caller_stays():
    body = {"model": "chattts", "input": "Hello", "speed": 1.2}
    options, tempo = SpeechRequest(**body, prompt="[speed_9]").options(["default"], {7: 1.2})
    assert (options.prompt, tempo) == ("[speed_9]", 1.2)
    options, tempo = SpeechRequest(**body).options(["default"], {7: 1.2})
    assert (options.prompt, tempo) == ("[speed_7]", 1.0)


def test_own_fields_become_options():
    options, _ = SpeechRequest(model="chattts", input="Hello", refine=False, seed=3, top_k=5).options(["ANNA"], {})
    assert (options.skip_refine, options.seed, options.top_k, options.speaker) == (True, 3, 5, "ANNA")
