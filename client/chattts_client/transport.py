"""The four clients of tritonclient behind two interfaces, one for each style of calling.

They know tensors and models, nothing of speech. Each raises what its library raises; `client.errors` maps it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from http.client import HTTPConnection
from typing import Any, Literal, Protocol

import aiohttp
import gevent  # type: ignore[import-untyped]
import grpc  # type: ignore[import-untyped]
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from chattts_client import events
from chattts_client.options import InputTensor
from chattts_client.tracing import About

ProtocolName = Literal["grpc", "http"]

GRPC_CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),  # gRPC's limit of 4 MB is 43 s of audio
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's 120 s would keep `wait_ready` from seeing a server that is up
    ("grpc.enable_http_proxy", 0),  # the HTTP clients do not read http_proxy either, and it breaks 127.0.0.1
]
READ_BYTES = 2**16  # most at once from a connection

CONTENTS = {  # the field of a gRPC tensor that holds the values of a datatype
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}


class Result(Protocol):
    """An answer of tritonclient."""

    def as_numpy(self, name: str) -> NDArray[Any] | None:
        """The array of output `name`, None where there is none."""


class Transport(Protocol):
    """Blocking calls; `timeout` is in seconds for the whole call, None for no limit."""

    def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        """Send one request and wait for its answer: all outputs, or `output` alone."""

    def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> Generator[Result, None, None]:
        """Send one request to a decoupled model and get its answers; closing the generator cancels the request."""

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether `model` can be called."""

    def close(self) -> None:
        """Give the connection back."""


class AsyncTransport(Protocol):
    """As `Transport`, on the running event loop."""

    async def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        """Send one request and wait for its answer: all outputs, or `output` alone."""

    def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> AsyncGenerator[Result, None]:
        """Send one request to a decoupled model and get its answers; closing the generator cancels the request."""

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


def _wanted(output_type: Any, output: str | None) -> list[Any] | None:
    """`output` in the `InferRequestedOutput` class of one protocol; None for all."""
    return None if output is None else [output_type(output)]


def _grpc_request(model: str, tensors: Sequence[InputTensor], about: About) -> Any:
    """The message of a stream's one request; each tensor has one value."""
    request = service_pb2.ModelInferRequest(model_name=model, id=about.request_id)
    for name, value in about.headers().items():
        request.parameters[name].string_param = value
    for name, datatype, array in tensors:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(tensor.contents, CONTENTS[datatype]).append(array.item())
    return request


class _GrpcAnswers:
    """The messages of a stream, as they come.

    An error stands in a message. It is raised when the stream has ended, since cancelling a stream at its end can crash
    Triton 2.51. The header `triton_grpc_error`, which asks for the error's status as the stream's own, can crash it as
    well (both measured).
    """

    def __init__(self) -> None:
        self._failure: InferenceServerException | None = None

    def result(self, message: Any) -> Result | None:
        """The answer in `message`, None where it is an error or follows one."""
        if message.error_message and self._failure is None:
            self._failure = InferenceServerException(message.error_message)
        if self._failure is not None:
            return None
        result: Result = tritonclient.grpc.InferResult(message.infer_response)
        return result

    def end(self) -> None:
        """Raise the error, where there was one."""
        if self._failure is not None:
            raise self._failure


class _GrpcTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGUMENTS)
        # tritonclient's own call allows one stream a client. Channels with equal arguments share a connection.
        self._channel = grpc.insecure_channel(url, GRPC_CHANNEL_ARGUMENTS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        inputs = _wrapped(tritonclient.grpc.InferInput, tensors)
        wanted = _wanted(tritonclient.grpc.InferRequestedOutput, output)
        result: Result = self._client.infer(
            model,
            inputs,
            outputs=wanted,
            request_id=about.request_id,
            client_timeout=timeout,
            headers=about.headers(),
            parameters=about.headers(),
        )
        return result

    def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> Generator[Result, None, None]:
        request, metadata = _grpc_request(model, tensors, about), tuple(about.headers().items())
        call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout, metadata=metadata)
        answers = _GrpcAnswers()
        try:
            for message in call:
                result = answers.result(message)
                if result is not None:
                    yield result
        finally:
            call.cancel()  # does nothing to one that has ended
        answers.end()

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(self._client.is_model_ready(model, client_timeout=timeout))

    def close(self) -> None:
        self._client.close()
        self._channel.close()


class _HttpTransport:
    def __init__(self, url: str) -> None:
        self._url = url
        self._client = tritonclient.http.InferenceServerClient(url, connection_timeout=None, network_timeout=None)

    def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        inputs = _wrapped(tritonclient.http.InferInput, tensors)
        wanted = _wanted(tritonclient.http.InferRequestedOutput, output)
        named = {"outputs": wanted, "request_id": about.request_id, "headers": about.headers()}
        result: Result = self._within(timeout, self._client.infer, model, inputs, **named)
        return result

    def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> Generator[Result, None, None]:
        clock = _Clock(timeout)
        connection = HTTPConnection(self._url, timeout=clock.left())
        try:
            headers = events.HEADERS | about.headers()
            connection.request("POST", events.path(model), events.body(tensors, about.request_id), headers)
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


class _AsyncGrpcTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.grpc.aio.InferenceServerClient(url, channel_args=GRPC_CHANNEL_ARGUMENTS)
        self._channel = grpc.aio.insecure_channel(url, GRPC_CHANNEL_ARGUMENTS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        inputs = _wrapped(tritonclient.grpc.InferInput, tensors)
        wanted = _wanted(tritonclient.grpc.InferRequestedOutput, output)
        result: Result = await self._client.infer(
            model,
            inputs,
            outputs=wanted,
            request_id=about.request_id,
            client_timeout=timeout,
            headers=about.headers(),
            parameters=about.headers(),
        )
        return result

    async def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> AsyncGenerator[Result, None]:
        request, metadata = _grpc_request(model, tensors, about), tuple(about.headers().items())
        call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout, metadata=metadata)
        answers = _GrpcAnswers()
        try:
            async for message in call:
                result = answers.result(message)
                if result is not None:
                    yield result
        finally:
            call.cancel()  # does nothing to one that has ended
        answers.end()

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(await self._client.is_model_ready(model, client_timeout=timeout))

    async def close(self) -> None:
        await self._client.close()
        await self._channel.close()


class _AsyncHttpTransport:
    def __init__(self, url: str) -> None:
        # No limit on connections: one request each, and how many run at once is the caller's choice.
        self._client = tritonclient.http.aio.InferenceServerClient(url, conn_limit=0, conn_timeout=None)
        self._session = aiohttp.ClientSession(f"http://{url}", connector=aiohttp.TCPConnector(limit=0))

    async def infer(
        self,
        model: str,
        tensors: Sequence[InputTensor],
        timeout: float | None,
        about: About,
        output: str | None = None,
    ) -> Result:
        inputs = _wrapped(tritonclient.http.InferInput, tensors)
        wanted = _wanted(tritonclient.http.InferRequestedOutput, output)
        named = {"outputs": wanted, "request_id": about.request_id, "headers": about.headers()}
        call = self._client.infer(model, inputs, **named)
        result: Result = await asyncio.wait_for(call, timeout)
        return result

    async def stream(
        self, model: str, tensors: Sequence[InputTensor], timeout: float | None, about: About
    ) -> AsyncGenerator[Result, None]:
        response = await self._session.post(
            events.path(model),
            data=events.body(tensors, about.request_id),
            headers=events.HEADERS | about.headers(),
            timeout=aiohttp.ClientTimeout(total=timeout),
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
        return bool(await asyncio.wait_for(self._client.is_model_ready(model), timeout))

    async def close(self) -> None:
        await self._client.close()
        await self._session.close()
