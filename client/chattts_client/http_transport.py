"""Calls over HTTP: tritonclient's, and streams of server-sent events, which tritonclient does not read."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any

import aiohttp
import gevent  # type: ignore[import-untyped]
import tritonclient.http
import tritonclient.http.aio

from chattts_client import events
from chattts_client.transport import Call, Result

READ_BYTES = 2**16  # most at once from a connection


@contextmanager
def _as_system_errors() -> Iterator[None]:
    """Raise aiohttp's errors of connections as Python's; those of time are both already."""
    try:
        yield
    except (TimeoutError, asyncio.TimeoutError):
        raise
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


def _unary(call: Call) -> dict[str, Any]:
    """What tritonclient's `infer` takes."""
    return call.arguments(tritonclient.http.InferInput, tritonclient.http.InferRequestedOutput)


class _HttpTransport:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client = tritonclient.http.InferenceServerClient(url, connection_timeout=None, network_timeout=None)

    def infer(self, call: Call) -> Result:
        result: Result = self._within(call.timeout, self._client.infer, **_unary(call))
        return result

    def stream(self, call: Call) -> Generator[Result, None, None]:
        clock = _Clock(call.timeout)
        connection = HTTPConnection(self._url, timeout=clock.left())
        try:
            headers = events.HEADERS | call.about.headers()
            connection.request(
                "POST", events.path(call.model), events.body(call.tensors, call.about.request_id), headers
            )
            socket = connection.sock  # the connection forgets it when the answer is to be its last
            socket.settimeout(clock.left())
            with connection.getresponse() as response:
                if response.status != 200:
                    answer = response.read(events.MAX_ERROR_BYTES)
                    raise events.refusal(response.status, response.headers.get("Content-Type", ""), answer)
                parser = events.EventParser()
                while received := response.read1(READ_BYTES):
                    yield from parser.feed(received)
                    socket.settimeout(clock.left())
        finally:
            connection.close()

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(self._within(timeout, self._client.is_model_ready, model))

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _within(timeout: float | None, call: Any, *arguments: Any, **named: Any) -> Any:
        """tritonclient's own limits hold for each read from the socket; this one holds for the whole call."""
        try:
            with gevent.Timeout(timeout):
                return call(*arguments, **named)
        except gevent.Timeout as error:
            raise TimeoutError from error


class _Clock:
    """What is left of a call's time; None for no limit."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds; raises TimeoutError when there is none."""
        if self._end is None:
            return None
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _AsyncHttpTransport:
    def __init__(self, url: str) -> None:
        # No limit on connections: one request each, and how many run at once is the caller's choice.
        self._client = tritonclient.http.aio.InferenceServerClient(url, conn_limit=0, conn_timeout=None)
        self._session = aiohttp.ClientSession(f"http://{url}", connector=aiohttp.TCPConnector(limit=0))

    async def infer(self, call: Call) -> Result:
        with _as_system_errors():
            result: Result = await asyncio.wait_for(self._client.infer(**_unary(call)), call.timeout)
        return result

    async def stream(self, call: Call) -> AsyncGenerator[Result, None]:
        with _as_system_errors():
            response = await self._session.post(
                events.path(call.model),
                data=events.body(call.tensors, call.about.request_id),
                headers=events.HEADERS | call.about.headers(),
                timeout=aiohttp.ClientTimeout(total=call.timeout),
                allow_redirects=False,
            )
            try:
                if response.status != 200:
                    answer = await response.content.read(events.MAX_ERROR_BYTES)
                    raise events.refusal(response.status, response.headers.get("Content-Type", ""), answer)
                parser = events.EventParser()
                async for received in response.content.iter_any():
                    for result in parser.feed(received):
                        yield result
            finally:
                response.close()  # the connection with it, unless the answer has been read to its end

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        with _as_system_errors():
            return bool(await asyncio.wait_for(self._client.is_model_ready(model), timeout))

    async def close(self) -> None:
        await self._client.close()
        await self._session.close()


connect, connect_async = _HttpTransport, _AsyncHttpTransport  # each with the URL alone; nothing is sent yet
