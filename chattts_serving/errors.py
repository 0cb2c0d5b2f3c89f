"""The errors of the service: one tree, and one place that maps it to status codes.

    ServingError                 base; `status` is the Triton (gRPC) status name
    ├── InvalidInputError        INVALID_ARGUMENT   one input of a request is out of its range
    ├── OverloadedError          UNAVAILABLE        a bounded queue is full
    ├── ShuttingDownError        UNAVAILABLE        the server is about to end
    ├── DeadlineExceededError    CANCELLED          the request's `deadline_ms` passed
    ├── EngineError              INTERNAL           a step failed; the message says which
    └── ConfigError              INTERNAL           configuration or artifacts are wrong (raised at start only)

Triton's Python backend knows no DEADLINE_EXCEEDED, so that error travels as CANCELLED with a message that starts
with "deadline exceeded".
"""

from __future__ import annotations

MAX_SHOWN_CHARACTERS = 60  # of an offending value, in a message


def shown(value: object) -> str:
    """`value` as it may stand in a message: repr, ASCII only, cut to MAX_SHOWN_CHARACTERS."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}... ({len(text)} characters)"


class ServingError(Exception):
    """Base of every error that a request may be answered with."""

    status = "INTERNAL"


class InvalidInputError(ServingError):
    """One input of the request is wrong: says which one, what it was and what is allowed."""

    status = "INVALID_ARGUMENT"

    def __init__(self, name: str, value: object, allowed: str) -> None:
        """`name` is the contract's input name; `allowed` finishes the sentence "allowed is ..."."""
        super().__init__(f"input '{name}' is {shown(value)}; allowed is {allowed}")
        self.name = name


class OverloadedError(ServingError):
    """The server is at capacity; the request was not queued."""

    status = "UNAVAILABLE"


class ShuttingDownError(ServingError):
    """The server is about to end; another one may answer."""

    status = "UNAVAILABLE"


class DeadlineExceededError(ServingError):
    """The request's deadline passed before its audio was complete."""

    status = "CANCELLED"


class EngineError(ServingError):
    """The engine failed while it worked on the request."""


class ConfigError(ServingError):
    """A configuration value or an artifact is missing or wrong; raised before anything is served."""
