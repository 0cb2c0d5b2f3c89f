"""The four clients against a real tritonserver whose model tells what arrived."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from chattts_client import (
    AsyncTTSClient,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    Sentence,
    ServerError,
    SynthesisOptions,
    TTSClient,
    TTSError,
    Voice,
    Word,
)

from tests.client.conftest import FLAVOURS

ALL_OPTIONS = {
    "turns": [{"text": "x", "speaker": "slt"}],
    "speaker": "蘁淰敥欀",
    "speaker_sample": "codes",
    "sample_text": "what I said 😀",
    "seed": 2**62 + 1,
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 7,
    "repetition_penalty": 1.5,
    "min_new_tokens": 3,
    "max_new_tokens": 99,
    "skip_refine": True,
    "refine_only": False,
    "normalize": False,
    "lexicon": {"nginx": "engine x", "重庆": "虫庆"},
    "ssml": True,
    "strict_tags": True,
    "redraw_long": True,
    "refine_prompt": "[oral_2]",
    "prompt": "",
    "language": "zh",
    "deadline_ms": 12_345,
    "priority": "batch",
    "refine_temperature": 0.75,
    "refine_max_new_tokens": 11,
}
# What goes as JSON.
AS_SENT = {
    name: json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else value
    for name, value in ALL_OPTIONS.items()
}
NUMPY_TYPES = {str: "object", int: "int32", float: "float32", bool: "bool"}


def arrived(speech) -> dict:
    return json.loads(speech.refined_text)


def test_no_client_asks_the_proxy_of_the_environment(server, flavour, behind_a_proxy):
    assert flavour.call(flavour.url(server), "synthesize", "Hello", seed=5).seed == 5
    assert flavour.stream(flavour.url(server), "Hello")


@pytest.mark.parametrize("url", ["127.0.0.1", "http://127.0.0.1:8001", "::1:8001", "[::1]", "a:0", "a:70000", ":8001"])
def test_what_is_no_address_is_refused_before_connecting(url, flavour):
    with pytest.raises(InvalidInputError, match=r"url.*HOST:PORT, such as .*IPv6 address stands in brackets"):
        flavour.call(url, "synthesize", "Hello")


@pytest.mark.parametrize("traceparent", ["no", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "a\r\nb: c"])
def test_what_is_no_traceparent_is_refused_before_connecting(traceparent, refusing_url, flavour):
    for method in ("synthesize", "stream"):
        with pytest.raises(InvalidInputError, match="traceparent"):
            flavour.call(refusing_url, method, "Hello", traceparent=traceparent)


def test_all_clients_hear_the_same(server):
    heard = [flavour.call(flavour.url(server), "synthesize", "Hello 你好", seed=5) for flavour in FLAVOURS.values()]
    first = heard[0]
    assert (first.sample_rate, first.seed, first.num_tokens) == (24_000, 5, 8)
    assert first.audio.dtype == np.float32
    assert first.audio.shape == (8 * 512,)
    assert first.duration == pytest.approx(8 * 512 / 24_000)
    for other in heard[1:]:
        np.testing.assert_array_equal(other.audio, first.audio)
        assert replace(other, audio=None).__dict__ == replace(first, audio=None).__dict__


def test_sentences_come_with_their_times(server, flavour):
    speech = flavour.call(flavour.url(server), "synthesize", "Hello\n你好", max_new_tokens=4)
    assert speech.sentences == (
        Sentence("Hello", 0.0, pytest.approx(5 * 512 / 24_000), 5, "length"),
        Sentence("你好", pytest.approx(6 * 512 / 24_000), pytest.approx(8 * 512 / 24_000), 2, "stop"),
    )
    assert [sentence.is_cut for sentence in speech.sentences] == [True, False]


def test_words_come_with_their_times_where_they_are_asked_for(server, flavour):
    speech = flavour.call(flavour.url(server), "synthesize", "Hello\n你好", word_times=True)
    end = pytest.approx(5 * 512 / 24_000)
    assert speech.words[0] == Word("hello", 0.0, end, sentence=0, confidence=0.5)
    assert [word.sentence for word in speech.words] == [0, 1]
    assert flavour.call(flavour.url(server), "synthesize", "Hello").words == ()


def test_the_voice_that_was_used_comes_back(server, flavour):
    assert flavour.call(flavour.url(server), "synthesize", "x").speaker == "蘁淰"


def test_refined_text_comes_without_audio(server, flavour):
    speech = flavour.call(flavour.url(server), "synthesize", "Hello", refine_only=True)
    assert arrived(speech)["refine_only"]["value"] is True
    assert (speech.audio.shape, speech.audio.dtype, speech.num_tokens, speech.sentences) == ((0,), np.float32, 0, ())
    assert speech.duration == 0


def test_voices_come_with_their_descriptions(server, flavour):
    voices = flavour.call(flavour.url(server), "voices")
    assert voices == [Voice("default", ""), Voice("warm_2", "warm, 低沉")]


def test_a_recording_arrives_whole_at_its_sample_rate(server, flavour):
    audio = np.linspace(-1, 0.5, 16_000)
    seen = json.loads(flavour.call(flavour.url(server), "clone", audio, 16_000))
    assert (seen["shapes"], seen["sample_rate"]) == ([[1, 16_000], [1, 1]], 16_000)
    assert seen["sum"] == pytest.approx(audio.sum(), rel=1e-5)


def test_the_server_has_the_last_word_on_a_recording(server, flavour):
    with pytest.raises(InvalidInputError, match="input 'sample_rate' is 4000; allowed is 8000 or more"):
        flavour.call(flavour.url(server), "clone", np.zeros(100), 4_000)


def test_a_recording_that_cannot_be_sent_is_refused_before_connecting(refusing_url, flavour):
    with pytest.raises(InvalidInputError, match="input 'audio' is"):
        flavour.call(refusing_url, "clone", np.zeros(0), 24_000)


def test_every_option_arrives_with_its_value_and_type(server, flavour):
    seen = arrived(flavour.call(flavour.url(server), "synthesize", "x", **ALL_OPTIONS))
    assert {name: entry["value"] for name, entry in seen.items()} == {"text": "x", **AS_SENT}
    expected = {name: NUMPY_TYPES[type(value)] for name, value in AS_SENT.items()} | {"seed": "int64"}
    assert {name: entry["datatype"] for name, entry in seen.items()} == {"text": "object", **expected}
    assert all(entry["shape"] == [1, 1] for entry in seen.values())


def test_an_options_object_arrives_too(server, flavour):
    seen = arrived(flavour.call(flavour.url(server), "synthesize", "x", SynthesisOptions(top_k=9), seed=1))
    assert (seen["top_k"]["value"], seen["seed"]["value"]) == (9, 1)


def test_options_that_are_not_given_do_not_arrive(server, flavour):
    settings = {"timeout": None}
    assert list(arrived(flavour.call(flavour.url(server), "synthesize", "x", settings=settings))) == ["text"]


def test_the_timeout_arrives_as_the_deadline(server, flavour):
    seen = arrived(flavour.call(flavour.url(server), "synthesize", "x", settings={"timeout": 7.5}))
    assert seen["deadline_ms"]["value"] == 7_500


def test_a_request_has_the_id_that_it_was_given(server, flavour):
    speech = flavour.call(flavour.url(server), "synthesize", "Hello", request_id="one 1")
    assert arrived(speech)["request_id"] == "one 1"
    assert "request_id" not in arrived(flavour.call(flavour.url(server), "synthesize", "Hello"))


def test_the_servers_seed_comes_back_with_64_bits(server, flavour):
    assert flavour.call(flavour.url(server), "synthesize", "x").seed == 4_294_967_311


def test_ten_minutes_of_audio_pass(server, flavour):
    """28 MB in one message; gRPC's own limit is 4 MB."""
    text = "a" * 14_000
    assert flavour.call(flavour.url(server), "synthesize", text).audio.shape == (14_000 * 512,)


def test_the_audio_may_be_changed(server, flavour):
    audio = flavour.call(flavour.url(server), "synthesize", "x").audio
    audio *= 0.5
    assert audio.flags.owndata


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("INVALID_ARG input 'top_p' is 7.0; allowed is a number above 0 to 1", InvalidInputError),
        ("UNAVAILABLE 256 requests are waiting, which is the limit", OverloadedError),
        ("UNAVAILABLE deadline exceeded: 50 ms", DeadlineExceededError),
        ("UNAVAILABLE in ensemble 'chattts', deadline exceeded: 50 ms", DeadlineExceededError),
        ("CANCELLED in ensemble 'chattts', deadline exceeded: 50 ms", DeadlineExceededError),
        ("INTERNAL step 12 failed", ServerError),
        ("UNSUPPORTED no such thing", ServerError),
    ],
)
def test_each_status_has_its_error_and_keeps_the_message(server, flavour, answer, error):
    with pytest.raises(TTSError) as caught:
        flavour.call(flavour.url(server), "synthesize", f"fail {answer}")
    assert type(caught.value) is error
    assert str(caught.value).endswith(answer.split(" ", 1)[1])


def test_a_server_error_tells_its_status(server):
    statuses = {}
    for name, flavour in FLAVOURS.items():
        with pytest.raises(ServerError) as caught:
            flavour.call(flavour.url(server), "synthesize", "fail INTERNAL boom")
        statuses[name] = caught.value.status
    assert statuses == {"grpc": "INTERNAL", "http": "500", "grpc-async": "INTERNAL", "http-async": "500"}


def test_an_unknown_model_is_a_server_error(server, flavour):
    with pytest.raises(ServerError, match="'nobody' is not found"):
        flavour.call(flavour.url(server), "synthesize", "x", settings={"model": "nobody"})


def test_an_answer_that_takes_too_long_is_a_timeout(server, flavour):
    with pytest.raises(DeadlineExceededError, match="no answer from 127") as caught:
        flavour.call(flavour.url(server), "synthesize", "hang 2", settings={"timeout": 0.25})
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("name", ["grpc", "http"])
def test_a_client_works_on_after_a_timeout(server, name):
    with TTSClient(FLAVOURS[name].url(server), FLAVOURS[name].protocol, timeout=1) as client:
        with pytest.raises(DeadlineExceededError):
            client.synthesize("hang 2")
        assert client.synthesize("x").num_tokens == 1


def test_a_silent_peer_is_a_timeout(silent_url, flavour):
    with pytest.raises(DeadlineExceededError):
        flavour.call(silent_url, "synthesize", "x", settings={"timeout": 0.25})


def test_a_refused_connection_says_where(refusing_url, flavour):
    with pytest.raises(ConnectionFailedError, match=f"no connection to {refusing_url}") as caught:
        flavour.call(refusing_url, "synthesize", "x")
    assert isinstance(caught.value, ConnectionError)


def test_an_unknown_host_is_a_connection_that_failed(flavour):
    with pytest.raises(ConnectionFailedError):
        flavour.call("nobody.invalid:8001", "synthesize", "x")


def test_the_other_protocols_port_is_a_connection_that_failed(server, flavour):
    other = server.http_url if flavour.protocol == "grpc" else server.grpc_url
    with pytest.raises(ConnectionFailedError):
        flavour.call(other, "synthesize", "x", settings={"timeout": 20})


def test_a_value_that_cannot_be_sent_is_refused_before_connecting(refusing_url, flavour):
    with pytest.raises(InvalidInputError, match="input 'top_k' is"):
        flavour.call(refusing_url, "synthesize", "x", top_k=2**31)


def test_a_served_model_is_ready(server, flavour):
    assert flavour.call(flavour.url(server), "is_ready") is True
    flavour.call(flavour.url(server), "wait_ready", 5)


def test_an_unknown_model_is_not_ready(server, flavour):
    assert flavour.call(flavour.url(server), "is_ready", settings={"model": "nobody"}) is False


def test_no_server_is_not_ready(refusing_url, flavour):
    assert flavour.call(refusing_url, "is_ready") is False


def test_a_silent_peer_is_not_ready_after_its_time(silent_url, flavour):
    assert flavour.call(silent_url, "is_ready", 0.25) is False


def test_waiting_for_ready_ends(refusing_url, flavour):
    with pytest.raises(DeadlineExceededError, match=f"model 'chattts' at {refusing_url} is not ready after 0.3 s"):
        flavour.call(refusing_url, "wait_ready", 0.3)


@pytest.mark.parametrize("name", ["grpc-async", "http-async"])
def test_one_async_client_speaks_many_texts_at_once(server, name):
    flavour = FLAVOURS[name]

    async def speak_all() -> list[int]:
        async with AsyncTTSClient(flavour.url(server), flavour.protocol) as client:
            speeches = await asyncio.gather(*(client.synthesize("x" * n, seed=n) for n in range(1, 33)))
        return [speech.seed for speech in speeches if speech.num_tokens == speech.seed]

    assert asyncio.run(speak_all()) == list(range(1, 33))


@pytest.mark.parametrize("name", ["grpc-async", "http-async"])
def test_cancelling_a_task_stays_a_cancellation(server, name):
    flavour = FLAVOURS[name]

    async def cancel() -> None:
        async with AsyncTTSClient(flavour.url(server), flavour.protocol) as client:
            task = asyncio.create_task(client.synthesize("hang 0.5"))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())


@pytest.mark.parametrize(
    ("protocol", "imported"), [("grpc", {"grpc"}), ("http", {"geventhttpclient", "aiohttp"})], ids=["grpc", "http"]
)
def test_the_libraries_of_the_other_protocol_are_not_imported(protocol, imported):
    """They are half of what a command takes before it begins."""
    script = f"""
import sys
from chattts_client import TTSClient
libraries = {{"grpc", "geventhttpclient", "aiohttp"}}
assert not libraries & set(sys.modules)
TTSClient("127.0.0.1:1", "{protocol}").close()
print(*libraries & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == imported
