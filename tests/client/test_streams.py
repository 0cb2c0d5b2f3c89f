"""Streams of the four clients against a real tritonserver whose model tells what arrived and what was cancelled."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from socket import create_server

import grpc
import numpy as np
import pytest
from chattts_client import (
    AsyncTTSClient,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    SynthesisOptions,
    TTSClient,
    TTSError,
    joined,
)
from tritonclient.grpc import service_pb2, service_pb2_grpc

from chattts_serving.launcher.running import running_server
from tests.client.conftest import FAKE_MODEL, FLAVOURS, content
from tests.client.fake_synthesis import CHARACTERS_PER_CHUNK, SAMPLES_PER_CHARACTER
from tests.client.test_client import ALL_OPTIONS, AS_SENT, NUMPY_TYPES

TEXT = "Hello\n你好\nGood bye"  # 17 characters: six chunks
BLOCKING = ["grpc", "http"]
ASYNCHRONOUS = ["grpc-async", "http-async"]


def arrived(chunks) -> dict:
    return json.loads(chunks[0].refined_text)


def test_chunks_come_in_order_and_the_last_says_so(server, flavour):
    chunks = flavour.stream(flavour.url(server), TEXT)
    assert [chunk.index for chunk in chunks] == [0, 1, 2, 3, 4, 5]
    assert [chunk.is_final for chunk in chunks] == [False] * 5 + [True]
    assert [chunk.num_tokens for chunk in chunks] == [3, 3, 3, 3, 3, 2]
    assert all(chunk.audio.shape == (chunk.num_tokens * SAMPLES_PER_CHARACTER,) for chunk in chunks)
    assert all(chunk.audio.dtype == np.float32 for chunk in chunks)


def test_a_stream_has_the_id_that_it_was_given(server, flavour):
    assert arrived(flavour.stream(flavour.url(server), TEXT, request_id="one-1"))["request_id"] == "one-1"


def test_joined_chunks_are_the_whole_answer(server, flavour):
    options = {"seed": 2**62 + 1, "speaker": "蘁", "max_new_tokens": 4}
    spoken = joined(flavour.stream(flavour.url(server), TEXT, **options))
    whole = flavour.call(flavour.url(server), "synthesize", TEXT, **options)
    np.testing.assert_array_equal(spoken.audio, whole.audio)
    assert json.loads(spoken.refined_text).items() >= json.loads(whole.refined_text).items()
    same = {"audio": None, "refined_text": ""}  # a stream's text also tells `mode`
    assert replace(spoken, **same).__dict__ == replace(whole, **same).__dict__
    assert len(spoken.sentences) == 3


def test_every_option_arrives_with_its_value_and_type(server, flavour):
    seen = arrived(flavour.stream(flavour.url(server), "x", mode="low_latency", **ALL_OPTIONS))
    sent = {"text": "x", "mode": "low_latency", **AS_SENT}
    assert {name: entry["value"] for name, entry in seen.items()} == sent
    expected = {name: NUMPY_TYPES[type(value)] for name, value in sent.items()} | {"seed": "int64"}
    assert {name: entry["datatype"] for name, entry in seen.items()} == expected
    assert all(entry["shape"] == [1, 1] for entry in seen.values())


def test_an_options_object_arrives_too(server, flavour):
    seen = arrived(flavour.stream(flavour.url(server), "x", options=SynthesisOptions(top_k=9), seed=1))
    assert (seen["top_k"]["value"], seen["seed"]["value"]) == (9, 1)


def test_without_options_text_mode_and_deadline_arrive(server, flavour):
    seen = arrived(flavour.stream(flavour.url(server), "x", settings={"timeout": 7.5}))
    values = {name: entry["value"] for name, entry in seen.items()}
    assert values == {"text": "x", "mode": "exact", "deadline_ms": 7_500}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities_are_left_to_the_server(server, flavour, value):
    assert str(arrived(flavour.stream(flavour.url(server), "x", top_p=value))["top_p"]["value"]) == str(value)


def test_a_chunk_of_40_seconds_passes(server, flavour):
    (chunk,) = flavour.stream(flavour.url(server), "large " + "a" * 1_900)
    assert chunk.audio.shape == (1_906 * SAMPLES_PER_CHARACTER,)


def test_a_last_chunk_without_samples_passes(server, flavour):
    (chunk,) = flavour.stream(flavour.url(server), "silence")
    assert (chunk.audio.shape, chunk.num_tokens, chunk.is_final) == ((0,), 0, True)


def test_the_audio_may_be_changed(server, flavour):
    for chunk in flavour.stream(flavour.url(server), "x"):
        chunk.audio[:] *= 0.5
        assert chunk.audio.flags.owndata


@pytest.mark.parametrize("command", ["fail", "break"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("INVALID_ARG input 'top_p' is 7.0; allowed is a number above 0 to 1", InvalidInputError),
        ("UNAVAILABLE 256 requests are open, the most allowed; try again later", OverloadedError),
        ("CANCELLED deadline exceeded before the audio was complete", DeadlineExceededError),
        ("INTERNAL step 12 failed", ServerError),
    ],
)
def test_an_error_keeps_its_kind_and_message_at_the_start_and_in_the_middle(server, flavour, command, answer, error):
    chunks = []
    with pytest.raises(TTSError) as caught:
        flavour.stream(flavour.url(server), f"{command} {answer}", into=chunks)
    assert type(caught.value) is error
    assert str(caught.value).endswith(answer.split(" ", 1)[1])
    assert len(chunks) == (command == "break")


def test_an_unknown_model_is_a_server_error(server, flavour):
    with pytest.raises(ServerError, match="'nobody' is not found"):
        flavour.stream(flavour.url(server), "x", settings={"stream_model": "nobody"})


def test_a_stream_without_a_last_chunk_is_a_server_error(server, flavour):
    chunks = []
    with pytest.raises(ServerError, match="ended before its last chunk"):
        flavour.stream(flavour.url(server), "unfinished", into=chunks)
    assert len(chunks) == math.ceil(len("unfinished") / CHARACTERS_PER_CHUNK)


def test_a_stream_that_takes_too_long_is_a_timeout_and_cancelled(server, flavour, tmp_path):
    chunks = []
    with pytest.raises(DeadlineExceededError, match="no answer from 127"):
        flavour.stream(flavour.url(server), f"endless {tmp_path}/seen", settings={"timeout": 0.5}, into=chunks)
    assert chunks
    assert content(tmp_path / "seen") == "cancelled"


def test_a_first_chunk_that_takes_too_long_is_a_timeout(server, flavour):
    with pytest.raises(DeadlineExceededError, match="no answer from 127"):
        flavour.stream(flavour.url(server), "hang 1", settings={"timeout": 0.25})


def test_a_silent_peer_is_a_timeout(silent_url, flavour):
    with pytest.raises(DeadlineExceededError):
        flavour.stream(silent_url, "x", settings={"timeout": 0.25})


def test_a_refused_connection_says_where(refusing_url, flavour):
    with pytest.raises(ConnectionFailedError, match=f"no connection to {refusing_url}"):
        flavour.stream(refusing_url, "x")


def test_the_other_protocols_port_is_a_connection_that_failed(server, flavour):
    other = server.http_url if flavour.protocol == "grpc" else server.grpc_url
    with pytest.raises(ConnectionFailedError):
        flavour.stream(other, "x", settings={"timeout": 20})


def test_a_value_that_cannot_be_sent_is_refused_at_the_call(refusing_url):
    for kind in (TTSClient, AsyncTTSClient):
        with pytest.raises(InvalidInputError, match="input 'top_k' is"):
            kind(refusing_url).stream("x", top_k=2**31)


def test_a_server_that_dies_breaks_every_stream(tmp_path):
    """Each flavour waits for a chunk when tritonserver is killed."""
    all_started = threading.Barrier(len(FLAVOURS) + 1)

    class Started(list):
        def append(self, chunk):
            super().append(chunk)
            if len(self) == 1:
                all_started.wait(30)

    with running_server(FAKE_MODEL, log_path=tmp_path / "log") as server, ThreadPoolExecutor() as pool:
        streams = [
            pool.submit(flavour.stream, flavour.url(server), f"endless {tmp_path}/{name}", into=Started())
            for name, flavour in FLAVOURS.items()
        ]
        all_started.wait(30)
        os.kill(server.pid, signal.SIGKILL)
        for stream in streams:
            assert isinstance(stream.exception(30), ConnectionFailedError)


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The address of a peer that answers one request with these bytes and closes."""
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("name", ["http", "http-async"])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\ndata: {", ConnectionFailedError, "no connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ServerError, "before its last chunk"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {}\n\n", ServerError, "has no output"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9\r\n\r\n<p>Oh</p>", ConnectionFailedError, "<p>Oh</p>"),
        (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", ServerError, "302: no message"),
    ],
)
def test_what_is_no_stream_is_an_error(name, answer, error, message):
    with answering(answer) as url, pytest.raises(error, match=message):
        FLAVOURS[name].stream(url, "x", settings={"timeout": 20})


def test_one_blocking_client_streams_to_many_threads_over_grpc(server):
    with TTSClient(server.grpc_url) as client, ThreadPoolExecutor(8) as pool:
        texts = ["x" * n for n in range(1, 33)]
        spoken = list(pool.map(lambda text: joined(list(client.stream(text))), texts))
    assert [speech.num_tokens for speech in spoken] == list(range(1, 33))


@pytest.mark.parametrize("name", BLOCKING)
def test_two_streams_of_one_client_take_turns(server, name):
    with TTSClient(FLAVOURS[name].url(server), name) as client:
        pairs = list(zip(client.stream("a" * 9), client.stream("b" * 9), strict=True))
    assert [(first.index, second.index) for first, second in pairs] == [(0, 0), (1, 1), (2, 2)]
    assert [chunk.num_tokens for pair in pairs for chunk in pair] == [3] * 6


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_one_async_client_streams_many_texts_at_once(server, name):
    flavour = FLAVOURS[name]

    async def speak_all() -> list[int]:
        async with AsyncTTSClient(flavour.url(server), flavour.protocol) as client:

            async def speak(n: int) -> int:
                return joined([chunk async for chunk in client.stream("x" * n)]).num_tokens

            return await asyncio.gather(*map(speak, range(1, 33)))

    assert asyncio.run(speak_all()) == list(range(1, 33))


class Refusing(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Reads nothing of what is sent, and takes a moment to end a stream."""

    def ModelStreamInfer(self, requests, context):  # noqa: N802 - gRPC's name
        yield service_pb2.ModelStreamInferResponse(error_message="out of luck")
        time.sleep(0.3)


def test_a_refusal_that_comes_while_the_text_is_still_sent_is_an_error():
    """Not a cancellation: gRPC cancels a stream whose writing is."""

    async def refused(url):
        async with AsyncTTSClient(url) as client, client.stream("x" * 20_000_000) as stream:
            return [chunk async for chunk in stream]

    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(ServerError, match="out of luck"):
            asyncio.run(refused(f"127.0.0.1:{port}"))
    finally:
        server.stop(None).wait()


# Leaving early. Each client stays open until the model has told, so that closing it is not what cancelled.


@pytest.mark.parametrize("name", BLOCKING)
@pytest.mark.parametrize("num_chunks", [1, 5])
def test_breaking_out_of_the_loop_cancels(server, tmp_path, name, num_chunks):
    with TTSClient(FLAVOURS[name].url(server), name) as client:
        for number, chunk in enumerate(client.stream(f"endless {tmp_path}/seen"), 1):
            assert chunk.num_tokens == CHARACTERS_PER_CHUNK
            if number == num_chunks:
                break
        assert content(tmp_path / "seen") == "cancelled"


@pytest.mark.parametrize("name", BLOCKING)
def test_an_error_in_the_loop_cancels(server, tmp_path, name):
    with TTSClient(FLAVOURS[name].url(server), name) as client:
        with suppress(ZeroDivisionError):
            for chunk in client.stream(f"endless {tmp_path}/seen"):
                chunk.index / 0
        assert content(tmp_path / "seen") == "cancelled"


@pytest.mark.parametrize("name", BLOCKING)
def test_closing_cancels_and_ends_the_iteration(server, tmp_path, name):
    with TTSClient(FLAVOURS[name].url(server), name) as client:
        stream = client.stream(f"endless {tmp_path}/seen")
        next(stream)
        stream.close()
        assert content(tmp_path / "seen") == "cancelled"
        assert list(stream) == []
        stream.close()


@pytest.mark.parametrize("name", BLOCKING)
def test_a_with_block_cancels(server, tmp_path, name):
    with TTSClient(FLAVOURS[name].url(server), name) as client:
        with client.stream(f"endless {tmp_path}/seen") as stream:
            next(stream)
        assert content(tmp_path / "seen") == "cancelled"
        assert client.synthesize("x").num_tokens == 1


@pytest.mark.parametrize("name", BLOCKING)
def test_a_client_streams_on_after_a_cancellation_and_a_timeout(server, tmp_path, name):
    with TTSClient(FLAVOURS[name].url(server), name, timeout=1) as client:
        with client.stream(f"endless {tmp_path}/first") as stream:
            next(stream)
        with pytest.raises(DeadlineExceededError):
            list(client.stream("hang 1.5"))
        assert joined(list(client.stream(TEXT))).num_tokens == len(TEXT)


@pytest.mark.parametrize("name", BLOCKING)
def test_a_stream_that_is_not_begun_closes_too(refusing_url, name):
    with TTSClient(refusing_url, name) as client, client.stream("x") as stream:
        stream.close()
        assert list(stream) == []


def run_async(server, name, coroutine) -> None:
    """Run `coroutine(client)`."""

    async def run() -> None:
        async with AsyncTTSClient(FLAVOURS[name].url(server), FLAVOURS[name].protocol) as client:
            await coroutine(client)

    asyncio.run(run())


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_breaking_out_of_the_async_loop_cancels(server, tmp_path, name):
    async def leave(client) -> None:
        async for _ in client.stream(f"endless {tmp_path}/seen"):
            break
        assert await asyncio.to_thread(content, tmp_path / "seen") == "cancelled"

    run_async(server, name, leave)


@pytest.mark.parametrize("name", ASYNCHRONOUS)
def test_an_async_with_block_cancels(server, tmp_path, name):
    async def leave(client) -> None:
        async with client.stream(f"endless {tmp_path}/seen") as stream:
            await anext(stream)
        assert await asyncio.to_thread(content, tmp_path / "seen") == "cancelled"
        assert [chunk async for chunk in stream] == []
        assert (await client.synthesize("x")).num_tokens == 1

    run_async(server, name, leave)


@pytest.mark.parametrize(
    ("name", "command"), [("grpc-async", "mute"), ("grpc-async", "endless"), ("http-async", "endless")]
)
def test_cancelling_the_task_cancels_the_request(server, tmp_path, name, command):
    """Before the first chunk ("mute") and between two. Over HTTP Triton sees a closed connection when it writes."""

    async def cancel(client) -> None:
        async def listen() -> None:
            async for _ in client.stream(f"{command} {tmp_path}/seen"):
                pass

        task = asyncio.create_task(listen())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(content, tmp_path / "seen") == "cancelled"

    run_async(server, name, cancel)
