"""The four clients of tritonclient behind two interfaces, one for each style of calling.

They know tensors and models, nothing of speech. Each raises what its library raises; `client.errors` maps it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import gevent  # type: ignore[import-untyped]
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray

from client.options import InputTensor

ProtocolName = Literal["grpc", "http"]

GRPC_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),  # gRPC's limit of 4 MB is 43 s of audio
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's 120 s would keep `wait_ready` from seeing a server that is up
    ("grpc.enable_http_proxy", 0),  # the HTTP clients do not read http_proxy either, and it breaks 127.0.0.1
]


class Result(Protocol):
    """An answer of tritonclient."""

    def as_numpy(self, name: str) -> NDArray[Any] | None:
        """The array of output `name`, None where there is none."""


class Transport(Protocol):
    """Blocking calls; `timeout` is in seconds for the whole call, None for no limit."""

    def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        """Send one request and wait for its answer."""

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether `model` can be called."""

    def close(self) -> None:
        """Give the connection back."""


class AsyncTransport(Protocol):
    """As `Transport`, on the running event loop."""

    async def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        """Send one request and wait for its answer."""

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether `model` can be called."""

    async def close(self) -> None:
        """Give the connections back."""


def connect(protocol: ProtocolName, url: str) -> Transport:
    """A transport to `url`; nothing is sent yet."""
    return _GrpcTransport(url) if protocol == "grpc" else _HttpTransport(url)


def connect_async(protocol: ProtocolName, url: str) -> AsyncTransport:
    """A transport to `url` for the running event loop; nothing is sent yet."""
    return _AsyncGrpcTransport(url) if protocol == "grpc" else _AsyncHttpTransport(url)


def _wrapped(input_type: Any, tensors: Sequence[InputTensor]) -> list[Any]:
    """`tensors` in the `InferInput` class of one protocol."""
    return [
        input_type(name, list(array.shape), datatype).set_data_from_numpy(array) for name, datatype, array in tensors
    ]


class _GrpcTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGUMENTS)

    def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        inputs = _wrapped(tritonclient.grpc.InferInput, tensors)
        result: Result = self._client.infer(model, inputs, client_timeout=timeout)
        return result

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(self._client.is_model_ready(model, client_timeout=timeout))

    def close(self) -> None:
        self._client.close()


class _HttpTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.http.InferenceServerClient(url, connection_timeout=None, network_timeout=None)

    def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        inputs = _wrapped(tritonclient.http.InferInput, tensors)
        result: Result = self._within(timeout, self._client.infer, model, inputs)
        return result

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(self._within(timeout, self._client.is_model_ready, model))

    def close(self) -> None:
        self._client.close()

    @staticmethod
    def _within(timeout: float | None, call: Any, *arguments: Any) -> Any:
        """tritonclient's own limits hold for each read from the socket; this one holds for the whole call."""
        try:
            with gevent.Timeout(timeout):
                return call(*arguments)
        except gevent.Timeout as error:
            raise TimeoutError from error


class _AsyncGrpcTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.grpc.aio.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGUMENTS)

    async def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        inputs = _wrapped(tritonclient.grpc.InferInput, tensors)
        result: Result = await self._client.infer(model, inputs, client_timeout=timeout)
        return result

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(await self._client.is_model_ready(model, client_timeout=timeout))

    async def close(self) -> None:
        await self._client.close()


class _AsyncHttpTransport:
    def __init__(self, url: str) -> None:
        # No limit on connections: one request each, and how many run at once is the caller's choice.
        self._client = tritonclient.http.aio.InferenceServerClient(url, conn_limit=0, conn_timeout=None)

    async def infer(self, model: str, tensors: Sequence[InputTensor], timeout: float | None) -> Result:
        inputs = _wrapped(tritonclient.http.InferInput, tensors)
        result: Result = await asyncio.wait_for(self._client.infer(model, inputs), timeout)
        return result

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(await asyncio.wait_for(self._client.is_model_ready(model), timeout))

    async def close(self) -> None:
        await self._client.close()
