"""`python -m gateway`: serve until told to stop."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import socket
import sys
import time

import uvicorn
from chattts_client import TTSError

from gateway.app import MAX_JSON_BYTES, create_app
from gateway.protocol import KEEP_ALIVE_S, MAX_HEADER_BYTES, Protocol
from gateway.settings import Settings, SettingsError, parse

BACKLOG = 2_048  # connections that wait to be accepted


class _JsonLines(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """`record` with its fields."""
        fields = getattr(record, "fields", {})
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": stamp, "level": record.levelname.lower(), "message": record.getMessage(), **fields}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def main() -> int:
    """Run the gateway; the exit status for the shell."""
    try:
        settings = parse()
        serve(settings, listeners(settings))
    except (SettingsError, TTSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def listeners(settings: Settings) -> list[socket.socket]:
    """Sockets at the gateway's address: taken at once, though nobody is answered until `serve`.

    Raises:
        SettingsError: another program has the port, or this machine has no such address.
    """
    host, port = settings.host, settings.port
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"--host is '{host}'; allowed is an address of this machine, or its name") from error
    found: list[socket.socket] = []
    refused: list[OSError] = []
    for family, _, _, _, address in addresses:
        try:
            found.append(socket.create_server(address, family=family, backlog=BACKLOG))
        except OSError as error:
            refused.append(error)
    taken = [error for error in refused if error.errno != errno.EADDRNOTAVAIL]  # a name may have an IPv6 address, too
    if taken or not found:
        for one in found:
            one.close()
        why = os.strerror((taken or refused)[0].errno or 0)
        raise SettingsError(f"cannot listen on {settings.url} ({why}): choose another --port or --host")
    return found


def serve(settings: Settings, sockets: list[socket.socket]) -> None:
    """Serve at `sockets` until a signal says stop."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    for name, level in (("gateway", logging.INFO), ("uvicorn.error", logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
        logger.addFilter(lambda record: '"WebSocket' not in str(record.msg))  # each has a line of its own
    config = uvicorn.Config(
        create_app(settings),
        http=Protocol,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="wsproto",  # which stands on h11, as HTTP does here
        ws_max_size=MAX_JSON_BYTES,
        ws_per_message_deflate=False,  # of audio nothing is saved
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout_s,
    )
    logging.getLogger("gateway").info("listening on %s", settings.url)
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        uvicorn.Server(config).run(sockets)


if __name__ == "__main__":
    sys.exit(main())
