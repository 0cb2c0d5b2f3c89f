"""When each word is said, in front of the real models: sessions and batches say it as events of a whole text do."""

from __future__ import annotations

import io
import json
import random
import zipfile
from itertools import pairwise

import pytest
import requests

from gateway.batch import BATCH
from gateway.process import running_gateway
from tests.gateway.test_session import audio_of, cut, kinds_of, run, spoken
from tests.gateway.test_speech import decoded, events

TEXT = "Good morning, how are you today? The train to London leaves at half past seven. Thank you very much."
FIELDS = {"voice": "slt", "seed": 5, "refine": False, "word_times": True}
CONFIG = {"type": "session.config", "response_format": "pcm", **FIELDS}
NOT_KNOWN = "this server cannot tell when each word is said: 'words' has sentences"
RATE = 24_000


@pytest.fixture(scope="module")
def live(demo, tmp_path_factory):
    with running_gateway(demo.server.grpc_url, tmp_path_factory.mktemp("live") / "gateway.log") as gateway:
        yield gateway


def words_of_events(gateway, **fields):
    """Those of the whole text, as the answer of one request says them."""
    body = {"model": "chattts", "input": TEXT, "stream_format": "sse", **FIELDS, **fields}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body, timeout=120)
    return [word for event in events(answer) for word in event.get("words", ())]


@pytest.fixture(scope="module")
def expected(live):
    words = words_of_events(live)
    assert [word["text"] for word in words][:3] == ["Good", "morning", "how"]
    return words


def told(found):
    """The events of words in a session."""
    return [event for event in found if not isinstance(event, bytes) and event["type"] == "audio.words"]


@pytest.mark.parametrize(("streams", "seed"), [(False, 0), (True, 1), (True, 2)])
def test_a_session_has_the_words_of_the_whole_text_wherever_it_is_cut(live, expected, streams, seed):
    found = spoken(live, CONFIG | {"stream_audio": streams}, cut(TEXT, random.Random(seed)))
    assert [word for event in told(found) for word in event["words"]] == expected
    assert [(event["utterance_index"], event["sentence_index"]) for event in told(found)] == [(0, 0), (0, 1), (0, 2)]
    for event in told(found):
        assert {word["sentence"] for word in event["words"]} == {event["sentence_index"]}
        assert "warning" not in event
    for kind, after in pairwise(kinds_of(found)):
        assert kind != "audio.words" or after == "audio"
    if not streams:
        assert kinds_of(found) == ["audio.start", "audio.words", "audio", "audio.done"] * 3 + ["session.done"]


@pytest.mark.parametrize("speed", [0.25, 1.3])
def test_start_is_where_the_file_of_a_sentence_begins_in_the_text(live, speed):
    """Files of another tempo are not just as long as speech is then: they end a little sooner or later."""
    found = spoken(live, CONFIG | {"speed": speed}, [TEXT])
    num_samples, words = 0, []
    for start, said, audio, _ in zip(*[iter(found[:-1])] * 4, strict=True):
        assert (start["type"], said["type"]) == ("audio.start", "audio.words")
        assert said["start"] == num_samples / RATE
        num_samples += len(audio_of([audio]))
        assert said["start"] <= said["words"][0]["start"]
        assert said["words"][-1]["end"] <= num_samples / RATE + 0.1 / speed
        words += said["words"]
    for word, after in pairwise(words):
        assert word["start"] < word["end"] <= after["start"]
    for word, whole in zip(words, words_of_events(live, speed=speed), strict=True):
        assert word["start"] == pytest.approx(whole["start"], abs=0.1 / speed)


def test_words_of_a_sentence_come_before_the_text_has_ended_and_each_text_begins_at_zero(live, expected):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(CONFIG))
        await socket.send("input.text", text=TEXT[:60])
        first = await socket.until("audio.done")
        await socket.say([TEXT[60:]])
        first += await socket.until("session.done")
        await socket.say([TEXT])
        await socket.connection.send_str(json.dumps(CONFIG | {"word_times": False}))
        await socket.say(["Thank you."])
        return first, await socket.until("session.done"), await socket.until("session.done")

    first, second, third = run(live, talk)
    for index, found in enumerate((first, second)):
        assert [word for event in told(found) for word in event["words"]] == expected
        assert {event["utterance_index"] for event in told(found)} == {index}
    assert told(third) == []


def test_a_batch_has_the_words_of_each_text_beside_its_file(live, expected):
    items = [{"input": TEXT, "id": "all"}, {"input": "Thank you.", "word_times": False}]
    body = {"items": items, "answer_format": "zip", "response_format": "wav", **FIELDS}
    answer = requests.post(live.url + BATCH, json=body, timeout=120)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert sorted(archive.namelist()) == ["01.wav", "all.wav", "all.words.json", "manifest.json"]
        assert json.loads(archive.read("all.words.json")) == {"words": expected}
        samples, rate = decoded(archive.read("all.wav"), "wav")
    assert expected[-1]["end"] <= len(samples) / rate


def test_where_words_have_no_times_sessions_and_batches_have_sentences_and_say_so(tiny, tmp_path):
    """What else is left out of the text is said beside it."""
    text = "The library opens at nine. Привет is no word of ours. And the end is near."
    fields = {"seed": 7, "refine": False, "max_new_tokens": 14, "min_new_tokens": 10, "word_times": True}
    with running_gateway(tiny.server.grpc_url, tmp_path / "gateway.log") as gateway:
        found = spoken(gateway, {"type": "session.config", **fields}, cut(text, random.Random(1)))
        body = {"items": [{"input": text}], **fields}
        (result,) = requests.post(gateway.url + BATCH, json=body, timeout=120).json()["results"]
        plain = {"items": [{"input": text}], **fields, "word_times": False}
        (without,) = requests.post(gateway.url + BATCH, json=plain, timeout=120).json()["results"]
    words = [word for event in told(found) for word in event["words"]]
    starts = [event for event in found if not isinstance(event, bytes) and event["type"] == "audio.start"]
    assert [word["text"] for word in words] == [event["sentence_text"] for event in starts]
    assert {word["confidence"] for word in words} == {0}
    assert words == result["words"]
    assert all(NOT_KNOWN in event["warning"] for event in told(found))
    assert without["warning"]
    assert found[-1]["warning"] == result["warning"] == f"{without['warning']}; {NOT_KNOWN}"
