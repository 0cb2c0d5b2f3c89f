"""A real tritonserver with a stand-in for the ensemble, and the client in its four flavours."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from chattts_client import AsyncTTSClient, Chunk, TTSClient

from chattts_serving.launcher.running import RunningServer, running_server

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

    def stream(
        self,
        url: str,
        text: str,
        *,
        settings: dict[str, Any] | None = None,
        into: list[Chunk] | None = None,
        **named: Any,
    ) -> list[Chunk]:
        """Every chunk of one stream; `into` has those that came before an error."""
        chunks = [] if into is None else into
        if self.asynchronous:
            asyncio.run(self._stream_async(url, text, settings or {}, chunks, **named))
            return chunks
        with TTSClient(url, self.protocol, **settings or {}) as client:
            for chunk in client.stream(text, **named):
                chunks.append(chunk)
        return chunks

    async def _stream_async(
        self, url: str, text: str, settings: dict[str, Any], chunks: list[Chunk], **named: Any
    ) -> None:
        async with AsyncTTSClient(url, self.protocol, **settings) as client:
            async for chunk in client.stream(text, **named):
                chunks.append(chunk)


FLAVOURS = {
    "grpc": Flavour("grpc", asynchronous=False),
    "http": Flavour("http", asynchronous=False),
    "grpc-async": Flavour("grpc", asynchronous=True),
    "http-async": Flavour("http", asynchronous=True),
}


def content(file: Path) -> str:
    """What the fake model writes to `file` in the end."""
    end = time.monotonic() + 10
    while not (file.exists() and file.read_text(encoding="utf-8")):
        assert time.monotonic() < end, f"nothing was written to {file}"
        time.sleep(0.02)
    return file.read_text(encoding="utf-8")


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
