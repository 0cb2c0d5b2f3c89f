"""Streams of a live server by bare gRPC and HTTP, as any caller may open them."""

from __future__ import annotations

import http.client
import json
import queue
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import tritonclient.grpc
from tritonclient.utils import np_to_triton_dtype

WAIT_S = 120.0  # for one response, on a busy machine
NAMES = {  # outputs of the stream, and their types
    "audio": np.float32,
    "sample_rate": np.int32,
    "used_seed": np.int64,
    "used_speaker": np.object_,
    "warning": np.object_,
    "refined_text": np.object_,
    "num_tokens": np.int32,
    "sentences": np.object_,
    "words": np.object_,
    "chunk_index": np.int32,
    "is_final": np.bool_,
}
Chunk = dict[str, Any]
"""Outputs of one response by name: audio as an array, all others as one value, text decoded, lists parsed."""


class StreamError(Exception):
    """An error response. gRPC's status is not in it: the header that asks for it crashes Triton 2.51 now and then."""


def tensors(inputs: Mapping[str, Any]) -> list[tritonclient.grpc.InferInput]:
    """The inputs of the contract; arrays go as they are, with the batch dimension."""
    result = []
    for name, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else _array(name, value)
        result.append(tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        result[-1].set_data_from_numpy(array)
    return result


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, str):
        return np.array([[value.encode()]], np.object_)
    types = {bool: np.bool_, float: np.float32, int: np.int64 if name == "seed" else np.int32}
    return np.array([[value]], types[type(value)])


def _values(arrays: Mapping[str, np.ndarray]) -> Chunk:
    values: Chunk = {name: array[0] if name == "audio" else array.item() for name, array in arrays.items()}
    return {name: _readable(name, value) for name, value in values.items()}


def _readable(name: str, value: Any) -> Any:
    text = value.decode() if isinstance(value, bytes) else value
    return json.loads(text) if name in ("sentences", "words") else text


def speak(grpc_url: str, **inputs: Any) -> Chunk:
    """The answer of `chattts`."""
    with tritonclient.grpc.InferenceServerClient(grpc_url) as client:
        result = client.infer("chattts", tensors(inputs), client_timeout=WAIT_S)
    return _values({name: result.as_numpy(name) for name in NAMES if name not in ("chunk_index", "is_final")})


class GrpcStream:
    """One request to `chattts_stream` over gRPC; iterating ends with the last chunk."""

    def __init__(self, url: str, inputs: Mapping[str, Any], model: str = "chattts_stream") -> None:
        self._client = tritonclient.grpc.InferenceServerClient(url)
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._has_ended = False
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))
        self._client.async_stream_infer(model, tensors(inputs))

    def __enter__(self) -> GrpcStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancel what is left of it, and close the connection.

        Once its last chunk or an error has come it ends by itself; cancelled then, it can crash Triton 2.51.
        """
        self._client.stop_stream(cancel_requests=not self._has_ended)
        self._client.close()

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            chunk = self.next()
            yield chunk
            if chunk["is_final"]:
                return

    def next(self) -> Chunk:
        """The next chunk.

        Raises:
            StreamError: the server answered with an error.
        """
        result, error = self._responses.get(timeout=WAIT_S)
        self._has_ended = error is not None or bool(result.as_numpy("is_final"))
        if error is not None:
            raise StreamError(error.message())
        arrays = {name: result.as_numpy(name) for name in NAMES}
        for name, array in arrays.items():
            assert array.dtype == NAMES[name]
            assert array.shape == ((1, array.shape[1]) if name == "audio" else (1, 1))
        return _values(arrays)


class HttpStream:
    """One request to `generate_stream` over HTTP; as `GrpcStream`."""

    def __init__(self, url: str, inputs: Mapping[str, Any], model: str = "chattts_stream") -> None:
        self._connection = http.client.HTTPConnection(url, timeout=WAIT_S)
        body = json.dumps(dict(inputs), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json"}
        self._connection.request("POST", f"/v2/models/{model}/generate_stream", body, headers)
        self._socket = self._connection.sock
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> HttpStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Drop the connection."""
        if self._socket is not None:
            # The response has a file of its own on the socket, so that closing alone would not end the connection.
            with suppress(OSError):  # the server was faster
                self._socket.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    __iter__ = GrpcStream.__iter__

    def next(self) -> Chunk:
        """The next chunk; errors as for `GrpcStream`."""
        if self._response is None:
            self._response = self._connection.getresponse()
        for line in self._response:
            text = line.decode().strip()
            if text:
                return self._chunk(text)
        raise StreamError("the connection ended")

    def _chunk(self, text: str) -> Chunk:
        values = json.loads(text.removeprefix("data: "))
        if "error" in values:
            raise StreamError(values["error"])
        chunk = {name: _readable(name, values[name]) for name in NAMES}
        return chunk | {"audio": np.array(chunk["audio"], np.float32)}


STREAMS = {"grpc": GrpcStream, "http": HttpStream}


def open_stream(server: Any, protocol: str, **inputs: Any) -> GrpcStream | HttpStream:
    """A stream of `server` over "grpc" or "http"."""
    return STREAMS[protocol](getattr(server, f"{protocol}_url"), inputs)


def read_stream(server: Any, protocol: str, **inputs: Any) -> list[Chunk]:
    """Every chunk of a stream.

    Raises:
        StreamError: it ended with an error.
    """
    with open_stream(server, protocol, **inputs) as stream:
        return list(stream)


def joined(chunks: list[Chunk]) -> Chunk:
    """What the contract says that the chunks of a stream add up to: the answer of `chattts`."""
    return {
        **{name: chunks[0][name] for name in ("sample_rate", "used_seed", "used_speaker", "warning")},
        "audio": np.concatenate([chunk["audio"] for chunk in chunks]),
        "num_tokens": sum(chunk["num_tokens"] for chunk in chunks),
        "refined_text": "\n".join(chunk["refined_text"] for chunk in chunks if chunk["refined_text"]),
        **{name: [one for chunk in chunks for one in chunk[name]] for name in ("sentences", "words")},
    }
