"""Server-sent events without a connection."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chattts_client import ServerError, SynthesisOptions
from chattts_client.events import EventParser, body, path, refusal
from chattts_client.options import input_tensors
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

EVENTS = (
    'data: {"index": 0, "text": "你"}\n\n'
    ': a comment\nid: 5\ndata:{"index": 1}\r\n\r\n\n\n'
    'data: {"index":\ndata: 2}\n\n'
).encode()  # fmt: skip


def indexes(results) -> list[int]:
    return [result.as_numpy("index").item() for result in results]


def feed_all(parser: EventParser, pieces: list[bytes]) -> list[int]:
    return indexes(result for piece in pieces for result in parser.feed(piece))


@given(st.lists(st.integers(0, len(EVENTS)), max_size=20))
def test_events_come_out_wherever_the_bytes_are_cut(cuts):
    parser = EventParser()
    ends = [*sorted(cuts), len(EVENTS)]
    pieces = [EVENTS[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert feed_all(parser, pieces) == [0, 1, 2]


def test_an_event_comes_out_as_soon_as_its_empty_line_is_there():
    parser = EventParser()
    assert indexes(parser.feed(b'data: {"index": 0}\n')) == []
    assert indexes(parser.feed(b"\n")) == [0]


def test_outputs_are_arrays_whatever_json_made_of_them():
    event = {"many": [0.5, 1], "one": 0.25, "none": [], "text": "你", "flag": True, "big": 2**62 + 1}
    (result,) = EventParser().feed(f"data: {json.dumps(event)}\n\n".encode())
    arrays = {name: result.as_numpy(name) for name in event}
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "many": [0.5, 1],
        "one": [0.25],
        "none": [],
        "text": ["你".encode()],
        "flag": [True],
        "big": [2**62 + 1],
    }
    assert result.as_numpy("missing") is None


def test_float32_samples_survive_json():
    samples = np.random.default_rng(0).uniform(-1, 1, 1_000).astype(np.float32)
    (result,) = EventParser().feed(f"data: {json.dumps({'audio': samples.tolist()})}\n\n".encode())
    np.testing.assert_array_equal(result.as_numpy("audio").astype(np.float32), samples)


def test_an_error_event_is_raised_without_a_status():
    with pytest.raises(InferenceServerException) as caught:
        list(EventParser().feed(b'data: {"error":"boom"}\n\n'))
    assert (caught.value.message(), caught.value.status()) == ("boom", None)


def test_what_came_before_an_error_comes_out_first():
    results = EventParser().feed(b'data: {"index": 0}\n\ndata: {"error":"boom"}\n\n')
    assert next(results).as_numpy("index") == 0
    with pytest.raises(InferenceServerException):
        next(results)


@pytest.mark.parametrize("event", [b"{", b"[]", b"5", b"\xff"])
def test_an_event_that_is_no_json_object_is_a_server_error(event):
    with pytest.raises(ServerError, match="no JSON"):
        list(EventParser().feed(b"data: " + event + b"\n\n"))


@pytest.mark.parametrize("line", [b"data: ", b": ", b"data: x\ndata: "])
def test_an_endless_event_is_a_server_error_before_memory_fills(line):
    parser = EventParser(max_event_bytes=1_000)
    with pytest.raises(ServerError, match="more than 1,000 bytes"):
        feed_all(parser, [b"x" * 10] * 101)


def test_the_limit_holds_for_one_event_not_for_all():
    parser = EventParser(max_event_bytes=20)
    assert indexes(parser.feed(b'data: {"index": 1}\n\n' * 100)) == [1] * 100


def test_comments_do_not_add_up():
    parser = EventParser(max_event_bytes=20)
    assert indexes(parser.feed(b": keep alive\n\n" * 100)) == []


def test_a_request_has_each_value_once_in_its_json_type():
    options = SynthesisOptions(seed=2**62 + 1, top_p=0.5, skip_refine=True, prompt="")
    assert json.loads(body(input_tensors("你\n\0", options, "exact"))) == {
        "text": "你\n\0",
        "seed": 2**62 + 1,
        "top_p": 0.5,
        "skip_refine": True,
        "prompt": "",
        "mode": "exact",
    }


def test_a_models_name_is_quoted():
    assert path("a/b c") == "/v2/models/a%2Fb%20c/generate_stream"


@pytest.mark.parametrize(
    ("content_type", "answer", "message", "status"),
    [
        ("application/json", b'{"error":"boom"}', "boom", "500"),
        ("text/event-stream; charset=utf-8", b'data: {"error":"boom"}\n\n', "boom", None),
        ("text/html", b"<p>Bad\xff Gateway</p>\n", "<p>Bad\ufffd Gateway</p>", "500"),
        ("application/json", b"[]", "[]", "500"),
        ("", b"", "", "500"),
    ],
)
def test_a_refusal_tells_what_the_answer_says(content_type, answer, message, status):
    error = refusal(500, content_type, answer)
    assert (error.message(), error.status()) == (message, status)
