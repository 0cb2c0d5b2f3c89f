"""Receives the spans of a server's traces: OpenTelemetry's, as JSON over HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Span = dict[str, Any]


class SpanReceiver:
    """What has come so far; read only when asked, so that whoever measures is not kept busy by it.

    Attributes:
        url: where spans are to be sent.
    """

    def __init__(self, url: str) -> None:
        """Nothing has come."""
        self.url = url
        self._bodies: list[bytes] = []
        self._spans: list[Span] = []

    def take(self, body: bytes) -> None:
        """Keep what was sent."""
        self._bodies.append(body)

    def spans(self) -> list[Span]:
        """All of them, as OTLP's JSON has them."""
        while self._bodies:
            for resource in json.loads(self._bodies.pop(0))["resourceSpans"]:
                for scope in resource["scopeSpans"]:
                    self._spans += scope["spans"]
        return self._spans

    def trace(self, trace_id: str) -> dict[str, Span]:
        """The spans of one trace by their ids."""
        return {span["spanId"]: span for span in self.spans() if span["traceId"] == trace_id}


@contextmanager
def receiving() -> Iterator[SpanReceiver]:
    """A receiver on a free port of 127.0.0.1, for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver = SpanReceiver(f"http://127.0.0.1:{server.server_port}/v1/traces")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        server.shutdown()
