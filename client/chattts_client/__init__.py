"""Typed client of the Triton models `chattts` and `chattts_stream`: text in, speech out, whole or in chunks.

Over gRPC or HTTP, blocking or asyncio. It knows the models' inputs and outputs and nothing else of the server;
`chattts` is its command line.
"""

from chattts_client.client import AsyncTTSClient, TTSClient
from chattts_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    TTSError,
)
from chattts_client.options import SynthesisOptions
from chattts_client.recording import read_recording
from chattts_client.speech import Chunk, Sentence, Speech, Word, joined
from chattts_client.streams import AsyncSpeechStream, SpeechStream
from chattts_client.voices import Voice

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
    "Word",
    "joined",
    "read_recording",
]
