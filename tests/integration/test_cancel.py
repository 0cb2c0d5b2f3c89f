"""Callers who go away: whatever they had in the engine is dropped, and nobody else hears of it."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from bench.repository import with_settings
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import running_server
from chattts_serving.speech.windows import ReadingPlan
from tests.integration.test_bad_input import packed_sample
from tests.metrics import scrape, time_to_rest, wait_until
from tests.streams import GrpcStream, HttpStream, StreamError, joined, read_stream, speak, tensors

ROOT = Path(__file__).parent.parent.parent
DROPPED_WITHIN_S = 2.0  # far above what it takes, so that a busy machine does not decide
LEASE_S = 3.0
SETTINGS = {"max_sequences": 4, "lease_s": LEASE_S}
MOST_TOKENS = 112  # of a chunk, in the config.pbtxt of chattts_stream

SPOKEN = {"skip_refine": True, "seed": 1}
ENDLESS = SPOKEN | {"text": "This sentence takes very long to say. " * 20, "min_new_tokens": 2_048}
SHORT = SPOKEN | {"text": "This one is short.", "min_new_tokens": 150, "max_new_tokens": 150}
NEIGHBOUR = SPOKEN | {"text": "One sentence comes first. A second one follows.", "min_new_tokens": 1_500}
NEIGHBOUR |= {"max_new_tokens": 1_500, "seed": 2}
RECORDING = np.random.default_rng(0).integers(0, 625, (4, 1_400)).astype("<u2")  # a prompt of as many tokens
LONG_PROMPT = ENDLESS | {"speaker_sample": packed_sample(RECORDING.shape, RECORDING.tobytes()).item().decode()}


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The tiny checkpoint with room for four sequences, which two neighbours fill."""
    repository = with_settings(tiny.repository, tmp_path_factory.mktemp("cancel") / "models", **SETTINGS)
    with running_server(repository, log_path=repository.parent / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def neighbour_alone(server):
    """What the neighbour says when nobody else is there."""
    return joined(read_stream(server, "grpc", **NEIGHBOUR))


class KilledClient:
    """A process of its own that reads a stream and is killed."""

    SCRIPT = """
import json, sys
from tests.streams import GrpcStream
print("ready", flush=True)
url, inputs = json.loads(sys.stdin.readline())
with GrpcStream(url, inputs) as stream:
    for chunk in stream:
        print(chunk["num_tokens"], flush=True)
"""

    def __init__(self) -> None:
        command = [sys.executable, "-c", self.SCRIPT]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def open(self, server, inputs):
        self._process.stdin.write(json.dumps([server.grpc_url, inputs]) + "\n")
        self._process.stdin.flush()

    def next(self):
        return {"num_tokens": int(self._process.stdout.readline())}

    def cancel(self):
        self._process.kill()
        assert self._process.wait() == -signal.SIGKILL
        self._process.stdin.close()
        self._process.stdout.close()


class Caller:
    """A stream in this process, opened when asked."""

    def __init__(self, stream_type, protocol) -> None:
        self._stream_type, self._protocol = stream_type, protocol

    def open(self, server, inputs):
        self._stream = self._stream_type(getattr(server, f"{self._protocol}_url"), inputs)
        self.next, self.cancel = self._stream.next, self._stream.cancel


CALLERS = {
    "a cancelled gRPC stream": lambda: Caller(GrpcStream, "grpc"),
    "a dropped SSE connection": lambda: Caller(HttpStream, "http"),
    "a killed client": KilledClient,
}


# Triton looks at an HTTP connection again when it has sent the first chunk. Then this request, too, is dropped.
UNNOTICED = ("a dropped SSE connection", "queued")


class Neighbours:
    """Streams beside the one that is cancelled; afterwards each must have heard what it hears alone."""

    def __init__(self, server, number, alone) -> None:
        self.number, self._alone = number, alone
        self._pool = ThreadPoolExecutor(number)
        self._streams = [self._pool.submit(read_stream, server, "grpc", **NEIGHBOUR) for _ in range(number)]
        wait_until(server, lambda engine: engine.sequences_running == 2 * number, within_s=10)

    def check(self):
        for stream in self._streams:
            heard = joined(stream.result())
            assert heard["sentences"] == self._alone["sentences"]
            np.testing.assert_allclose(heard["audio"], self._alone["audio"], atol=1e-4, rtol=0)
        self._pool.shutdown()


def reach_queued(server, caller, before):
    caller.open(server, ENDLESS)
    wait_until(server, lambda engine: engine.sequences_waiting > before.sequences_waiting, within_s=10)


def reach_prefill(server, caller, before):
    """With luck: the first chunk is not there, and no look at the engine sees more."""
    caller.open(server, LONG_PROMPT)
    wait_until(server, lambda engine: engine.requests_open > before.requests_open, within_s=10)


def reach_generation(server, caller, before):
    caller.open(server, ENDLESS)
    caller.next()


def reach_last_chunk(server, caller, before):
    """The chunk that is made now, if it has not been sent yet, is the last one."""
    caller.open(server, SHORT)
    left = SHORT["max_new_tokens"]
    while left > MOST_TOKENS:
        left -= caller.next()["num_tokens"]


STATES = {
    "queued": reach_queued,
    "prefill": reach_prefill,
    "generation": reach_generation,
    "last chunk": reach_last_chunk,
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", CALLERS)
def test_what_a_caller_leaves_behind_is_dropped(server, neighbour_alone, how, state):
    time_to_rest(server)
    caller = CALLERS[how]()
    neighbours = Neighbours(server, 2 if state == "queued" else 1, neighbour_alone)
    STATES[state](server, caller, scrape(server))
    caller.cancel()
    if (how, state) != UNNOTICED:
        wait_until(server, lambda engine: is_dropped(engine, neighbours), DROPPED_WITHIN_S)
    check_nothing_is_left(server, neighbours)


def is_dropped(engine, neighbours):
    return engine.requests_open <= neighbours.number and engine.sequences_waiting == 0


def check_nothing_is_left(server, neighbours):
    neighbours.check()
    time_to_rest(server, DROPPED_WITHIN_S)
    assert speak(server.grpc_url, **SHORT)["num_tokens"] == SHORT["max_new_tokens"]
    log = server.log_path.read_text("utf-8", "replace")
    assert "Traceback" not in log
    assert "never retrieved" not in log


@pytest.mark.parametrize(
    ("state", "inputs", "deadline_ms"),
    [("queued", ENDLESS, 300), ("prefill", LONG_PROMPT, 20), ("generation", ENDLESS, 500)],
)
def test_a_request_past_its_deadline_is_dropped(server, neighbour_alone, state, inputs, deadline_ms):
    time_to_rest(server)
    neighbours = Neighbours(server, 2 if state == "queued" else 1, neighbour_alone)
    with pytest.raises(StreamError, match=r"^deadline exceeded"):
        read_stream(server, "grpc", deadline_ms=deadline_ms, **inputs)
    wait_until(server, lambda engine: engine.requests_open <= neighbours.number, DROPPED_WITHIN_S)
    check_nothing_is_left(server, neighbours)


def test_a_deadline_at_the_last_chunk_leaves_nothing(server, neighbour_alone):
    """It is answered or refused; which, the clock decides."""
    time_to_rest(server)
    neighbours = Neighbours(server, 1, neighbour_alone)
    outcomes = []
    for deadline_ms in range(60, 300, 20):
        try:
            outcomes.append(joined(read_stream(server, "grpc", deadline_ms=deadline_ms, **SHORT))["num_tokens"])
        except StreamError as error:
            outcomes.append(str(error))
        wait_until(server, lambda engine: engine.requests_open <= neighbours.number, DROPPED_WITHIN_S)
    assert set(outcomes) <= {SHORT["max_new_tokens"], "deadline exceeded before the audio was complete"}
    check_nothing_is_left(server, neighbours)


def test_a_reader_that_vanishes_without_a_word_is_given_up_after_its_lease(server):
    time_to_rest(server)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as triton:
        prepared = triton.infer("text_frontend", tensors(ENDLESS))
        names = ("generation", "speaker_embedding")
        opening = {name: prepared.as_numpy(name) for name in names} | {"reading": ReadingPlan((16,), 16).to_json()}
        assert triton.infer("gpt_decoder", tensors({"stream_id": "vanishing"} | opening)).as_numpy("chunk").size
        wait_until(server, lambda engine: engine.requests_open == 1, DROPPED_WITHIN_S)
        waited_s = time_to_rest(server, LEASE_S + DROPPED_WITHIN_S)
        assert waited_s > LEASE_S / 2
        with pytest.raises(InferenceServerException, match="'stream_id' is 'vanishing'"):
            triton.infer("gpt_decoder", tensors({"stream_id": "vanishing"}))


def test_memory_and_threads_do_not_grow_with_what_is_cancelled(server):
    """A leak of one chunk of samples for each would be 57 to 229 kB."""
    for _ in range(30):
        cancel_after_a_chunk(server)
    kilobytes, threads = [], []
    for _ in range(60):
        cancel_after_a_chunk(server)
        memory, count = memory_and_threads(server)
        kilobytes.append(memory)
        threads.append(count)
    time_to_rest(server, DROPPED_WITHIN_S)
    growth_kb = np.polyfit(range(len(kilobytes)), kilobytes, 1)[0]
    assert growth_kb < 50
    assert threads[-1] - threads[0] <= 2


def cancel_after_a_chunk(server):
    with GrpcStream(server.grpc_url, ENDLESS) as stream:
        stream.next()


def memory_and_threads(server):
    """Resident kilobytes and threads of tritonserver and its models."""
    fields = {"VmRSS": 0, "Threads": 0}
    for pid in (server.pid, *child_processes(server.pid)):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in fields:
                fields[name] += int(value.split()[0])
    return fields["VmRSS"], fields["Threads"]


def test_an_answer_in_one_that_is_past_its_deadline_is_dropped_with_its_status(server):
    time_to_rest(server)
    with pytest.raises(InferenceServerException, match="deadline exceeded") as caught:
        speak(server.grpc_url, deadline_ms=300, **ENDLESS)
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    time_to_rest(server, DROPPED_WITHIN_S)
