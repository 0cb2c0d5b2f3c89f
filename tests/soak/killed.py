"""A client that is killed: `python -m tests.soak.killed GRPC_URL HTTP_URL` reads streams without end.

It prints a line for each stream: "heard" with its first chunk, or the kind of its error.
"""

from __future__ import annotations

import sys
import threading

from chattts_client import TTSClient, TTSError
from chattts_client.transport import ProtocolName

from bench.load import kind_of
from tests.soak.texts import ENDLESS, ENDLESS_OPTIONS

HEARD = "heard"
STREAMS: tuple[ProtocolName, ...] = ("grpc", "http", "grpc", "http")


def main() -> None:
    """Listen until the end."""
    grpc_url, http_url = sys.argv[1:]
    urls = {"grpc": grpc_url, "http": http_url}
    listeners = [threading.Thread(target=_listen, args=(urls[protocol], protocol)) for protocol in STREAMS]
    for listener in listeners:
        listener.start()
    for listener in listeners:
        listener.join()


def _listen(url: str, protocol: ProtocolName) -> None:
    first = True
    try:
        with TTSClient(url, protocol) as client, client.stream(ENDLESS, ENDLESS_OPTIONS) as chunks:
            for _ in chunks:
                if first:
                    _tell(HEARD)
                first = False
    except TTSError as error:
        _tell(kind_of(error))


def _tell(word: str) -> None:
    print(f"{word}\n", end="", flush=True)  # in one piece: print writes the end of a line by itself


if __name__ == "__main__":
    main()
