"""A real tritonserver with a stand-in for the ensemble, and the client in its four flavours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from chattts_serving.server import RunningServer, running_server
from client import AsyncTTSClient, TTSClient

FAKE_MODEL = Path(__file__).parent / "fake_model"


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log_path = tmp_path_factory.mktemp("server") / "tritonserver.log"
    with running_server(FAKE_MODEL, log_path=log_path) as running:
        yield running


@dataclass(frozen=True)
class Flavour:
    """One of the four clients, called the same way."""

    protocol: Literal["grpc", "http"]
    asynchronous: bool

    def url(self, server: RunningServer) -> str:
        return server.grpc_url if self.protocol == "grpc" else server.http_url

    def call(self, url: str, method: str, *arguments: Any, settings: dict[str, Any] | None = None, **named: Any) -> Any:
        """Make a client for `url`, call one method of it, close it."""
        if self.asynchronous:
            return asyncio.run(self._call_async(url, settings or {}, method, *arguments, **named))
        with TTSClient(url, self.protocol, **settings or {}) as client:
            return getattr(client, method)(*arguments, **named)

    async def _call_async(self, url: str, settings: dict[str, Any], method: str, *arguments: Any, **named: Any) -> Any:
        async with AsyncTTSClient(url, self.protocol, **settings) as client:
            return await getattr(client, method)(*arguments, **named)


FLAVOURS = {
    "grpc": Flavour("grpc", asynchronous=False),
    "http": Flavour("http", asynchronous=False),
    "grpc-async": Flavour("grpc", asynchronous=True),
    "http-async": Flavour("http", asynchronous=True),
}


@pytest.fixture(params=FLAVOURS.values(), ids=FLAVOURS.keys())
def flavour(request: pytest.FixtureRequest) -> Flavour:
    return request.param


@pytest.fixture
def refusing_url() -> Iterator[str]:
    """An address that nobody listens on, kept from others."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A peer that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
