"""Errors as OpenAI's clients expect them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import re
from collections.abc import Mapping

from chattts_client import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    TTSError,
)
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

INVALID, SERVER = "invalid_request_error", "server_error"
RETRY_AFTER_S = 1
_INPUT = re.compile(r"^(?:in ensemble '[^']*', )?input '(\w+)'")
# Inputs of the models by the names that they have here.
_PARAMETERS = {
    "text": "input",
    "turns": "input",
    "speaker": "voice",
    "speaker_sample": "voice",
    "sample_text": "voice",
    "audio": "audio_sample",
    "skip_refine": "refine",
}


_NAMED = re.compile(f"'({'|'.join(_PARAMETERS)})'")


class Failure(BaseModel):
    """What went wrong."""

    message: str = Field(description="which field, what it was, what is allowed")
    type: str = Field(description=f"{INVALID} or {SERVER}")
    param: str | None = Field(description="the field that is to blame")
    code: str | None = Field(description="for programs")


class ErrorAnswer(BaseModel):
    """The body of an answer that says no."""

    error: Failure


class GatewayError(Exception):
    """What a request is answered with instead of speech.

    Attributes:
        status: of HTTP.
        code: for programs.
        param: the field that is to blame, None where there is none.
        headers: that the answer has.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`message` is for people: which field, what it was, what is allowed."""
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})

    @property
    def body(self) -> dict[str, object]:
        """As JSON has it."""
        kind = SERVER if self.status >= 500 else INVALID
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, self.status, self.headers)


def invalid_field(name: str, message: str) -> GatewayError:
    """The error for a field of the request; `message` goes on after its name."""
    return GatewayError(400, f"'{name}' {message}", "invalid_value", name)


def from_client(error: TTSError) -> GatewayError:
    """What the server behind says, in this form."""
    message = str(error)
    if isinstance(error, InvalidInputError):
        found = _INPUT.match(message)
        param = _PARAMETERS.get(found[1], found[1]) if found else None
        return GatewayError(400, _in_own_words(message, param), "invalid_value", param)
    if isinstance(error, OverloadedError):
        return GatewayError(503, message, "overloaded", headers={"retry-after": str(RETRY_AFTER_S)})
    if isinstance(error, DeadlineExceededError):
        return GatewayError(504, message, "deadline_exceeded")
    if isinstance(error, ConnectionFailedError):
        return GatewayError(502, message, "no_server")
    return GatewayError(500, message, error.status if isinstance(error, ServerError) else None)


def _in_own_words(message: str, param: str | None) -> str:
    """`message` with the names that fields have here; what stands between them is a value of the caller's."""
    said, is_usual, allowed = message.rpartition("; allowed is ")
    if not is_usual:
        said, allowed = message, ""
    allowed = _NAMED.sub(lambda found: f"'{_PARAMETERS[found[1]]}'", allowed)
    return f"{_INPUT.sub(repr(param), said)}{is_usual}{allowed}"
