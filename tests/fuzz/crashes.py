"""What is known to crash Triton 2.51 itself, and is therefore left out of the fuzzing: `--known-crashes` tries it.

All of it needs a caller who can reach the port. The header `triton_grpc_error` belongs here, too, but crashes only now
and then.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import grpc
from tritonclient.grpc import service_pb2_grpc

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.running import RunningServer
from tests.fuzz.calls import Call, Tensor, grpc_request, http_body, text_tensor

LOOK_S = 0.2
DEAD_WITHIN_S = 20.0
HUGE = 2**40


@dataclass(frozen=True)
class Crash:
    """One thing that ends tritonserver: why, as far as is known, and how it is sent."""

    name: str
    reason: str
    send: Callable[[RunningServer], None]


def _post(server: RunningServer, body: bytes, headers: str) -> None:
    host, _, port = server.http_url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=DEAD_WITHIN_S) as connection, suppress(OSError):
        connection.sendall(f"POST /v2/models/chattts/infer HTTP/1.1\r\nHost: fuzz\r\n{headers}\r\n\r\n".encode() + body)
        connection.recv(1)


def _claim(server: RunningServer) -> None:
    tokens = Tensor("max_new_tokens", "INT32", (1, HUGE), (4,))
    body, _ = http_body(Call("chattts", (text_tensor("text", "Hi."), tokens)), binary=False)
    _post(server, body, f"Content-Length: {len(body)}")


def _classify(server: RunningServer) -> None:
    tensors = (text_tensor("text", "Hi."), Tensor("skip_refine", "BOOL", (1, 1), (True,)))
    request = grpc_request(Call("chattts", tensors, outputs=("refined_text",)), typed=False)
    request.outputs[0].parameters["classification"].int64_param = 1
    with grpc.insecure_channel(server.grpc_url) as channel, suppress(grpc.RpcError):
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=DEAD_WITHIN_S)


def _many_chunks(server: RunningServer) -> None:
    _post(server, b"1\r\n \r\n" * 1_000_000 + b"0\r\n\r\n", "Transfer-Encoding: chunked")


def _two_lengths(server: RunningServer) -> None:
    body, _ = http_body(Call("chattts", (text_tensor("text", "Hi."),)), binary=False)
    _post(server, body, f"Content-Length: {2**31}\r\nContent-Length: {len(body)}")


KNOWN_CRASHES = (
    Crash(
        "a JSON shape beyond memory",
        "HTTP makes room for what the shape of a JSON tensor claims before it looks at the data (SIGSEGV, SIGABRT); "
        "shapes of some gigabytes take that memory and minutes",
        _claim,
    ),
    Crash(
        "classification of a STRING output",
        "the parameter `classification` of an output divides by the size of its type, which STRING has not (SIGFPE); "
        "over gRPC and HTTP",
        _classify,
    ),
    Crash(
        "a million HTTP chunks",
        "HTTP lays a table of the parts of a body on the stack, 16 bytes each (SIGSEGV from some 500,000 on)",
        _many_chunks,
    ),
    Crash(
        "a huge Content-Length beside the real one",
        "HTTP reads a body by the last Content-Length, or by its chunks, and makes room for what the first one says "
        "(SIGABRT)",
        _two_lengths,
    ),
)


def run(serve: Callable[[], AbstractContextManager[RunningServer]], say: Callable[[str], None]) -> int:
    """Try each with a server of its own; 1 where one crashes no more, and can be taken out of this list."""
    survived = 0
    for crash in KNOWN_CRASHES:
        with serve() as server:
            crash.send(server)
            has_died = _dies(server)
        say(f"{crash.name}: {'crashes' if has_died else 'survived, so take it out of the list'} ({crash.reason})")
        survived += not has_died
    return 1 if survived else 0


def _dies(server: RunningServer) -> bool:
    end = time.monotonic() + DEAD_WITHIN_S
    with suppress(ConfigError):
        first = server.pid
        while time.monotonic() < end:
            time.sleep(LOOK_S)
            if server.pid != first:
                return True
        return False
    return True
