"""`python -m gateway`: serve until told to stop."""

from __future__ import annotations

import json
import logging
import sys
import time

import uvicorn
from chattts_client import TTSError

from gateway.app import create_app
from gateway.process import check_port
from gateway.settings import Settings, SettingsError, parse

STOP_TIMEOUT_S = 10  # that open answers have


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
        check_port(settings.host, settings.port)
        serve(settings)
    except (SettingsError, TTSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def serve(settings: Settings) -> None:
    """Serve until a signal says stop."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    for name, level in (("gateway", logging.INFO), ("uvicorn.error", logging.INFO)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )


if __name__ == "__main__":
    sys.exit(main())
