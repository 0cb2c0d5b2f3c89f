"""The client's errors: one tree, and one place that maps what tritonclient and its transports raise to it.

    TTSError                      base
    ├── InvalidInputError         INVALID_ARGUMENT, HTTP 400; or refused here before sending. Also a ValueError
    ├── OverloadedError           UNAVAILABLE, HTTP 503: the server is full or about to end; try again later
    ├── DeadlineExceededError     no answer in time (HTTP 504), or given up at `deadline_ms`. Also a TimeoutError
    ├── ConnectionFailedError     no server there, or the connection broke (HTTP 502). Also a ConnectionError
    └── ServerError               every other answer (INTERNAL, NOT_FOUND, ...); `status` says which

Messages of the server are kept word for word. Triton sends the errors of a stream without a status; there the words of
this project's server tell the kind, and all others are a ServerError of status UNKNOWN.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from tritonclient.utils import InferenceServerException

MAX_SHOWN_CHARACTERS = 60  # of an offending value, in a message

# The server's word for a passed deadline, whose status is that of a full server (or CANCELLED, of an older one); an
# ensemble puts its own name in front of the message of the step that failed.
_SERVER_DEADLINE = re.compile(r"^(in ensemble '[^']*', )?deadline exceeded", re.IGNORECASE)

# How the server words the others, for an error that came without a status.
_INVALID_INPUT = re.compile(r"^(in ensemble '[^']*', )?input '\w+' is .*; allowed is ", re.DOTALL)
_OVERLOADED = re.compile("try again later|shutting down|exceeds maximum queue size", re.IGNORECASE)

# gRPC has one status, UNAVAILABLE, for "the server says no for now" and "there is no server"; the second is worded by
# gRPC's own library.
_BROKEN_CONNECTION = re.compile(
    "failed to connect|connection (refused|reset|timed out)|errors resolving|dns resolution|name resolution"
    "|socket closed|stream removed|broken pipe|recvmsg|goaway|transport closed|keepalive|http1",
    re.IGNORECASE,
)


class TTSError(Exception):
    """Base of everything that this client raises on purpose."""


class InvalidInputError(TTSError, ValueError):
    """An input is wrong; the message names it, its value and what is allowed."""


class OverloadedError(TTSError):
    """The server is at capacity, not ready or about to end, and has not spoken the text; send it again later."""


class DeadlineExceededError(TTSError, TimeoutError):
    """The answer was not there in time."""


class ConnectionFailedError(TTSError, ConnectionError):
    """The server could not be reached, or went away before it answered."""


class ServerError(TTSError):
    """The server failed, or does not know the model.

    Attributes:
        status: gRPC's status name ("INTERNAL") or HTTP's number ("500").
    """

    def __init__(self, message: str, status: str) -> None:
        """`status` stands in front of the message."""
        super().__init__(f"{status}: {message}")
        self.status = status


def invalid_input(name: str, value: object, allowed: str) -> InvalidInputError:
    """The error for `value` of `name`, in the server's wording; `allowed` finishes the sentence "allowed is ..."."""
    return InvalidInputError(f"input '{name}' is {shown(value)}; allowed is {allowed}")


def shown(value: object) -> str:
    """`value` as it may stand in a message: repr, cut to MAX_SHOWN_CHARACTERS, of a string its own ones."""
    whole = value if isinstance(value, str) else repr(value)
    cut = whole[:MAX_SHOWN_CHARACTERS]
    text = repr(cut) if isinstance(value, str) else cut
    return text if len(cut) == len(whole) else f"{text}... ({len(whole)} characters)"


@contextmanager
def mapped_errors(url: str) -> Iterator[None]:
    """Raise what happens inside, in a call to the server at `url`, as a TTSError; cancellation passes through."""
    try:
        yield
    except InferenceServerException as error:
        raise _from_answer(error.status(), error.message(), url) from error
    except (TimeoutError, asyncio.TimeoutError) as error:  # two classes until Python 3.11
        raise _no_answer(url) from error
    except (OSError, HTTPException) as error:
        raise ConnectionFailedError(f"no connection to {url}: {str(error) or type(error).__name__}") from error


def _no_answer(url: str) -> DeadlineExceededError:
    return DeadlineExceededError(f"no answer from {url} in time")


def _from_answer(status: str | None, message: str | None, url: str) -> TTSError:
    """`status` is "NAME" or "StatusCode.NAME" over gRPC, "NUMBER" over HTTP, None where there is none."""
    message = message or "no message"
    status = (status or _status_by_words(message)).removeprefix("StatusCode.")
    if status in ("DEADLINE_EXCEEDED", "504"):  # gRPC's own clock, a balancer's
        return _no_answer(url)
    if status in ("UNAVAILABLE", "503", "CANCELLED", "400", "499") and _SERVER_DEADLINE.match(message):
        return DeadlineExceededError(message)
    if status in ("INVALID_ARGUMENT", "400"):
        return InvalidInputError(message)
    is_broken = status in ("UNAVAILABLE", "UNKNOWN") and _BROKEN_CONNECTION.search(message)
    if is_broken or status == "502":  # a balancer's, whose server went away
        return ConnectionFailedError(f"no connection to {url}: {message}")
    if status in ("UNAVAILABLE", "503"):
        return OverloadedError(message)
    return ServerError(message, status)


def _status_by_words(message: str) -> str:
    if _SERVER_DEADLINE.match(message):
        return "UNAVAILABLE"
    if _INVALID_INPUT.match(message):
        return "INVALID_ARGUMENT"
    return "UNAVAILABLE" if _OVERLOADED.search(message) else "UNKNOWN"
