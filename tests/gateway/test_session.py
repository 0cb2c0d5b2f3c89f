"""Texts that are still written, over WebSockets, in front of the real models."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import aiohttp
import numpy as np
import pytest
import requests

from gateway import session
from gateway.process import running_gateway
from gateway.protocol import SESSIONS as PATH
from tests.gateway.test_speech import decoded
from tests.metrics import time_to_rest, wait_until

KEY = "a-key-of-the-tests"
TEXT = (
    "The library opens at nine. Dr. Smith came with 3.5 kg of apples! 今天天气真不错，我们去公园吧。\n"
    "Yes. And the end is near"
)
MODEL = {"seed": 7, "refine": False, "max_new_tokens": 14, "min_new_tokens": 10}
PLAIN = {"type": "session.config", "response_format": "pcm", "stream_audio": True, **MODEL}
ENDLESS = PLAIN | {"min_new_tokens": 2_000, "max_new_tokens": 2_048}
LONG = "This sentence takes very long to say. " * 20
WITHIN_S = 10.0  # far above what it takes, so that a busy machine does not decide


@pytest.fixture(scope="module")
def live(tiny, tmp_path_factory):
    with running_gateway(tiny.server.grpc_url, tmp_path_factory.mktemp("live") / "gateway.log") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keyed(tiny, tmp_path_factory):
    """With a key that may have two syntheses at once."""
    log = tmp_path_factory.mktemp("keyed") / "gateway.log"
    with running_gateway(tiny.server.grpc_url, log, "--max-concurrent=2", keys=f"tester={KEY}") as gateway:
        yield gateway


class Socket:
    """A client's end."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self.connection = connection

    async def send(self, kind: str, **values: Any) -> None:
        await self.connection.send_str(json.dumps({"type": kind, **values}))

    async def say(self, pieces: list[str]) -> None:
        for piece in pieces:
            await self.send("input.text", text=piece)
        await self.send("input.done")

    async def receive(self) -> dict[str, Any] | bytes:
        message = await asyncio.wait_for(self.connection.receive(), 60)  # aiohttp's own begins anew with each ping
        assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
        return json.loads(message.data) if message.type is aiohttp.WSMsgType.TEXT else message.data

    async def until(self, kind: str) -> list[dict[str, Any] | bytes]:
        """All that comes up to an event of `kind`."""
        found = [await self.receive()]
        while isinstance(found[-1], bytes) or found[-1]["type"] != kind:
            found.append(await self.receive())
        return found


def run(gateway, talk, **named):
    """What `talk` makes of a connection."""

    async def connected():
        url = gateway.url.replace("http", "ws", 1) + PATH
        async with aiohttp.ClientSession() as client, client.ws_connect(url, **named) as connection:
            return await talk(Socket(connection))

    return asyncio.run(connected())


def spoken(gateway, config, pieces):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(config))
        await socket.say(pieces)
        return await socket.until("session.done")

    return run(gateway, talk)


def cut(text, random_):
    pieces = []
    while text:
        length = random_.choice((1, 3, 5, 20))
        pieces, text = [*pieces, text[:length]], text[length:]
    return pieces


def whole(gateway, text=TEXT, **values):
    body = {"model": "chattts", "input": text, "response_format": "pcm", **MODEL, **values}
    answer = requests.post(gateway.url + "/v1/audio/speech", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<i2").astype(int)


def audio_of(events):
    return np.frombuffer(b"".join(event for event in events if isinstance(event, bytes)), "<i2").astype(int)


def kinds_of(events):
    return ["audio" if isinstance(event, bytes) else event["type"] for event in events]


@pytest.mark.parametrize("seed", range(4))
def test_a_text_in_pieces_sounds_like_the_whole(live, seed):
    events = spoken(live, PLAIN, cut(TEXT, random.Random(seed)))
    expected = whole(live)
    heard = audio_of(events)
    assert len(heard) == len(expected)
    assert np.abs(heard - expected).max() <= 4  # of 32,767: 1e-4, and rounding


def test_each_sentence_has_its_header_its_audio_and_its_end(live):
    events = spoken(live, PLAIN | {"stream_audio": False, "response_format": "wav"}, [TEXT])
    assert kinds_of(events) == ["audio.start", "audio", "audio.done"] * 4 + ["session.done"]
    samples = 0
    for index in range(4):
        start, audio, done = events[3 * index : 3 * index + 3]
        place = {"utterance_index": 0, "sentence_index": index}
        assert start == {
            "type": "audio.start",
            **place,
            "sentence_text": start["sentence_text"],
            "format": "wav",
            "sample_rate": 24_000,
        }
        assert start["sentence_text"]
        assert done == {"type": "audio.done", **place, "total_bytes": len(audio), "error": False}
        samples += len(decoded(audio, "wav")[0])
    assert events[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 4, "seed": "7"}
    assert samples == len(whole(live))


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
@pytest.mark.parametrize("streams", [False, True])
def test_each_sentence_is_a_file_of_its_own_in_every_format(live, name, streams):
    events = spoken(live, PLAIN | {"stream_audio": streams, "response_format": name}, ["One sentence is enough here."])
    audio = b"".join(event for event in events if isinstance(event, bytes))
    assert len(decoded(audio, name)[0])
    assert events[-2]["total_bytes"] == len(audio)


def test_a_sentence_is_heard_while_the_text_is_written(live):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.send("input.text", text="The first sentence is here. And the second one")
        first = await socket.until("audio.done")
        await socket.send("input.text", text=" follows.")
        await socket.send("input.done")
        return first, await socket.until("session.done")

    first, rest = run(live, talk)
    assert first[0]["sentence_text"] == "The first sentence is here."
    assert rest[0]["sentence_text"] == "And the second one follows."


def test_what_is_left_out_of_a_text_and_what_is_ignored_is_told_at_its_end(live):
    text, ignored = "The library opens at nine. Привет is no word of ours.", {"instructions": "Whisper."}
    done = spoken(live, PLAIN | ignored, cut(text, random.Random(1)))[-1]
    body = {"model": "chattts", "input": text, **MODEL, **ignored}
    headers = requests.post(live.url + "/v1/audio/speech", json=body, timeout=120).headers
    assert (done["warning"], done["ignored"]) == (headers["x-warning"], [headers["x-ignored"]])


def test_a_connection_takes_one_text_after_the_other_also_ahead(live):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.say(["This is the first."])
        await socket.send("session.config", **(PLAIN | {"seed": 8}))
        await socket.say(["This is the second."])
        await socket.say([])
        await socket.say(["😀"])
        found = [await socket.until("session.done") for _ in range(4)]
        await socket.send("session.close")
        message = await asyncio.wait_for(socket.connection.receive(), 60)
        return found, message.type, socket.connection.close_code

    (first, second, third, fourth), kind, code = run(live, talk)
    assert [events[-1]["utterance_index"] for events in (first, second, third, fourth)] == [0, 1, 2, 3]
    assert [events[-1]["total_sentences"] for events in (first, second, third, fourth)] == [1, 1, 0, 0]
    assert (first[-1]["seed"], second[-1]["seed"]) == ("7", "8")
    assert (kind, code) == (aiohttp.WSMsgType.CLOSE, 1000)


def test_64_clients_at_once_lose_nothing(live):
    expected = whole(live)

    async def one(client, number):
        async with client.ws_connect(live.url.replace("http", "ws", 1) + PATH) as connection:
            socket = Socket(connection)
            await connection.send_str(json.dumps(PLAIN))
            saying = asyncio.create_task(socket.say(cut(TEXT, random.Random(number))))
            events = await socket.until("session.done")
            await saying
            return events

    async def all_of_them():
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            return await asyncio.gather(*(one(client, number) for number in range(64)))

    for events in asyncio.run(all_of_them()):
        assert events[-1]["total_sentences"] == 4
        heard = audio_of(events)
        assert len(heard) == len(expected)
        assert np.abs(heard - expected).max() <= 4


@pytest.mark.parametrize("pieces", [["The first sentence"], [LONG]])
def test_one_that_leaves_frees_its_slot(live, tiny, pieces):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(ENDLESS))
        for piece in pieces:
            await socket.send("input.text", text=piece)
        if pieces == [LONG]:
            await socket.receive()
        await asyncio.to_thread(wait_until, tiny.server, lambda engine: engine.requests_open == 1, WITHIN_S)

    run(live, talk)
    time_to_rest(tiny.server, WITHIN_S)


def test_one_that_closes_amid_its_text_frees_its_slot(live, tiny):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(ENDLESS))
        await socket.send("input.text", text=LONG)
        await socket.receive()
        await socket.send("session.close")
        while (message := await asyncio.wait_for(socket.connection.receive(), 60)).type is not aiohttp.WSMsgType.CLOSE:
            pass
        return message.data

    assert run(live, talk) == 1000
    time_to_rest(tiny.server, WITHIN_S)


def test_pings_are_answered(live):
    async def talk(socket):
        await socket.connection.ping(b"are you there")
        return await asyncio.wait_for(socket.connection.receive(), 60)

    message = run(live, talk, autoping=False)
    assert (message.type, message.data) == (aiohttp.WSMsgType.PONG, b"are you there")


WRONG = [
    ("no JSON", "the message is no JSON text", None),
    (
        {"type": "hello"},
        "'type' is 'hello'; allowed is one of session.config, input.text, input.done, session.close",
        "type",
    ),
    ({"type": "input.text"}, "'text' is None; allowed is a string", "text"),
    ({"type": "input.text", "text": "x"}, "the first message is 'input.text'; allowed is session.config", None),
    (PLAIN | {"speed": 9}, "'speed': Input should be less than or equal to 4; it is 9", "speed"),
    (PLAIN | {"model": "other"}, "the model 'other' does not exist", "model"),
    (PLAIN | {"task_type": "Base"}, "'task_type' is no field of this API", "task_type"),
    (PLAIN | {"stream": False}, "'stream' is no field of a session; leave it out", "stream"),
    (PLAIN | {"ssml": True}, "'ssml' is no field of a session; leave it out", "ssml"),
    (PLAIN | {"voice": "clone_x"}, "'voice'", "voice"),
]


@pytest.mark.parametrize(("message", "words", "param"), WRONG)
def test_a_wrong_message_is_an_error_in_words_and_the_session_goes_on(live, message, words, param):
    async def talk(socket):
        await socket.connection.send_str(message if isinstance(message, str) else json.dumps(message))
        error = await socket.receive()
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.say(["It goes on."])
        return error, await socket.until("session.done")

    error, events = run(live, talk)
    assert error["type"] == "error"
    assert error["message"].startswith(words), error
    assert error["param"] == param
    assert events[-1]["total_sentences"] == 1


@pytest.mark.parametrize(
    ("config", "pieces", "words"),
    [
        (PLAIN | {"top_k": 0}, ["Hello ", "there."], "'top_k' is 0"),
        (PLAIN | {"voice": "Nobody"}, ["Hello ", "there."], "'voice' is 'Nobody'"),
        (PLAIN, ["Hello [Stts] there.\n", "And more."], "'input' is '[Stts]'"),
        (PLAIN | {"max_wait_ms": 0}, ["Hello."], "'max_wait_ms' is 0"),
    ],
)
def test_a_wrong_text_ends_and_the_next_is_spoken(live, config, pieces, words):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(config))
        await socket.say(pieces)
        events = await socket.until("session.done")
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.say(["It goes on."])
        return events, await socket.until("session.done")

    failed, spoken_events = run(live, talk)
    assert kinds_of(failed) == ["error", "session.done"]
    assert failed[0]["message"].startswith(words), failed
    assert failed[0]["status"] == 400
    assert spoken_events[-1]["total_sentences"] == 1


def test_a_configuration_amid_a_text_is_refused_and_the_text_goes_on(live):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.send("input.text", text="It goes")
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.say([" on."])
        return await socket.until("session.done")

    events = run(live, talk)
    assert events[0]["message"] == "session.config comes amid a text; allowed is behind input.done"
    assert events[1]["sentence_text"] == "It goes on."


def test_too_much_text_ahead_is_told_and_closes(live, tiny):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(ENDLESS))
        await socket.say([LONG])
        while True:
            message = await asyncio.wait_for(socket.connection.receive(), 60)
            if message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "audio.start":
                await socket.say(["word " * 4_000, "x"])
            elif message.type is aiohttp.WSMsgType.TEXT and json.loads(message.data)["type"] == "error":
                error = json.loads(message.data)
            elif message.type is aiohttp.WSMsgType.CLOSE:
                return error, message.data

    error, code = run(live, talk)
    assert error["message"] == "too much text waits to be spoken; allowed are 20,000 characters in 1,000 messages"
    assert code == session.TOO_MUCH
    time_to_rest(tiny.server, WITHIN_S)


def test_a_key_is_wanted_and_its_limit_holds(keyed):
    def refused(**headers):
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            run(keyed, None, headers=headers)
        assert caught.value.headers["x-request-id"]
        return caught.value.status

    assert refused() == refused(Authorization="Bearer of another key") == 401
    headers = {"Authorization": f"Bearer {KEY}"}

    async def talk():
        url = keyed.url.replace("http", "ws", 1) + PATH
        async with aiohttp.ClientSession(headers=headers) as client:
            sockets = [Socket(await client.ws_connect(url)) for _ in range(3)]
            for socket in sockets[:2]:
                await socket.connection.send_str(json.dumps(PLAIN))
                await socket.send("input.text", text="The first sentence is here. And the second one is")
                await socket.until("audio.done")
            await sockets[2].connection.send_str(json.dumps(PLAIN))
            await sockets[2].say(["Hello."])
            return (await sockets[2].until("session.done"))[0]

    error = asyncio.run(talk())
    assert error["status"] == 429
    assert error["message"] == "2 syntheses of this key are running; allowed are 2"


@pytest.mark.parametrize(
    ("headers", "status"), [({"Origin": "https://example.org"}, 403), ({"Host": "example.org"}, 400)]
)
def test_a_page_of_another_server_may_not_open_one(live, headers, status):
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        run(live, None, headers=headers)
    assert caught.value.status == status


def test_a_connection_is_a_line_of_the_log(live):
    async def talk(socket):
        await socket.connection.send_str(json.dumps(PLAIN))
        await socket.say(["Hello ", "there."])
        await socket.until("session.done")

    run(live, talk, headers={"x-request-id": "a-socket"})
    while True:  # it is written when the connection has ended
        lines = [json.loads(line) for line in live.log.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line.get("request_id") == "a-socket"]
        if found:
            break
        time.sleep(0.01)
    assert (found[0]["path"], found[0]["status"], found[0]["characters"]) == (PATH, 101, 12)
    assert not any("WebSocket" in line["message"] for line in lines)
