"""Where the server is: one address for each protocol, of what a user gives for both."""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_URL = "127.0.0.1:8000"


class Target(NamedTuple):
    """Addresses "HOST:PORT", as the client takes them."""

    http_url: str
    grpc_url: str


def target(url: str, grpc_url: str) -> Target:
    """The target of `url` (of HTTP, with or without "http://") and `grpc_url` ("" is the next port of the same host).

    Raises:
        ValueError: one of them is no address.
    """
    http_url = _checked("host", url.removeprefix("http://").rstrip("/"))
    if grpc_url:
        return Target(http_url, _checked("grpc-url", grpc_url))
    host, _, port = http_url.rpartition(":")
    return Target(http_url, f"{host}:{int(port) + 1}")


def _checked(name: str, url: str) -> str:
    if not re.fullmatch(r"(\[[^/\s\[\]]+\]|[^/\s:\[\]]+):\d{1,5}", url):
        raise ValueError(f"--{name} is '{url}'; allowed is HOST:PORT, such as {DEFAULT_URL}")
    return url
