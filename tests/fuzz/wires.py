"""Sends a call, or bytes that are none, to a server, and reads what comes back as an `Answer`."""

from __future__ import annotations

import http.client
import json
import select
import socket
import struct
import time
from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import triton_to_np_dtype

from chattts_serving.launcher.running import RunningServer
from tests.fuzz.answers import OF_A_STREAM, OK, Answer, Outputs
from tests.fuzz.calls import Call, generate_body, grpc_request, http_body, http_path

LIMIT_S = 120.0  # for any answer, on a busy machine
PATIENCE_S = 0.2  # for an answer to bytes that may be incomplete
SERVICE = "/inference.GRPCInferenceService/"
CHANNEL_OPTIONS = [
    *(("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)),
    ("grpc.use_local_subchannel_pool", 1),  # connections of its own, which end with the channel
    ("grpc.enable_http_proxy", 0),
]


class SilenceError(Exception):
    """No answer within LIMIT_S."""


class Wire(Protocol):
    """A way to send a call."""

    def __call__(self, call: Call) -> Answer:
        """The answer to `call`.

        Raises:
            SilenceError: there is none.
            OSError: the connection broke.
        """


class Wires:
    """All ways to one server. gRPC keeps its connection, HTTP takes one for each call."""

    def __init__(self, server: RunningServer) -> None:
        self._http_url = server.http_url
        self._channel = grpc.insecure_channel(server.grpc_url, CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.whole: Mapping[str, Wire] = {
            "grpc": lambda call: self._grpc(call, typed=False),
            "grpc, typed": lambda call: self._grpc(call, typed=True),
            "http, JSON": lambda call: self._http(call, binary=False),
            "http, binary": lambda call: self._http(call, binary=True),
            "grpc, stream": self._grpc_stream,
        }
        self.streams: Mapping[str, Wire] = {"grpc, stream": self._grpc_stream, "http, stream": self._http_stream}

    def close(self) -> None:
        self._channel.close()

    def _grpc(self, call: Call, *, typed: bool) -> Answer:
        request = grpc_request(call, typed=typed)
        try:
            message = self._stub.ModelInfer(request, timeout=LIMIT_S)
        except grpc.RpcError as error:
            return refusal(error)
        return Answer(OK, responses=(_grpc_outputs(message),))

    def _grpc_stream(self, call: Call) -> Answer:
        responses = []
        try:
            for message in self._stub.ModelStreamInfer(iter([grpc_request(call, typed=False)]), timeout=LIMIT_S):
                if message.error_message:
                    return Answer(OF_A_STREAM, message.error_message)
                responses.append(_grpc_outputs(message.infer_response))
        except grpc.RpcError as error:
            return refusal(error)
        return Answer(OK, responses=tuple(responses))

    def grpc_bytes(self, method: str, body: bytes, *, streams: bool = False) -> Answer:
        """The answer to `body` in place of a message of `method`; its responses are not read."""
        kind = self._channel.stream_stream if streams else self._channel.unary_unary
        call = kind(SERVICE + method, request_serializer=bytes, response_deserializer=bytes)
        try:
            if streams:
                for response in call(iter([body]), timeout=LIMIT_S):
                    message = service_pb2.ModelStreamInferResponse.FromString(response).error_message
                    if message:
                        return Answer(OF_A_STREAM, message)
            else:
                call(body, timeout=LIMIT_S)
        except grpc.RpcError as error:
            return refusal(error)
        return Answer(OK)

    def grpc_cancelled(self, call: Call, after_s: float, *, streams: bool) -> None:
        """Send `call` and cancel it `after_s` seconds later."""
        request = grpc_request(call, typed=False)
        running = self._stub.ModelStreamInfer(iter([request])) if streams else self._stub.ModelInfer.future(request)
        time.sleep(after_s)
        running.cancel()

    def _http(self, call: Call, *, binary: bool) -> Answer:
        body, headers = http_body(call, binary=binary)
        with self._posted(http_path(call, "infer"), body, headers) as response:
            answer = response.read()
        if response.status != http.client.OK:
            return Answer(str(response.status), _http_message(answer))
        return Answer(OK, responses=(_http_outputs(answer),))

    def _http_stream(self, call: Call) -> Answer:
        headers = {"Content-Type": "application/json"}
        with self._posted(http_path(call, "generate_stream"), generate_body(call), headers) as response:
            lines = [line.decode(errors="replace").strip() for line in response]
        events = [line.removeprefix("data: ") for line in lines if line]
        if response.status != http.client.OK:
            return Answer(str(response.status), _http_message("\n".join(events).encode()))
        responses = []
        for event in events:
            values = json.loads(event)
            if "error" in values:
                return Answer(OF_A_STREAM, values["error"])
            responses.append(_event_outputs(values))
        return Answer(OK, responses=tuple(responses))

    def _posted(self, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self._http_url, timeout=LIMIT_S)
        try:
            connection.request("POST", path, body, {**headers, "Connection": "close"})
            return connection.getresponse()
        except TimeoutError as error:
            raise SilenceError(f"POST {path}") from error


def refusal(error: grpc.RpcError) -> Answer:
    """The answer that `error` is.

    Raises:
        SilenceError: it is that there was none in time.
        OSError: it is that the connection broke.
    """
    status, message = error.code().name, error.details() or ""
    if status == "DEADLINE_EXCEEDED":
        raise SilenceError(message)
    if status == "UNAVAILABLE" and any(word in message for word in ("Socket closed", "connect", "recvmsg", "GOAWAY")):
        raise OSError(message)
    return Answer(status, message)


class Ending(Enum):
    """What a raw connection does after its last byte."""

    WAIT = "wait a moment, then say that nothing more comes"
    HALF_CLOSE = "say at once that nothing more comes"
    RESET = "reset"
    ABANDON = "keep it open, unread"


def http_bytes(url: str, parts: tuple[bytes, ...], ending: Ending, abandoned: list[socket.socket]) -> Answer | None:
    """Send `parts` one by one over a connection of its own; the first answer, or None where the server just hung up.

    `abandoned` keeps what is kept open.

    Raises:
        SilenceError: the server neither answered nor hung up.
    """
    host, _, port = url.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=LIMIT_S)
    if ending is Ending.ABANDON:
        abandoned.append(connection)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts:
                connection.sendall(part)
            if ending is Ending.HALF_CLOSE or (ending is Ending.WAIT and not _is_answered(connection)):
                connection.shutdown(socket.SHUT_WR)
        except TimeoutError as error:
            raise SilenceError("a raw HTTP connection that is not read") from error
        except OSError:  # the server has heard enough, and may have answered
            pass
        if ending in (Ending.RESET, Ending.ABANDON):
            return None
        return _first_answer(connection)
    finally:
        if ending is Ending.RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if ending is not Ending.ABANDON:
            connection.close()


def _is_answered(connection: socket.socket) -> bool:
    """Whether something comes within PATIENCE_S."""
    readable, _, _ = select.select([connection], [], [], PATIENCE_S)
    return bool(readable)


def _first_answer(connection: socket.socket) -> Answer | None:
    response = http.client.HTTPResponse(connection)
    try:
        response.begin()
        body = response.read()
    except TimeoutError as error:
        raise SilenceError("a raw HTTP connection") from error
    except (http.client.HTTPException, OSError):
        return None
    finally:
        response.close()
    if response.status < http.client.BAD_REQUEST:
        return Answer(OK)
    message = body.decode(errors="replace")
    return Answer(str(response.status), message or response.reason)


def _grpc_outputs(message: service_pb2.ModelInferResponse) -> Outputs:
    result = InferResult(message)
    return {output.name: result.as_numpy(output.name) for output in message.outputs}


def _http_outputs(answer: bytes) -> Outputs:
    values = json.loads(answer)
    outputs = {}
    for output in values["outputs"]:
        if output["datatype"] == "BYTES":
            array = np.array([text.encode() for text in output["data"]], np.object_)
        else:
            array = np.array(output["data"], triton_to_np_dtype(output["datatype"]))
        outputs[output["name"]] = array.reshape(output["shape"])
    return outputs


def _event_outputs(values: Mapping[str, Any]) -> Outputs:
    """Tensors of an event, which has values alone."""
    outputs: dict[str, np.ndarray] = {}
    for name, value in values.items():
        if name in ("model_name", "model_version", "sequence_id", "sequence_start", "sequence_end", "id"):
            continue
        if name == "audio":
            outputs[name] = np.array(value if isinstance(value, list) else [value], np.float32)[np.newaxis]
        else:
            outputs[name] = np.array([[value.encode() if isinstance(value, str) else value]])
    return outputs


def _http_message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")
