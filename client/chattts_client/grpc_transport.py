"""Calls over gRPC: tritonclient's, and its messages where tritonclient's own streams are not enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import grpc  # type: ignore[import-untyped]
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from chattts_client.options import InputTensor
from chattts_client.pieces import Pieces
from chattts_client.transport import Call, Result

T = TypeVar("T")
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),  # gRPC's limit of 4 MB is 43 s of audio
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),  # gRPC's 120 s would keep `wait_ready` from seeing a server that is up
    ("grpc.enable_http_proxy", 0),  # the HTTP clients do not read http_proxy either, and it breaks 127.0.0.1
]
CONTENTS = {  # the field of a gRPC tensor that holds the values of a datatype
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
}


@contextmanager
def _as_answers() -> Iterator[None]:
    """Raise gRPC's own errors as tritonclient does."""
    try:
        yield
    except grpc.RpcError as error:
        raise InferenceServerException(error.details(), status=error.code().name) from error


def _unary(call: Call) -> dict[str, Any]:
    """What tritonclient's `infer` takes."""
    arguments = call.arguments(tritonclient.grpc.InferInput, tritonclient.grpc.InferRequestedOutput)
    return arguments | {"client_timeout": call.timeout, "parameters": call.about.headers()}


def _stream(call: Call) -> dict[str, Any]:
    """What the stub's `ModelStreamInfer` takes beside its requests."""
    return {"timeout": call.timeout, "metadata": tuple(call.about.headers().items())}


def _request(call: Call, tensors: Sequence[InputTensor]) -> Any:
    """One request, each of whose tensors has one value."""
    request = service_pb2.ModelInferRequest(model_name=call.model, id=call.about.request_id)
    for name, value in call.about.headers().items():
        request.parameters[name].string_param = value
    for name, datatype, array in tensors:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        getattr(tensor.contents, CONTENTS[datatype]).append(array.item())
    return request


class _Requests:
    """Those of a blocking stream, which gRPC takes in a thread of its own. Pieces come in another one.

    So the requests can end, and with them the stream, while a piece is waited for.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._further: SimpleQueue[Sequence[InputTensor] | None] = SimpleQueue()  # None ends them
        self._has_ended, self._has_begun = Event(), Event()
        self._cancel: Callable[[], Any] | None = None

    def of(self, streamed: Any) -> None:
        """`streamed` is the stream, which is cancelled where its text breaks off."""
        self._cancel = streamed.cancel
        self._has_begun.set()

    def __iter__(self) -> Iterator[Any]:
        yield _request(self._call, self._call.tensors)
        if self._call.pieces is not None:
            Thread(target=self._take, args=(self._call.pieces,), name="pieces", daemon=True).start()
            while (tensors := self._further.get()) is not None:
                yield _request(self._call, tensors)

    def end(self) -> None:
        """There are no more."""
        self._has_ended.set()
        self._further.put(None)

    def _take(self, pieces: Pieces) -> None:
        for tensors in pieces:
            if self._has_ended.is_set():
                return
            self._further.put(tensors)
        if pieces.error is not None and self._has_begun.wait() and self._cancel is not None:
            self._cancel()
        self.end()


async def _write_all(streamed: Any, call: Call, has_ended: asyncio.Event) -> None:
    """Send the requests of a stream, until it `has_ended` or is cancelled.

    Only the wait for a piece is given up when it has ended: gRPC cancels a stream whose writing is.
    """
    with suppress(grpc.RpcError, asyncio.InvalidStateError):  # the stream has ended, and its answers say why
        try:
            await streamed.write(_request(call, call.tensors))
            if call.pieces is not None:
                async with aclosing(_until(has_ended, call.pieces.__aiter__())) as pieces:
                    async for tensors in pieces:
                        await streamed.write(_request(call, tensors))
                if call.pieces.error is not None:
                    streamed.cancel()
        finally:
            await streamed.done_writing()


async def _until(has_ended: asyncio.Event, pieces: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    ending = asyncio.ensure_future(has_ended.wait())
    async with aclosing(pieces):
        try:
            while not ending.done():
                further = asyncio.ensure_future(anext(pieces))
                try:
                    await asyncio.wait((further, ending), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    further.cancel()  # does nothing to one that is there
                    await asyncio.gather(further, return_exceptions=True)
                if further.cancelled() or isinstance(further.exception(), StopAsyncIteration):
                    return
                yield further.result()
        finally:
            ending.cancel()


class _GrpcAnswers:
    """The messages of a stream, as they come.

    An error stands in a message. It is raised when the stream has ended, since cancelling a stream at its end can crash
    Triton 2.51. The header `triton_grpc_error`, which asks for the error's status as the stream's own, can crash it as
    well (both measured).
    """

    def __init__(self, end_requests: Callable[[], Any]) -> None:
        """`end_requests` lets the stream end behind an error though its text goes on."""
        self._end_requests = end_requests
        self._failure: InferenceServerException | None = None

    def result(self, message: Any) -> Result | None:
        """The answer in `message`, None where it is an error or follows one."""
        if message.error_message and self._failure is None:
            self._failure = InferenceServerException(message.error_message)
            self._end_requests()
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
        self._client = tritonclient.grpc.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)
        # tritonclient's own call allows one stream a client. Channels with equal arguments share a connection.
        self._channel = grpc.insecure_channel(url, CHANNEL_ARGUMENTS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, call: Call) -> Result:
        result: Result = self._client.infer(**_unary(call))
        return result

    def stream(self, call: Call) -> Generator[Result, None, None]:
        requests = _Requests(call)
        streamed = self._stub.ModelStreamInfer(iter(requests), **_stream(call))
        requests.of(streamed)
        answers = _GrpcAnswers(requests.end)
        try:
            with _as_answers():
                for message in streamed:
                    result = answers.result(message)
                    if result is not None:
                        yield result
        finally:
            requests.end()
            streamed.cancel()  # does nothing to one that has ended
        answers.end()

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(self._client.is_model_ready(model, client_timeout=timeout))

    def close(self) -> None:
        self._client.close()
        self._channel.close()


class _AsyncGrpcTransport:
    def __init__(self, url: str) -> None:
        self._client = tritonclient.grpc.aio.InferenceServerClient(url, channel_args=CHANNEL_ARGUMENTS)
        self._channel = grpc.aio.insecure_channel(url, CHANNEL_ARGUMENTS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def infer(self, call: Call) -> Result:
        result: Result = await self._client.infer(**_unary(call))
        return result

    async def stream(self, call: Call) -> AsyncGenerator[Result, None]:
        streamed = self._stub.ModelStreamInfer(**_stream(call))
        has_ended = asyncio.Event()
        writing = asyncio.create_task(_write_all(streamed, call, has_ended))
        answers = _GrpcAnswers(has_ended.set)
        try:
            with _as_answers():
                async for message in streamed:
                    result = answers.result(message)
                    if result is not None:
                        yield result
        finally:
            streamed.cancel()  # does nothing to one that has ended
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        answers.end()

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        return bool(await self._client.is_model_ready(model, client_timeout=timeout))

    async def close(self) -> None:
        await self._client.close()
        await self._channel.close()


connect, connect_async = _GrpcTransport, _AsyncGrpcTransport  # each with the URL alone; nothing is sent yet
