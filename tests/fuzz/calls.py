"""A call of one model as data, and its four encodings: gRPC with raw or typed tensors, HTTP with JSON or binary ones.

A `Call` says what is sent, right or wrong, and what the contract says of it. Its repr is the reproduction that a
failure prints.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

Element = bytes | int | float | bool
Parameter = bool | int | float | str

NUMPY_TYPES = {"INT64": "<i8", "INT32": "<i4", "FP32": "<f4", "FP64": "<f8", "FP16": "<f2", "UINT8": "u1", "BOOL": "?"}
TYPED_CONTENTS = {
    "BYTES": "bytes_contents",
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "UINT8": "uint_contents",
}


class Expected(Enum):
    """What the contract says of a call."""

    ANSWER = "answer"
    REFUSAL = "refusal"
    EITHER = "either"  # only the server knows, such as whether a text has a word in it


def both(first: Expected, second: Expected) -> Expected:
    """What holds for a call of two parts: one that must be refused decides."""
    for expected in (Expected.REFUSAL, Expected.EITHER):
        if expected in (first, second):
            return expected
    return Expected.ANSWER


@dataclass(frozen=True)
class Tensor:
    """An input as it is sent, the batch dimension included; `raw` replaces the bytes of `values` in binary forms."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Element, ...]
    raw: bytes | None = None

    @property
    def payload(self) -> bytes:
        """The tensor as bytes, as Triton's binary forms have it."""
        if self.raw is not None:
            return self.raw
        if self.datatype in NUMPY_TYPES:
            return np.array(self.values, NUMPY_TYPES[self.datatype]).tobytes()
        return b"".join(struct.pack("<I", len(value)) + value for value in self.values if isinstance(value, bytes))


@dataclass(frozen=True)
class Call:
    """One request to one model.

    Attributes:
        model, version, tensors: as they are sent.
        outputs: names of those that are asked for; none means all.
        parameters: of the request.
        expected: what the contract says.
        blames: a refusal names one of these, unless it is empty.
    """

    model: str
    tensors: tuple[Tensor, ...]
    version: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    expected: Expected = Expected.EITHER
    blames: tuple[str, ...] = ()

    def value(self, name: str, default: Any = None) -> Any:
        """The one value of the input `name`, or `default`."""
        return next((tensor.values[0] for tensor in self.tensors if tensor.name == name and tensor.values), default)


def grpc_request(call: Call, *, typed: bool) -> service_pb2.ModelInferRequest:
    """The protobuf message of `call`, its tensors in fields of their type or as bytes.

    Raises:
        ValueError: protobuf cannot hold it.
    """
    request = service_pb2.ModelInferRequest(model_name=call.model, model_version=call.version)
    for tensor in call.tensors:
        message = request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if typed and tensor.datatype in TYPED_CONTENTS:
            getattr(message.contents, TYPED_CONTENTS[tensor.datatype]).extend(tensor.values)
        else:
            request.raw_input_contents.append(tensor.payload)
    for name in call.outputs:
        request.outputs.add(name=name)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in call.parameters.items():
        setattr(request.parameters[name], kinds[type(value)], value)
    return request


def http_path(call: Call, method: str) -> str:
    """The path of `call` for `method`: "infer" or "generate_stream"."""
    version = f"/versions/{call.version}" if call.version else ""
    return f"/v2/models/{call.model}{version}/{method}"


def http_body(call: Call, *, binary: bool) -> tuple[bytes, dict[str, str]]:
    """Body and headers of `call` for HTTP's `infer`, its tensors as JSON or as bytes behind it."""
    inputs: list[dict[str, Any]] = []
    payloads = []
    for tensor in call.tensors:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if binary:
            payloads.append(tensor.payload)
            entry["parameters"] = {"binary_data_size": len(payloads[-1])}
        else:
            entry["data"] = [_json_value(value) for value in tensor.values]
        inputs.append(entry)
    values: dict[str, Any] = {"inputs": inputs}
    if call.outputs:
        values["outputs"] = [{"name": name} for name in call.outputs]
    if call.parameters:
        values["parameters"] = dict(call.parameters)
    body = _json(values)
    headers = {"Content-Type": "application/json"}
    if binary:
        headers = {"Inference-Header-Content-Length": str(len(body))}
    return body + b"".join(payloads), headers


def generate_body(call: Call) -> bytes:
    """Body of `call` for HTTP's `generate_stream`, which knows no shapes: one value, or a list of several."""
    values: dict[str, Any] = dict(call.parameters)
    for tensor in call.tensors:
        data = [_json_value(value) for value in tensor.values]
        values[tensor.name] = data[0] if len(data) == 1 else data
    return _json(values)


def _json_value(value: Element) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _json(values: Mapping[str, Any]) -> bytes:
    # Bytes that are no UTF-8 go as they are, which JSON forbids and Triton passes on.
    return json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")


def text_tensor(name: str, text: str | bytes) -> Tensor:
    """One STRING."""
    return Tensor(name, "BYTES", (1, 1), (text if isinstance(text, bytes) else text.encode(),))


def float_tensor(name: str, shape: Sequence[int], values: Sequence[float]) -> Tensor:
    """FP32 values of `shape`."""
    return Tensor(name, "FP32", tuple(shape), tuple(values))
