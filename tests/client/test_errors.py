"""The mapping of errors that a test server does not make."""

from __future__ import annotations

import asyncio

import pytest
from chattts_client import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    TTSError,
)
from chattts_client.errors import mapped_errors
from tritonclient.utils import InferenceServerException


@pytest.mark.parametrize(
    ("status", "message", "expected"),
    [
        # as gRPC 1.85 words a server that goes away, at connect and in the middle of a call
        ("StatusCode.UNAVAILABLE", "Stream removed (Socket closed)", ConnectionFailedError),
        ("StatusCode.UNKNOWN", "Stream removed", ConnectionFailedError),
        ("StatusCode.UNAVAILABLE", "recvmsg:Connection reset by peer (104)", ConnectionFailedError),
        ("StatusCode.UNAVAILABLE", "GOAWAY received", ConnectionFailedError),
        ("StatusCode.UNAVAILABLE", "DNS resolution failed for x", ConnectionFailedError),
        ("StatusCode.UNAVAILABLE", "the queue is full", OverloadedError),
        ("StatusCode.UNAVAILABLE", "in ensemble 'chattts', the server is shutting down", OverloadedError),
        ("503", "the server is shutting down", OverloadedError),
        ("StatusCode.UNKNOWN", "what", ServerError),
        ("StatusCode.CANCELLED", "the server is stopping", ServerError),
        ("499", "Deadline exceeded", DeadlineExceededError),
        ("400", "the deadline exceeded nothing", InvalidInputError),
        ("502", "Bad Gateway", ConnectionFailedError),
        ("504", "", DeadlineExceededError),
        (None, None, ServerError),
        # an error of a stream, without a status
        (None, "input 'speaker' is 'x\\ny'; allowed is the name of a voice", InvalidInputError),
        (None, "in ensemble 'chattts', input 'top_k' is 0; allowed is 1 to 626", InvalidInputError),
        (None, "input stream broken", ServerError),
        (None, "256 requests are open, the most allowed; try again later", OverloadedError),
        (None, "the server is shutting down", OverloadedError),
        (None, "Exceeds maximum queue size", OverloadedError),
        (None, "deadline exceeded before the audio was complete", DeadlineExceededError),
        (None, "in ensemble 'chattts', deadline exceeded: 5 ms", DeadlineExceededError),
        (None, "step 12 failed", ServerError),
    ],
)
def test_statuses(status, message, expected):
    with pytest.raises(TTSError) as caught, mapped_errors("h:1"):
        raise InferenceServerException(message, status)
    assert type(caught.value) is expected
    assert ("no message" if message is None else message) in str(caught.value)


@pytest.mark.parametrize("error", [TimeoutError(), asyncio.TimeoutError()])
def test_both_timeouts_of_python_3_10_are_deadlines(error):
    with pytest.raises(DeadlineExceededError, match="no answer from h:1"), mapped_errors("h:1"):
        raise error


def test_an_error_without_words_is_named():
    with pytest.raises(ConnectionFailedError, match="BrokenPipeError"), mapped_errors("h:1"):
        raise BrokenPipeError


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), TypeError("a bug")])
def test_what_is_no_failure_of_the_call_passes_through(error):
    with pytest.raises(type(error)), mapped_errors("h:1"):
        raise error
