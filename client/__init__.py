"""Typed client of the Triton model `chattts`: text in, speech out, over gRPC or HTTP, blocking or asyncio.

It knows the model's inputs and outputs and nothing else of the server; `python -m client` is its command line.
"""

from client.client import AsyncTTSClient, TTSClient
from client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    TTSError,
)
from client.options import SynthesisOptions
from client.speech import Speech

__all__ = [
    "AsyncTTSClient",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "InvalidInputError",
    "OverloadedError",
    "ServerError",
    "Speech",
    "SynthesisOptions",
    "TTSClient",
    "TTSError",
]
