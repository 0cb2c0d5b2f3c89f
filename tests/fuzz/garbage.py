"""Bytes that are no request: HTTP and gRPC that are cut, bent or junk, and callers who leave in the middle.

What is known to crash Triton 2.51 is left out (`tests.fuzz.crashes`): JSON shapes beyond memory, `classification` of a
STRING output, hundreds of thousands of HTTP chunks in one body, and a huge Content-Length beside the body's real one.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.calls import Call, Tensor, generate_body, grpc_request, http_body, http_path, text_tensor
from tests.fuzz.values import MOST_CLAIMED, often
from tests.fuzz.wires import Ending

GOOD = Call(
    "chattts",
    (
        text_tensor("text", "Hello there."),
        Tensor("skip_refine", "BOOL", (1, 1), (True,)),
        Tensor("max_new_tokens", "INT32", (1, 1), (4,)),
    ),
    outputs=("num_tokens", "audio"),
)
GOOD_STREAM = Call("chattts_stream", GOOD.tensors)
MOST_CHUNKS = 2_000
MOST_LENGTH = 10**6  # of a Content-Length that is not the only word on the body's length
BOMB_BYTES = 20_000_000  # of a few kilobytes of gzip


@dataclass(frozen=True)
class RawHttp:
    """Bytes for the HTTP port, sent in `parts`, and what the caller does then."""

    parts: tuple[bytes, ...]
    ending: Ending


@dataclass(frozen=True)
class RawGrpc:
    """Bytes in place of the message of a method."""

    method: str
    body: bytes
    streams: bool = False


@dataclass(frozen=True)
class Cancelled:
    """A good call that is cancelled after a while."""

    call: Call
    after_s: float
    streams: bool


def _request(
    body: bytes,
    headers: Sequence[str] = (),
    *,
    path: str = "/v2/models/chattts/infer",
    method: str = "POST",
    length: object = None,
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: fuzz", "Connection: close"]
    if length is None:
        lines.append(f"Content-Length: {len(body)}")
    elif length != "":
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1", "replace") + body


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_JSON_BODY = http_body(GOOD, binary=False)[0]
_BINARY_BODY, _BINARY_HEADERS = http_body(GOOD, binary=True)
_STREAM_BODY = generate_body(GOOD_STREAM)
_STREAM_PATH = http_path(GOOD_STREAM, "generate_stream")
_LENGTHS = (
    0,
    1,
    -1,
    5,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    2**64 + 1,
    "x",
    "",
    "0x10",
    "1e3",
    "5, 5",
    " 7",
    "+7",
    "\x00",
)
_JUNK: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**31, 2**32 + 4, 2**63, 2**64, 0.5, -1e300, "", "x", "4", "\0", "é"),
    *([], [[]], [None], [1, 2], [[[[1]]]], ["a", "b"], {}, {"a": {}}, [{}], [1.5], [True], [-(2**63)]),
)


@st.composite
def _bent_json(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with a value somewhere in it replaced, taken away or joined by another, or no JSON any more."""
    what = draw(st.sampled_from(["value", "value", "value", "value", "cut", "byte", "odd"]))
    if what == "cut":
        return good[: draw(st.integers(0, len(good) - 1))]
    if what == "byte":
        place = draw(st.integers(0, len(good) - 1))
        return good[:place] + bytes([draw(st.integers(0, 255))]) + good[place + 1 :]
    if what == "odd":
        odd = [
            b"",
            b"null",
            b"[]",
            b"{}",
            b"0",
            b'"x"',
            b"[" * 20_000,
            b'{"a":' * 20_000,
            b"\xef\xbb\xbf{}",
            b"NaN",
            b"\0",
        ]
        return draw(
            st.sampled_from([*odd, good + b"junk", good + good, b'{"text":"\\ud800"}', b'{"text":"a","text":"b"}'])
        )
    values = json.loads(good)
    node: Any = values
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], (dict, list)) or not node[key] or draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    how = draw(st.sampled_from(["replace", "replace", "delete", "add"]))
    if how == "replace":
        node[key] = draw(st.sampled_from(_JUNK))
    elif how == "delete":
        del node[key]
    elif isinstance(node, list):
        node.append(draw(st.sampled_from(_JUNK)))
    else:
        node[draw(st.sampled_from(["id", "parameters", "outputs", "shape", "data", "more", ""]))] = draw(
            st.sampled_from(_JUNK)
        )
    return json.dumps(values).encode()


def _is_harmless(body: bytes) -> bool:
    """Whether no shape in it claims what Triton 2.51 would take memory for."""
    try:
        inputs = json.loads(body)["inputs"]
        shapes = [
            entry["shape"] for entry in inputs if isinstance(entry, dict) and isinstance(entry.get("shape"), list)
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return True
    return all(not isinstance(size, (int, float)) or size <= MOST_CLAIMED for shape in shapes for size in shape)


@st.composite
def _message_with_length(draw: st.DrawFn) -> bytes:
    """A Content-Length that is none or not the body's, alone or beside another word on the length."""
    length = draw(st.sampled_from(_LENGTHS))
    others = ["Content-Length: 5", "Transfer-Encoding: chunked", "Transfer-Encoding: foo"]
    is_huge = isinstance(length, int) and length > MOST_LENGTH
    return _request(_JSON_BODY, draw(st.lists(st.sampled_from(others), max_size=0 if is_huge else 1)), length=length)


@st.composite
def _binary_message(draw: st.DrawFn) -> bytes:
    """Tensors as bytes, whose sizes or header length do not fit."""
    header_length = int(_BINARY_HEADERS["Inference-Header-Content-Length"])
    header, payload = _BINARY_BODY[:header_length], _BINARY_BODY[header_length:]
    what = draw(st.sampled_from(["size", "payload", "length"]))
    if what == "size":
        values = json.loads(header)
        entry = draw(st.sampled_from(values["inputs"]))
        entry["parameters"]["binary_data_size"] = draw(
            st.sampled_from([0, 1, 3, 5, 8, 2**31, 2**32, 2**62, 2**63, 2**64, -1, "4", None, [], 4.0])
        )
        header = json.dumps(values).encode()
    elif what == "payload":
        payload = draw(st.one_of(st.just(payload[:-1]), st.binary(max_size=30), st.just(payload + b"\0")))
    length: object = len(header)
    if what == "length":
        length = draw(
            st.sampled_from(
                [0, -1, header_length - 1, header_length + 1, header_length + 10**6, 2**31, 2**63, 2**64, "x", ""]
            )
        )
    return _request(header + payload, [f"Inference-Header-Content-Length: {length}"])


@st.composite
def _compressed_message(draw: st.DrawFn) -> bytes:
    bodies = [
        *(gzip.compress(_JSON_BODY), zlib.compress(_JSON_BODY), _JSON_BODY, b""),
        *(gzip.compress(b" " * BOMB_BYTES), gzip.compress(gzip.compress(_JSON_BODY))),
        gzip.compress(_JSON_BODY.replace(b"Hello", b"x" * BOMB_BYTES)),
    ]
    body = draw(st.sampled_from(bodies))
    if draw(st.booleans()) and body:
        place = draw(st.integers(0, min(len(body), 300) - 1))
        body = draw(st.sampled_from([body[:place], body[:place] + b"\xff" + body[place + 1 :]]))
    encoding = draw(st.sampled_from(["gzip", "gzip", "deflate", "br", "identity", "gzip, gzip", "x" * 500, "GZIP"]))
    return _request(body, [f"Content-Encoding: {encoding}"])


@st.composite
def _chunked_message(draw: st.DrawFn) -> bytes:
    headers = ["Transfer-Encoding: chunked"]
    what = draw(st.sampled_from(["cut", "size", "many", "trailer"]))
    if what == "cut":
        size = draw(st.integers(1, 50))
        chunks = [_chunk(_JSON_BODY[place : place + size]) for place in range(0, len(_JSON_BODY), size)]
        return _request(b"".join([*chunks, b"0\r\n\r\n"][: draw(st.integers(0, len(chunks) + 1))]), headers, length="")
    if what == "size":
        length = draw(
            st.sampled_from(
                [b"zz", b"-5", b"", b" 5", b"5;a=b", b"7fffffffffffffff", b"ffffffffffffffff", b"1" * 400, b"0x5"]
            )
        )
        return _request(length + b"\r\nhello\r\n0\r\n\r\n", headers, length="")
    if what == "many":
        return _request(
            _chunk(b" ") * draw(st.integers(1, MOST_CHUNKS)) + _chunk(_JSON_BODY) + b"0\r\n\r\n", headers, length=""
        )
    trailer = draw(
        st.sampled_from([b"X: y\r\n", b"Content-Length: 5\r\n", b"junk\r\n", b"X: " + b"y" * 100_000 + b"\r\n"])
    )
    return _request(_chunk(_JSON_BODY) + b"0\r\n" + trailer + b"\r\n", headers, length="")


@st.composite
def _message_with_headers(draw: st.DrawFn) -> bytes:
    odd = [
        *(f"X-Many-{number}: x" for number in range(3)),
        *(
            "X: " + "x" * 10_000,
            "X: " + "x" * 200_000,
            "x" * 70_000 + ": x",
            ": x",
            "no colon",
            " folded",
            "X:\x00",
            "X: \x7f\xe9",
        ),
        *("Expect: 100-continue", "Expect: x", "Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "Host: other"),
        *(
            "Accept-Encoding: gzip",
            "Accept-Encoding: br;q=0",
            "Content-Type: text/plain",
            "triton-request-id: x",
            "Range: bytes=0-5",
        ),
        *(
            "Inference-Header-Content-Length: 5",
            "Content-Length: 99",
            "Transfer-Encoding: identity",
            "timeout: -1",
            "restricted-key: x",
        ),
    ]
    headers = draw(st.lists(st.sampled_from(odd), min_size=1, max_size=4)) * draw(
        often(st.just(1), st.just(500), share=12)
    )
    return _request(_JSON_BODY, headers)


@st.composite
def _message_with_line(draw: st.DrawFn) -> bytes:
    """Another method, path or version."""
    models = [
        *("chattts", "chattts_stream", "nope", "", "%00", "..", "..%2f..", "a b", "é", "x" * 5_000, "chattts%00"),
        "*",
    ]
    ends = [
        "infer",
        "generate",
        "generate_stream",
        "ready",
        "config",
        "stats",
        "infer/",
        "nope",
        "versions/1/infer",
        "versions/x/infer",
    ]
    other = [
        *(
            "/",
            "//",
            "*",
            "",
            "/v2",
            "/v2/",
            "/v2/health/live",
            "/v2/health/ready",
            "/v2/models",
            "/v2/models/stats",
            "/metrics",
        ),
        *(
            "/v2/models/chattts/versions/99999999999999999999/infer",
            "/v2/repository/index",
            "http://fuzz/v2",
            "/v2?x=y",
            "/%zz",
        ),
        *(
            "/v2/repository/models/chattts/unload",
            "/v2/systemsharedmemory/status",
            "/v2/systemsharedmemory/region/x/register",
        ),
        *(
            "/v2/cudasharedmemory/region/x/register",
            "/v2/trace/setting",
            "/v2/logging",
            "/v2/models/chattts/trace/setting",
        ),
    ]
    path = draw(
        st.one_of(
            st.sampled_from(other), st.builds("/v2/models/{}/{}".format, st.sampled_from(models), st.sampled_from(ends))
        )
    )
    methods = [
        "POST",
        "GET",
        "PUT",
        "DELETE",
        "HEAD",
        "OPTIONS",
        "TRACE",
        "CONNECT",
        "PATCH",
        "FOO",
        "",
        "post",
        "P\x00ST",
    ]
    body = draw(st.sampled_from([b"", b"{}", _JSON_BODY, _STREAM_BODY]))
    message = _request(body, path=path, method=draw(st.sampled_from(methods)))
    return message.replace(
        b"HTTP/1.1", draw(st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/0.9", b"HTTP/9.9", b"", b"HTTP/1.1 x"])), 1
    )


_TLS = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
_HTTP_MESSAGES = st.one_of(
    _bent_json(_JSON_BODY).filter(_is_harmless).map(_request),
    _bent_json(_STREAM_BODY).map(lambda body: _request(body, path=_STREAM_PATH)),
    _message_with_length(),
    _binary_message(),
    _compressed_message(),
    _chunked_message(),
    _message_with_headers(),
    _message_with_line(),
    st.binary(max_size=200),
    st.sampled_from([_TLS, _HTTP2, b"\r\n" * 500, b"GET /v2\r\n\r\n", b"\0" * 5_000]),
)


@st.composite
def http_garbage(draw: st.DrawFn) -> RawHttp:
    """Bytes for the HTTP port: bent messages, cut ones, several at once, and how the caller leaves."""
    good = [_request(_JSON_BODY), _request(_STREAM_BODY, path=_STREAM_PATH)]
    message = draw(often(_HTTP_MESSAGES, st.sampled_from(good), share=8))
    what = draw(st.sampled_from(["whole", "whole", "whole", "cut", "pipelined", "split"]))
    # What is cut ends with its last byte: nobody waits out a body that does not come.
    usual = st.just(Ending.HALF_CLOSE if what == "cut" else Ending.WAIT)
    endings = often(usual, st.sampled_from([Ending.HALF_CLOSE, Ending.RESET, Ending.ABANDON]), share=5)
    parts: tuple[bytes, ...] = (message,)
    if what == "cut":
        parts = (message[: draw(st.integers(0, max(0, len(message) - 1)))],)
    elif what == "pipelined":
        first = _request(_JSON_BODY).replace(b"Connection: close\r\n", b"")
        parts = (first * draw(st.integers(1, 3)) + message,)
    elif what == "split":
        place = draw(st.integers(0, len(message)))
        parts = (message[:place], message[place:])
    return RawHttp(parts, draw(endings))


_METHODS = (
    *(
        "ModelInfer",
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelConfig",
        "ModelStatistics",
    ),
    *(
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "TraceSetting",
        "LogSettings",
    ),
    *("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister", "CudaSharedMemoryRegister", "NoSuchMethod", ""),
)


@st.composite
def grpc_garbage(draw: st.DrawFn) -> RawGrpc:
    """Bytes in place of protobuf, most of them bent from a good message."""
    streams = draw(st.booleans())
    method = "ModelStreamInfer" if streams else draw(often(st.just("ModelInfer"), st.sampled_from(_METHODS), share=4))
    good = grpc_request(draw(st.sampled_from([GOOD, GOOD_STREAM])), typed=draw(st.booleans()))
    what = draw(st.sampled_from(["raw", "raw", "bytes", "cut", "flip", "insert", "junk"]))
    if what == "raw":
        contents = [*good.raw_input_contents] or [b"\0\0\0\0"]
        count = draw(st.integers(0, 6))
        del good.raw_input_contents[:]
        good.raw_input_contents.extend(
            draw(st.one_of(st.sampled_from(contents), st.binary(max_size=12))) for _ in range(count)
        )
    body = good.SerializeToString()
    place = draw(st.integers(0, len(body) - 1))
    if what == "bytes":
        body = body[:place] + bytes([draw(st.integers(0, 255))]) + body[place + 1 :]
    elif what == "cut":
        body = body[:place]
    elif what == "flip":
        body = body[:place] + bytes([body[place] ^ 1 << draw(st.integers(0, 7))]) + body[place + 1 :]
    elif what == "insert":
        body = body[:place] + draw(st.binary(min_size=1, max_size=9)) + body[place:]
    elif what == "junk":
        body = draw(
            st.one_of(
                st.binary(max_size=60), st.sampled_from([b"\x0a\xff\xff\xff\xff\x0f", b"\x0a" * 99, b"\x0b" * 20_000])
            )
        )
    return RawGrpc(method, body, streams)


def cancelled() -> st.SearchStrategy[Cancelled]:
    """Calls of some hundred tokens that are cancelled early, late or at once."""
    tokens = Tensor("max_new_tokens", "INT32", (1, 1), (300,))
    calls = [Call(model, (*GOOD.tensors[:2], tokens)) for model in ("chattts", "chattts_stream")]
    delays = st.integers(0, 200).map(lambda milliseconds: milliseconds / 1_000)
    return st.builds(lambda streams, after_s: Cancelled(calls[streams], after_s, streams), st.booleans(), delays)
