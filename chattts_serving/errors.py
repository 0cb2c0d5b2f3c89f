"""The errors of the service: one tree, and one place that maps it to status codes.

    ServingError                 base; `status` is the Triton (gRPC) status name, `outcome` what metrics count it as
    ├── InvalidInputError        INVALID_ARGUMENT   one input of a request is out of its range
    ├── OverloadedError          UNAVAILABLE        a bounded queue is full
    ├── ShuttingDownError        UNAVAILABLE        the server is about to end
    ├── DeadlineExceededError    UNAVAILABLE        the request's `deadline_ms` passed
    ├── CancelledError           CANCELLED          the caller has gone, or its stream was given up
    ├── CalledModelError         as the call's      a model that this one called failed
    ├── EngineError              INTERNAL           a step failed; the message says which
    └── ConfigError              INTERNAL           configuration or artifacts are wrong (raised at start only)

Triton's Python backend knows no DEADLINE_EXCEEDED, so that error travels as UNAVAILABLE with a message that starts
with "deadline exceeded": over HTTP, where CANCELLED is a 400, it is no fault of the caller's.
"""

from __future__ import annotations

MAX_SHOWN_CHARACTERS = 60  # of an offending value, in a message


def shown(value: object) -> str:
    """`value` as it may stand in a message: repr, cut to MAX_SHOWN_CHARACTERS, of a string its own ones."""
    whole = value if isinstance(value, str) else repr(value)
    cut = whole[:MAX_SHOWN_CHARACTERS]
    text = repr(cut) if isinstance(value, str) else cut
    return text if len(cut) == len(whole) else f"{text}... ({len(whole)} characters)"


class ServingError(Exception):
    """Base of every error that a request may be answered with."""

    status = "INTERNAL"
    outcome = "failed"
    first_words = ""  # of its messages, where they tell its status: Triton loses that between two models


class InvalidInputError(ServingError):
    """One input of the request is wrong: says which one, what it was and what is allowed."""

    status = "INVALID_ARGUMENT"
    outcome = "invalid"
    first_words = "input '"

    def __init__(self, name: str, value: object, allowed: str) -> None:
        """`name` is the contract's input name; `allowed` finishes the sentence "allowed is ..."."""
        super().__init__(f"input '{name}' is {shown(value)}; allowed is {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


class OverloadedError(ServingError):
    """The server is at capacity; the request was not queued."""

    status = "UNAVAILABLE"
    outcome = "overloaded"
    first_words = "overloaded"


class ShuttingDownError(ServingError):
    """The server is about to end; another one may answer."""

    status = "UNAVAILABLE"
    outcome = "shutting_down"
    first_words = "the server is shutting down"


class DeadlineExceededError(ServingError):
    """The request's deadline passed before its audio was complete."""

    status = "UNAVAILABLE"
    outcome = "deadline_exceeded"
    first_words = "deadline exceeded"


class CancelledError(ServingError):
    """Nobody waits for the audio any more."""

    status = "CANCELLED"
    outcome = "cancelled"
    first_words = "the request was cancelled"


class CalledModelError(ServingError):
    """A model that was called on behalf of the request answered with an error, which is passed on."""

    def __init__(self, message: str, status: str, model: str = "") -> None:
        """`status` is one of those above; INTERNAL gives way to what the message's first words tell."""
        super().__init__(message)
        self.model = model
        kinds = (kind for kind in ServingError.__subclasses__() if kind.first_words)
        told = next((kind for kind in kinds if message.startswith(kind.first_words)), ServingError)
        self.status = told.status if status == ServingError.status else status
        kind = told if told.status == self.status else _KINDS.get(self.status, ServingError)
        self.outcome = kind.outcome


class EngineError(ServingError):
    """The engine failed while it worked on the request."""


class ConfigError(ServingError):
    """A configuration value or an artifact is missing or wrong; raised before anything is served."""


_KINDS: dict[str, type[ServingError]] = {  # of Triton's own errors
    "INVALID_ARGUMENT": InvalidInputError,
    "UNAVAILABLE": OverloadedError,
    "CANCELLED": CancelledError,
}
