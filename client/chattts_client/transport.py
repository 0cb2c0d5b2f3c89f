"""What carries calls to the server, behind two interfaces, one for each style of calling.

They know tensors and models, nothing of speech. Each raises what `client.errors` maps: tritonclient's exception for an
answer that is an error, TimeoutError, or OSError and HTTPException for a connection that broke.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from chattts_client.options import InputTensor
from chattts_client.pieces import Pieces
from chattts_client.tracing import NOTHING, About

ProtocolName = Literal["grpc", "http"]


@dataclass(frozen=True)
class Call:
    """One request of a model.

    Attributes:
        model: its name.
        tensors: its inputs.
        timeout: seconds for the whole call, None for no limit.
        about: what it says of itself besides.
        output: the one that is wanted, None for all.
        pieces: of a stream's text, which are sent while it is heard; None where `tensors` have all of it.
    """

    model: str
    tensors: Sequence[InputTensor]
    timeout: float | None
    about: About = NOTHING
    output: str | None = None
    pieces: Pieces | None = None

    def arguments(self, input_type: Any, output_type: Any) -> dict[str, Any]:
        """What tritonclient's `infer` takes, with the `InferInput` and `InferRequestedOutput` classes of a protocol."""
        return {
            "model_name": self.model,
            "inputs": [
                input_type(name, list(array.shape), datatype).set_data_from_numpy(array)
                for name, datatype, array in self.tensors
            ],
            "outputs": None if self.output is None else [output_type(self.output)],
            "request_id": self.about.request_id,
            "headers": self.about.headers(),
        }


class Result(Protocol):
    """An answer of tritonclient."""

    def as_numpy(self, name: str) -> NDArray[Any] | None:
        """The array of output `name`, None where there is none."""


class Transport(Protocol):
    """Blocking calls."""

    def infer(self, call: Call) -> Result:
        """Send one request and wait for its answer."""

    def stream(self, call: Call) -> Generator[Result, None, None]:
        """Send one request to a decoupled model and get its answers; closing the generator cancels the request."""

    def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether `model` can be called."""

    def close(self) -> None:
        """Give the connection back."""


class AsyncTransport(Protocol):
    """As `Transport`, on the running event loop."""

    async def infer(self, call: Call) -> Result:
        """Send one request and wait for its answer."""

    def stream(self, call: Call) -> AsyncGenerator[Result, None]:
        """Send one request to a decoupled model and get its answers; closing the generator cancels the request."""

    async def is_model_ready(self, model: str, timeout: float | None) -> bool:
        """Whether `model` can be called."""

    async def close(self) -> None:
        """Give the connections back."""


# What a protocol needs is imported with its first connection: the libraries of both take 0.2 s of a core (measured).


def connect(protocol: ProtocolName, url: str) -> Transport:
    """A transport to `url`; nothing is sent yet."""
    if protocol == "grpc":
        from chattts_client import grpc_transport  # noqa: PLC0415

        return grpc_transport.connect(url)
    from chattts_client import http_transport  # noqa: PLC0415

    return http_transport.connect(url)


def connect_async(protocol: ProtocolName, url: str) -> AsyncTransport:
    """A transport to `url` for the running event loop; nothing is sent yet."""
    if protocol == "grpc":
        from chattts_client import grpc_transport  # noqa: PLC0415

        return grpc_transport.connect_async(url)
    from chattts_client import http_transport  # noqa: PLC0415

    return http_transport.connect_async(url)
