"""Many texts in one call: each a synthesis of its own, answered in three forms."""

from __future__ import annotations

import base64
import io
import json
import socket
import subprocess
import time
import zipfile
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from chattts_client import TTSClient

from gateway.batch import BATCH
from gateway.process import running_gateway
from tests.client.conftest import content
from tests.client.fake_synthesis import SAMPLES_PER_CHARACTER
from tests.gateway.test_operations import logged
from tests.gateway.test_speech import decoded, pitch
from tests.metrics import time_to_rest, wait_until

KEY = "a-key-of-sixteen-characters"
HEADERS = {"authorization": f"Bearer {KEY}"}
FORMS = ("json", "ndjson", "zip")


def batch(gateway, *items, **fields):
    body = {"response_format": "pcm", "items": [{"input": one} if isinstance(one, str) else one for one in items]}
    return requests.post(gateway.url + BATCH, json=body | fields, headers=HEADERS, timeout=60)


def results(answer):
    """By index, each with its file's bytes as `audio`, and the totals, whatever the form."""
    assert answer.status_code == 200, answer.text
    kind = answer.headers["content-type"]
    if kind == "application/zip":
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            assert archive.testzip() is None
            totals = json.loads(archive.read("manifest.json"))
            found = totals.pop("results")
            assert sorted(archive.namelist()) == sorted(
                ["manifest.json", *(one[name] for one in found for name in ("file", "words_file") if name in one)]
            )
            for one in found:
                one["audio"] = archive.read(one["file"]) if "file" in one else b""
                if "words_file" in one:
                    one.update(json.loads(archive.read(one["words_file"])))
        return found, totals
    if kind == "application/json":
        totals = answer.json()
        found = totals.pop("results")
    else:
        assert kind == "application/x-ndjson"
        *found, totals = map(json.loads, answer.text.splitlines())
        found.sort(key=lambda one: one["index"])
    for one in found:
        one["audio"] = base64.b64decode(one.pop("audio_data", ""))
    return found, totals


def num_characters(result):
    return len(result["audio"]) // 2 / SAMPLES_PER_CHARACTER


@pytest.fixture(scope="module")
def keyed(server, tmp_path_factory):
    """With a key that may have four syntheses at once and six in a minute."""
    flags = ["--max-concurrent", "4", "--requests-per-minute", "6"]
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("keyed") / "log", *flags, keys=KEY) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(server, tmp_path_factory):
    """With two syntheses at once, so that batches speak one after the other, and patience of five seconds."""
    flags = ["--max-concurrent", "2", "--timeout", "5", "--log-text"]
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("impatient") / "log", *flags) as running:
        yield running


@pytest.mark.parametrize("form", FORMS)
def test_each_text_is_spoken_with_its_own_fields_or_those_of_all(gateway, form):
    answer = batch(
        gateway,
        {"input": "Hello", "id": "greeting", "seed": 3},
        {"input": "A longer text ☃", "response_format": "flac", "instructions": "Whisper.", "voice": None},
        {"input": [{"text": "One,"}, {"text": "two."}], "speed": 2.0, "response_format": "mp3"},
        answer_format=form,
        seed=2**62,
    )
    (first, second, third), totals = results(answer)
    assert [one["index"] for one in (first, second, third)] == [0, 1, 2]
    assert totals == {"id": answer.headers["x-request-id"], "total": 3, "succeeded": 3, "failed": 0}
    assert answer.headers["x-ai-generated"] == "true"
    assert (first["id"], first["seed"], first["media_type"], first["sample_rate"]) == (
        "greeting",
        "3",
        "audio/pcm",
        24_000,
    )
    assert num_characters(first) == 5
    assert first["usage"] == {"input_tokens": 0, "output_tokens": 5, "total_tokens": 5}
    assert (second["seed"], second["warning"], second["ignored"]) == (str(2**62), "not all", ["instructions"])
    audio, rate = decoded(second["audio"], "flac")
    assert (len(audio), rate) == (15 * SAMPLES_PER_CHARACTER, 24_000)
    audio, rate = decoded(third["audio"], "mp3")
    assert len(audio) / rate == pytest.approx(9 * SAMPLES_PER_CHARACTER / 24_000 / 2, abs=0.09)
    assert pitch(audio, rate) == pytest.approx(440, abs=5)
    assert not {"id", "warning", "ignored", "error"} & set(third)
    if form == "zip":
        assert [one["file"] for one in (first, second, third)] == ["greeting.pcm", "01.flac", "02.mp3"]


@pytest.mark.parametrize("form", FORMS)
def test_results_say_when_words_are_heard_where_that_is_wanted(gateway, form):
    """The fake server has a word a line."""
    items = [
        {"input": "One\ntwo ☃", "id": "manifest"},
        {"input": "Three", "speed": 2.0},
        {"input": "four", "word_times": False},
        {"input": "silence", "allow_silence": True},
        {"input": "five", "speed": 9},
    ]
    (first, second, third, silent, failed), _ = results(batch(gateway, *items, word_times=True, answer_format=form))
    second_of = SAMPLES_PER_CHARACTER / 24_000

    def word(text, start, end, sentence=0):
        times = {"start": pytest.approx(start * second_of), "end": pytest.approx(end * second_of)}
        return {"text": text, **times, "sentence": sentence, "confidence": 0.5}

    assert first["words"] == [word("one", 0, 3), word("two ☃", 4, 9, 1)]
    assert first["warning"] == "not all"
    assert second["words"] == [word("three", 0, 2.5)]
    assert silent["words"] == []
    assert "words" not in third
    assert "words" not in failed
    if form == "zip":
        assert first["words_file"] == "manifest.words.json"
        assert "words_file" not in third
    else:
        assert "words_file" not in first


def test_texts_let_others_go_first_and_have_ids_of_their_own(gateway):
    items = ["tell priority", {"input": "tell priority", "priority": "interactive"}, "tell request_id"]
    answer = batch(gateway, *items)
    told = [one["error"].removeprefix("UNKNOWN: ") for one in results(answer)[0]]
    request_id = answer.headers["x-request-id"]
    assert told == [
        "priority is batch",
        "priority is interactive",
        f"request_id is {request_id}.2",
    ]


WRONG = {
    "no field of a batch": (
        {"input": "a", "mode": "exact"},
        400,
        "mode",
        "'mode' is no field of a batch; leave it out",
    ),
    "streams": ({"input": "a", "stream": True}, 400, "stream", "'stream' is no field of a batch; leave it out"),
    "no text": ({"voice": "default"}, 400, "input", "'input': Field required"),
    "a null": ({"input": None}, 400, "input", "'input': Field required"),
    "fast": ({"input": "a", "speed": 9}, 400, "speed", "less than or equal to 4; it is 9"),
    "unknown": ({"input": "a", "volume": 3}, 400, "volume", "'volume' is no field of this API"),
    "a wrong turn": ({"input": [{"text": "a"}, {}]}, 400, "input", "'input[1].text': Field required"),
    "a broken clone": ({"input": "a", "voice": "clone_!!"}, 400, "voice", "'voice' is no id of a cloned voice"),
    "another model": ({"input": "a", "model": "gpt-9"}, 404, "model", "the model 'gpt-9' does not exist"),
    "beyond 64 bits": ({"input": "a", "seed": 2**63}, 400, "seed", "'seed' is 9223372036854775808"),
    "no characters": ({"input": "\ud800"}, 400, "input", "'input'"),
    "strange field": ({"input": "a", "\ud800": 1}, 400, None, ""),
    "what the server refuses": (
        "fail INVALID_ARG input 'speaker' is '默认'; allowed is 声音",
        400,
        "voice",
        "'voice' is '默认'; allowed is 声音",
    ),
    "a failing server": ("break INTERNAL out of luck", 500, None, "out of luck"),
    "a passed deadline": ("fail CANCELLED deadline exceeded", 504, None, "deadline exceeded"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_text_that_fails_fails_alone(gateway, form):
    found, totals = results(
        batch(gateway, "before", *(item for item, *_ in WRONG.values()), "after", answer_format=form)
    )
    assert (totals["succeeded"], totals["failed"]) == (2, len(WRONG))
    before, *failed, after = found
    assert (num_characters(before), num_characters(after)) == (6, 5)
    for name, one, (_, status, param, message) in zip(WRONG, failed, WRONG.values(), strict=True):
        assert (one["status"], one["http_status"], one["audio"]) == ("error", status, b""), name
        assert message in one["error"], name
        assert one.get("param") == param or name == "strange field", name


def test_a_failed_text_keeps_its_id(gateway):
    found, _ = results(batch(gateway, {"input": "a", "speed": 9, "id": "mine"}))
    assert found[0]["id"] == "mine"


REFUSED = {
    "no items": ({}, 400, "items", "'items': Field required"),
    "none": ({"items": []}, 400, "items", "at least 1 item"),
    "too many": ({"items": [{"input": "a"}] * 65}, 400, "items", "at most 64 items"),
    "texts alone": ({"items": ["a"]}, 400, "items", "it is 'a'"),
    "too long together": (
        {"items": [{"input": "a" * 20_000}] * 5 + [{"input": [{"text": "a"}]}]},
        400,
        "items",
        "'items' have 100,001 characters; allowed are 100,000 together",
    ),
    "an id with a slash": (
        {"items": [{"input": "a", "id": "a/b"}]},
        400,
        "items",
        "'items[0].id' is 'a/b'; allowed are",
    ),
    "an id of dots": ({"items": [{"input": "a", "id": ".."}]}, 400, "items", "'items[0].id' is '..'"),
    "an id that is a number": ({"items": [{"input": "a", "id": 7}]}, 400, "items", "'items[0].id' is 7"),
    "an id with a line break": ({"items": [{"input": "a", "id": "a\n"}]}, 400, "items", "'items[0].id' is 'a\\n'"),
    "two of a name": (
        {"items": [{"input": "a", "id": "Ab"}, {"input": "a", "id": "aB"}]},
        400,
        "items",
        "'items[1].id' is 'aB', which is another item's",
    ),
    "the number of another one": (
        {"items": [{"input": "a", "id": "01"}, {"input": "a"}]},
        400,
        "items",
        "'items[1].id'",
    ),
    "a text for all": ({"items": [{"input": "a"}], "input": "b"}, 400, "input", "'input' is no field of a batch"),
    "a stream": ({"items": [{"input": "a"}], "stream_format": "sse"}, 400, "stream_format", "is no field of a batch"),
    "a wrong field for all": ({"items": [{"input": "a"}], "speed": 9}, 400, "speed", "less than or equal to 4"),
    "another model": ({"items": [{"input": "a"}], "model": "gpt-9"}, 404, "model", "'gpt-9' does not exist"),
    "another form": ({"items": [{"input": "a"}], "answer_format": "tar"}, 400, "answer_format", "'json', 'ndjson' or"),
    "no list": ({"items": {"input": "a"}}, 400, "items", "'items': Input should be a valid list"),
}


@pytest.mark.parametrize(("body", "status", "param", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_wrong_with_all_is_refused(gateway, body, status, param, message):
    answer = requests.post(gateway.url + BATCH, json=body, timeout=30)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert message in error["message"]


def test_a_batch_may_have_more_than_a_text(gateway):
    body = {"items": [{"input": "Hello", "lexicon": {f"word-{n}": "x" * 100 for n in range(90)}}] * 60}
    whole = json.dumps(body | {"response_format": "pcm"}).encode()
    sent = {"content-type": "application/json"}
    assert 2**19 < len(whole) < 2**22
    found, _ = results(requests.post(gateway.url + BATCH, data=whole, headers=sent, timeout=60))
    assert {num_characters(one) for one in found} == {5}
    answer = requests.post(gateway.url + BATCH, data=whole + b" " * 2**22, headers=sent, timeout=30)
    assert answer.status_code == 413
    assert "allowed are 4194304 bytes" in answer.json()["error"]["message"]


def test_lines_and_files_come_as_they_are_spoken(gateway, tmp_path):
    """The first text never ends, so what arrives has waited for no other; who leaves then has it cancelled."""
    for form in ("ndjson", "zip"):
        ended = tmp_path / form
        body = {"items": [{"input": f"endless {ended}"}, {"input": "Hello", "id": "hello"}], "answer_format": form}
        with requests.post(gateway.url + BATCH, json=body, stream=True, timeout=30) as answer:
            part = next(answer.iter_content(None))
            if form == "ndjson":
                assert json.loads(part)["index"] == 1
            else:  # read as a stream, by a program that has not the end of it
                unzip = ["python3", "-c", UNZIP_STREAM]
                named = subprocess.run(unzip, input=part, capture_output=True, check=True).stdout
                assert named == b"hello.wav RIFF"
        assert content(ended) == "cancelled"


UNZIP_STREAM = """
import struct, sys, zlib
data = sys.stdin.buffer.read()
method, = struct.unpack_from("<H", data, 8)
name, extra = struct.unpack_from("<HH", data, 26)
assert (data[:4], method) == (b"PK\\x03\\x04", 8)
audio = zlib.decompressobj(-15).decompress(data[30 + name + extra :])
print(data[30 : 30 + name].decode(), audio[:4].decode(), end="")
"""


def test_json_comes_in_the_order_of_the_items(gateway):
    answer = batch(gateway, "hang 1", *"abc")
    assert [one["index"] for one in answer.json()["results"]] == [0, 1, 2, 3]


def test_a_text_waits_for_room_and_is_told_that_there_is_none(impatient, tmp_path):
    waiting = f"full {tmp_path / 'room'}"
    found, _ = results(batch(impatient, waiting, "fail UNAVAILABLE overloaded; try again later", "Hello"))
    assert [one.get("http_status") for one in found] == [None, 503, None]
    assert num_characters(found[0]) == len(waiting)
    counted = requests.get(impatient.url + "/metrics", timeout=30).text
    assert 'chattts_gateway_syntheses_ended_total{outcome="error_503"} 1.0' in counted
    assert 'chattts_gateway_syntheses_ended_total{outcome="spoken"} 2.0' in counted
    assert "chattts_gateway_syntheses 0.0" in counted
    assert "chattts_gateway_first_audio_seconds_count 0.0" in counted


def test_a_text_that_takes_too_long_fails_alone(impatient):
    found, _ = results(batch(impatient, "hang 10", "Hello"))
    assert [one.get("http_status") for one in found] == [504, None]


def test_the_log_has_the_number_of_characters(impatient):
    answer = batch(impatient, "Hello", {"input": [{"text": "a"}, {"text": "b"}]})
    line = logged(impatient, answer.headers["x-request-id"])
    assert (line["characters"], line["text"], line["path"]) == (8, "Hello\na\nb", BATCH)


def test_each_text_counts_for_its_key(keyed):
    assert requests.post(keyed.url + BATCH, json={"items": [{"input": "a"}]}, timeout=30).status_code == 401
    many = batch(keyed, *["a"] * 7)
    assert (many.status_code, "retry-after" in many.headers) == (429, False)
    assert "the batch has 7 texts; allowed are 6" in many.json()["error"]["message"]
    assert len(results(batch(keyed, *"abcd"))[0]) == 4
    late = batch(keyed, *"abcd")
    assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(late.headers["retry-after"]) >= 10
    assert batch(keyed, "a").ok


def test_a_batch_has_half_of_what_its_key_may_have_at_once(server, tmp_path):
    """Two of four speak, without end; another batch has the other two, and then there is no place."""
    with running_gateway(server.grpc_url, tmp_path / "log", "--max-concurrent", "4") as gateway:

        def begun(name, number):
            items = [{"input": f"endless {tmp_path / f'{name}-{index}'}"} for index in range(8)]
            body = {"items": items, "answer_format": "ndjson"}
            answer = requests.post(gateway.url + BATCH, json=body, stream=True, timeout=30)
            end = time.monotonic() + 20
            while f"syntheses {number}.0" not in requests.get(gateway.url + "/metrics", timeout=30).text:
                assert time.monotonic() < end
                time.sleep(0.02)
            return answer

        with begun("first", 2) as first:
            assert requests.post(gateway.url + BATCH, json={"items": [{"input": "Hello"}]}, timeout=30).ok
            with begun("second", 4):
                assert batch(gateway, "Hello").status_code == 429
            first.close()
        for name in ("first-0", "first-1", "second-0", "second-1"):
            assert content(tmp_path / name) == "cancelled"
        assert not (tmp_path / "first-2").exists()
        end = time.monotonic() + 20
        while batch(gateway, "Hello").status_code == 429:
            assert time.monotonic() < end
            time.sleep(0.05)


def test_a_client_that_does_not_read_is_given_up(impatient):
    """Its answer fills every buffer on the way."""
    body = json.dumps({"items": [{"input": "large " + "x" * 4_000}] * 6, "answer_format": "ndjson"})
    address = urlsplit(impatient.url)
    head = f"POST {BATCH} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: unread\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert logged(impatient, "unread")["seconds"] > 5


def test_the_texts_have_the_samples_of_the_models_and_leave_with_their_listener(tiny, tmp_path):
    own = {"seed": 7, "refine": False, "max_new_tokens": 24, "voice": "seed-1"}
    texts = ["The library opens at nine.", "At nine.", "No, at ten."]
    with running_gateway(tiny.server.grpc_url, tmp_path / "log") as gateway, TTSClient(tiny.server.grpc_url) as client:
        found, _ = results(batch(gateway, *texts, "😀", **own))
        for text, one in zip(texts, found, strict=False):
            options = {"seed": 7, "skip_refine": True, "max_new_tokens": 24, "speaker": "seed-1"}
            audio = client.synthesize(text, **options).audio
            heard = np.frombuffer(one["audio"], "<i2") / 32767
            assert len(heard) == len(audio)
            np.testing.assert_allclose(heard, np.clip(audio, -1, 1), atol=1e-4)
        assert (found[3]["http_status"], found[3]["param"]) == (400, "input")
        endless = {"input": "This takes long. " * 20, "refine": False, "min_new_tokens": 2_048}
        body = {"items": [endless] * 4}
        with requests.post(gateway.url + BATCH, json=body, timeout=60, stream=True):
            wait_until(tiny.server, lambda engine: engine.sequences_running > 0, 60.0)
        time_to_rest(tiny.server, 10.0)
