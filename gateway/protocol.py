"""HTTP as real clients speak it: h11, with a bound on the headers' size and on the time that they may take.

h11 and not httptools, which loses the body of a request that offers HTTP/2 (every Java client's first one), sends chunk
sizes to clients of HTTP/1.0 and reads headers for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.errors import GatewayError

SESSIONS = "/v1/audio/speech/stream"  # the path of WebSockets
MAX_HEADER_BYTES = 32_768
HEADERS_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 75  # longer than the pools of most clients keep a connection, which would use it as it closes


class Protocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As uvicorn makes it."""
        super().__init__(*arguments, **named)
        self._headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first headers are due."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Wait no longer once the headers are complete; those of the next request are due when they begin."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._headers_timer is None and self.conn.trailing_data[0]:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is due any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Say in the form of all errors what uvicorn calls `msg`."""
        message = f"this is no request of HTTP/1.1, or its headers have more than {MAX_HEADER_BYTES} bytes: {msg}"
        self._refuse(GatewayError(400, message, "invalid_http"))

    def _should_upgrade(self) -> bool:
        """Go on with HTTP/1.1 but where WebSockets are, without uvicorn's warnings: Java always offers HTTP/2."""
        return self._get_upgrade() == b"websocket" and self.scope["path"] == SESSIONS

    def _await_headers(self) -> None:
        self._headers_timer = self.loop.call_later(HEADERS_TIMEOUT_S, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _headers_are_late(self) -> None:
        if self.conn.trailing_data[0]:
            self._refuse(GatewayError(408, f"the headers did not come within {HEADERS_TIMEOUT_S:g} s", "timeout"))
        self.transport.close()

    def _refuse(self, error: GatewayError) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            answer = error.response()
            headers = [*answer.raw_headers, (b"connection", b"close")]
            self.transport.write(self.conn.send(h11.Response(status_code=error.status, headers=headers)) or b"")
            self.transport.write(answer.body)
        self.transport.close()
