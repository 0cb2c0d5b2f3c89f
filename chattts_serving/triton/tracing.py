"""The calls that one model makes of another, as spans of the trace that a caller began, in OpenTelemetry's format.

Triton traces what callers ask for and the steps of ensembles. Of the calls of Python models it traces those that get
their request's trace, which is gone when `execute` returns: given later, as ours would be, it crashes tritonserver
(measured, 2.51; 26.06 has the same code). So these spans are made and sent here, to where Triton sends its own.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import queue
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from chattts_serving.variables import TRACES_URL

logger = logging.getLogger(__name__)

PARAMETER = "traceparent"  # of a call: what the called model's own spans belong to
MOST_WAITING = 4096  # spans; more are dropped
MOST_AT_ONCE = 512
GATHER_S = 0.5
SEND_S = 5.0  # for a batch of spans
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


class Tracer:
    """Makes the spans of one model and sends them, from a thread of its own; none where no address is set."""

    def __init__(self) -> None:
        """The address is that of TRACES_URL in the environment: "http://HOST:PORT/PATH" of OTLP over HTTP."""
        self._url = os.environ.get(TRACES_URL, "")
        self._ended: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send_all, daemon=True) if self._url else None
        self._has_complained = False
        if self._thread is not None:
            self._thread.start()

    def of(self, request: Any) -> Trace:
        """What `request`, a `pb_utils.InferenceRequest`, is traced as; one that nobody traces has no spans."""
        if self._thread is None:
            return UNTRACED
        with suppress(ValueError, KeyError):  # parameters are the caller's and may be anything
            context = request.trace().get_context()  # None where Triton itself does not trace it
            parent = json.loads(context or request.parameters())[PARAMETER]
            if _TRACEPARENT.fullmatch(str(parent)):
                return Trace(self, str(parent))
        return UNTRACED

    def under(self, traceparent: str) -> Trace:
        """What is part of the span that `traceparent` names."""
        return UNTRACED if self._thread is None else Trace(self, traceparent)

    def add(self, span: dict[str, Any]) -> None:
        """Have `span`, as OTLP's JSON has it, sent some time."""
        if self._ended.qsize() < MOST_WAITING:
            self._ended.put(span)

    def close(self) -> None:
        """Send what is left."""
        if self._thread is not None:
            self._ended.put(None)
            self._thread.join(SEND_S)

    def _send_all(self) -> None:
        is_over = False
        while not is_over:
            spans = [self._ended.get()]
            if spans[0] is not None:
                time.sleep(GATHER_S)
            with suppress(queue.Empty):
                while len(spans) < MOST_AT_ONCE:
                    spans.append(self._ended.get_nowait())
            is_over = None in spans
            batch = [span for span in spans if span is not None]
            try:
                if batch:
                    self._send(batch)
            except (OSError, http.client.HTTPException, ValueError) as error:
                if not self._has_complained:
                    logger.warning("spans cannot be sent to %s: %s", self._url, error)
                self._has_complained = True

    def _send(self, spans: list[dict[str, Any]]) -> None:
        url = urlsplit(self._url)
        name = {"key": "service.name", "value": {"stringValue": "chattts"}}
        scopes = [{"scope": {"name": __name__}, "spans": spans}]
        body = json.dumps({"resourceSpans": [{"resource": {"attributes": [name]}, "scopeSpans": scopes}]})
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        with closing(kind(url.netloc, timeout=SEND_S)) as connection:
            connection.request("POST", url.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status // 100 != 2:
                raise http.client.HTTPException(f"status {response.status}")


class Trace:
    """One request's place in a caller's trace."""

    def __init__(self, tracer: Tracer | None, parent: str) -> None:
        """`parent` is a W3C traceparent, "" for a request that is not traced."""
        self._tracer, self._parent = tracer, parent

    @contextmanager
    def span(self, name: str) -> Iterator[str]:
        """A span for the length of the block; its traceparent, "" where nothing is traced."""
        found = _TRACEPARENT.fullmatch(self._parent)
        if self._tracer is None or not found:
            yield ""
            return
        span_id, started, status = secrets.token_hex(8), time.time_ns(), {}
        try:
            yield f"00-{found[1]}-{span_id}-{found[3]}"
        except BaseException as error:
            status = {"code": 2, "message": type(error).__name__}  # its words may quote what was to be spoken
            raise
        finally:
            self._add(name, span_id, started, time.time_ns(), status)

    def add(self, name: str, started_ns: int, ended_ns: int) -> None:
        """A span that is over; times are ns since 1970."""
        self._add(name, secrets.token_hex(8), started_ns, ended_ns, {})

    def _add(self, name: str, span_id: str, started_ns: int, ended_ns: int, status: dict[str, Any]) -> None:
        found = _TRACEPARENT.fullmatch(self._parent)
        if self._tracer is not None and found:
            self._tracer.add(
                {
                    "traceId": found[1],
                    "spanId": span_id,
                    "parentSpanId": found[2],
                    "name": name,
                    "kind": 1,  # internal
                    "startTimeUnixNano": str(started_ns),
                    "endTimeUnixNano": str(ended_ns),
                    "status": status,
                }
            )


UNTRACED = Trace(None, "")
