"""Typed client of the Triton models `chattts` and `chattts_stream`: text in, speech out, whole or in chunks.

Over gRPC or HTTP, blocking or asyncio. It knows the models' inputs and outputs and nothing else of the server;
`python -m client` is its command line.
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
from client.recording import read_recording
from client.speech import Chunk, Sentence, Speech, joined
from client.streams import AsyncSpeechStream, SpeechStream
from client.voices import Voice

__all__ = [
    "AsyncSpeechStream",
    "AsyncTTSClient",
    "Chunk",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "InvalidInputError",
    "OverloadedError",
    "Sentence",
    "ServerError",
    "Speech",
    "SpeechStream",
    "SynthesisOptions",
    "TTSClient",
    "TTSError",
    "Voice",
    "joined",
    "read_recording",
]
