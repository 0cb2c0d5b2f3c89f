"""More requests than the server takes: each is answered once, with its own speech or with a refusal that says why."""

import asyncio
import http.client
import json
import re
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
import tritonclient.grpc
from chattts_client import AsyncTTSClient, SynthesisOptions
from chattts_client.errors import DeadlineExceededError, OverloadedError, TTSError
from tritonclient.utils import InferenceServerException

from bench.repository import with_settings
from chattts_serving.launcher.probe import check
from chattts_serving.launcher.running import running_server
from tests.metrics import time_to_rest, wait_until
from tests.streams import StreamError, open_stream, speak, tensors

ROOM = 4
SETTINGS = {"max_requests": ROOM, "max_batch_requests": ROOM // 2}
BURST = 15 * ROOM
MANY = 1_000
ENTRANCES = ("grpc", "grpc stream", "http", "http stream")
REFUSAL = rf"overloaded: \d+ requests are open, of {ROOM} allowed; try again later$"
WAIT_S = 60.0  # for an answer, on a busy machine
SPOKEN = {"text": "Hello there, how are you?", "skip_refine": True, "min_new_tokens": 150, "max_new_tokens": 150}
ENDLESS = {"text": "This sentence takes very long to say. " * 8, "skip_refine": True, "min_new_tokens": 2_048}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The tiny checkpoint with room for ROOM requests."""
    repository = with_settings(tiny.repository, tmp_path_factory.mktemp("overload") / "models", **SETTINGS)
    with running_server(repository, log_path=repository.parent / "server.log") as running:
        yield running


@pytest.fixture
def full(server):
    """All the room is taken until the test ends; then the server is at rest again."""
    with ExitStack() as streams:
        for seed in range(ROOM):
            streams.enter_context(open_stream(server, "grpc", **ENDLESS, seed=seed)).next()
        yield server
    time_to_rest(server)


@pytest.fixture(scope="module")
def alone(server):
    """What each seed of a burst says when nobody else is there."""
    return [speak(server.grpc_url, **SPOKEN, seed=seed)["audio"] for seed in range(ROOM)]


def burst(server, entrance, count, timeout_s=WAIT_S, **inputs):
    """`count` requests at once: the samples or the error that each was answered with."""
    protocol, _, stream = entrance.partition(" ")
    text = inputs.pop("text")

    async def one(client, number):
        options = SynthesisOptions(**{"seed": number % ROOM} | inputs)
        try:
            if not stream:
                return (await client.synthesize(text, options)).audio
            return np.concatenate([chunk.audio async for chunk in client.stream(text, options)])
        except TTSError as error:
            return error

    async def run():
        url = getattr(server, f"{protocol}_url")
        async with AsyncTTSClient(url, protocol, timeout=timeout_s) as client:
            return await asyncio.gather(*(one(client, number) for number in range(count)))

    return asyncio.run(run())


def kinds(outcomes):
    return Counter(type(outcome) for outcome in outcomes)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_burst_is_answered_with_what_each_gets_alone_or_refused(server, alone, entrance):
    outcomes = burst(server, entrance, BURST, **SPOKEN)
    assert set(kinds(outcomes)) == {np.ndarray, OverloadedError}
    assert kinds(outcomes)[np.ndarray] >= ROOM
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, OverloadedError):
            assert re.search(REFUSAL, str(outcome))
        else:
            assert outcome.shape == alone[number % ROOM].shape
            np.testing.assert_allclose(outcome, alone[number % ROOM], atol=1e-4, rtol=0)
    time_to_rest(server)


@pytest.mark.parametrize("entrance", ["grpc", "http"])
def test_of_a_thousand_at_once_none_is_left_without_an_answer(server, entrance):
    """Of refusals that came all at once Triton lost many over HTTP."""
    outcomes = burst(server, entrance, MANY, **SPOKEN)
    assert set(kinds(outcomes)) == {np.ndarray, OverloadedError}
    time_to_rest(server)


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_full_server_refuses_all(full, entrance):
    outcomes = burst(full, entrance, BURST, **SPOKEN)
    assert kinds(outcomes) == {OverloadedError: BURST}
    wait_until(full, lambda engine: engine.requests_open == ROOM, WAIT_S)


def test_a_probe_takes_nobodys_place(server, alone):
    """A launcher asks every ten seconds; what comes just then has to find the last place."""
    with ExitStack() as streams:
        for seed in range(1, ROOM):
            streams.enter_context(open_stream(server, "grpc", **ENDLESS, seed=seed)).next()
        for _ in range(3):
            check(server.http_url, WAIT_S)
            assert speak(server.grpc_url, **SPOKEN, seed=0)["audio"].shape == alone[0].shape
            wait_until(server, lambda engine: engine.requests_open == ROOM - 1, WAIT_S)
    time_to_rest(server)


def test_a_refusal_is_unavailable_over_grpc(full):
    client = tritonclient.grpc.InferenceServerClient(full.grpc_url)
    with client, pytest.raises(InferenceServerException) as caught:
        client.infer("chattts", tensors(SPOKEN), client_timeout=WAIT_S)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert re.fullmatch(f"in ensemble 'chattts', {REFUSAL}", caught.value.message())


def test_a_refusal_is_503_over_http(full):
    names = {str: "BYTES", bool: "BOOL", int: "INT32"}
    inputs = [
        {"name": name, "shape": [1, 1], "datatype": names[type(value)], "data": [value]}
        for name, value in SPOKEN.items()
    ]
    connection = http.client.HTTPConnection(full.http_url, timeout=WAIT_S)
    connection.request("POST", "/v2/models/chattts/infer", json.dumps({"inputs": inputs}))
    response = connection.getresponse()
    assert response.status == 503
    assert re.fullmatch(f"in ensemble 'chattts', {REFUSAL}", json.loads(response.read())["error"])
    connection.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_stream_is_refused_in_words(full, protocol):
    """Triton sends errors of streams without a status."""
    with open_stream(full, protocol, **SPOKEN) as stream, pytest.raises(StreamError) as caught:
        stream.next()
    assert re.fullmatch(REFUSAL, str(caught.value))


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_deadlines_are_kept_under_overload_and_leave_nothing_open(server, entrance):
    outcomes = burst(server, entrance, BURST, **ENDLESS, deadline_ms=700)
    assert set(kinds(outcomes)) <= {DeadlineExceededError, OverloadedError}
    assert kinds(outcomes)[DeadlineExceededError] >= 1
    assert all(re.search(f"before the audio was complete$|{REFUSAL}", str(one)) for one in outcomes)
    time_to_rest(server)
    (answer,) = burst(server, entrance, 1, **SPOKEN)
    assert isinstance(answer, np.ndarray)


def test_batch_requests_leave_room_for_interactive_ones(server, alone):
    with ExitStack() as streams:
        for seed in range(ROOM // 2):
            streams.enter_context(open_stream(server, "grpc", **ENDLESS, seed=seed, priority="batch")).next()
        refused = burst(server, "grpc", BURST, **SPOKEN, priority="batch")
        answered = burst(server, "grpc", ROOM // 2, **SPOKEN)
    assert kinds(refused) == {OverloadedError: BURST}
    assert kinds(answered) == {np.ndarray: ROOM // 2}
    for audio, expected in zip(answered, alone, strict=False):
        np.testing.assert_allclose(audio, expected, atol=1e-4, rtol=0)
    time_to_rest(server)
