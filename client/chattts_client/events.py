"""Triton's `generate_stream` without a connection: requests as JSON, answers as server-sent events.

Whoever holds the connection sends `body` and feeds an `EventParser`; blocking and asyncio transports share it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from chattts_client.errors import ServerError, shown
from chattts_client.options import InputTensor

HEADERS = {"Content-Type": "application/json", "Accept": "text/event-stream"}
MAX_EVENT_BYTES = 64 * 2**20  # two minutes of audio as JSON; the server's chunks have seconds
MAX_ERROR_BYTES = 2**16  # read of an answer that is no stream


def path(model: str) -> str:
    """The path of `model`'s streaming endpoint."""
    return f"/v2/models/{quote(model, safe='')}/generate_stream"


def body(tensors: Sequence[InputTensor], request_id: str = "") -> bytes:
    """The request; each tensor has one value. NaN and infinities go as JavaScript writes them, which Triton reads."""
    values = {name: _plain(array.item()) for name, _, array in tensors}
    return json.dumps(values | ({"id": request_id} if request_id else {})).encode()


def _plain(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


class EventResult:
    """One event as a `client.transport.Result`."""

    def __init__(self, values: dict[str, Any]) -> None:
        """`values` are the outputs: lists, or plain values where an output has one element."""
        self._values = values

    def as_numpy(self, name: str) -> NDArray[Any] | None:
        """The array of output `name`, None where there is none; strings are bytes, as in tritonclient."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, str):
            return np.array([value.encode()], dtype=object)
        array: NDArray[Any] = np.array(value).reshape(-1)
        return array


class EventParser:
    """Bytes of the connection, cut anywhere, to results."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        """An event of more than `max_event_bytes` is an error, so that memory stays bounded."""
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []  # the pieces of the line that has not ended
        self._data: list[bytes] = []  # the data of the event that has not ended
        self._line_bytes = self._data_bytes = 0

    def feed(self, received: bytes) -> Iterator[EventResult]:
        """The results that `received` completes; to be exhausted before more is fed.

        Raises:
            InferenceServerException: the server sent an error; it has no status.
            ServerError: an event is too long, or no JSON object.
        """
        *ends, rest = received.split(b"\n")
        for end in ends:
            self._add(end)
            event = self._end_line()
            if event is not None:
                yield _result(event)
        self._add(rest)

    def _add(self, piece: bytes) -> None:
        self._line.append(piece)
        self._line_bytes += len(piece)
        if self._line_bytes + self._data_bytes > self._max_event_bytes:
            raise ServerError(f"an event has more than {self._max_event_bytes:,} bytes", "INTERNAL")

    def _end_line(self) -> bytes | None:
        """The data of the event that ends with this line; only an empty line ends one."""
        line = b"".join(self._line).removesuffix(b"\r")
        self._line, self._line_bytes = [], 0
        if line.startswith(b"data:"):
            self._data.append(line[len(b"data:") :])
            self._data_bytes += len(line)
        if line or not self._data:
            return None
        event = b"\n".join(self._data)
        self._data, self._data_bytes = [], 0
        return event


def _result(event: bytes) -> EventResult:
    try:
        values = json.loads(event)
    except ValueError as error:
        raise ServerError(f"an event is no JSON: {shown(event.decode(errors='replace'))}", "INTERNAL") from error
    if not isinstance(values, dict):
        raise ServerError(f"an event is no JSON object: {shown(event.decode(errors='replace'))}", "INTERNAL")
    if "error" in values:
        raise InferenceServerException(str(values["error"]))
    return EventResult(values)


def refusal(status: int, content_type: str, answer: bytes) -> InferenceServerException:
    """The error that an HTTP answer of another status than 200 tells; `answer` is (the start of) its body.

    An error in place of the first event comes as 400 whatever it is (Triton 2.51, measured), so that one has no status.
    """
    is_event = content_type.startswith("text/event-stream")
    try:
        message = str(json.loads(answer.strip().removeprefix(b"data:"))["error"])
    except (ValueError, TypeError, KeyError):
        message = answer[:200].decode("utf-8", "replace").strip()
    return InferenceServerException(message, None if is_event else str(status))
