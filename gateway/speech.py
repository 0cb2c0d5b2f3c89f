"""`POST /v1/audio/speech`: a request as OpenAI documents it, and speech that leaves while the model still speaks."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from dataclasses import fields
from typing import Annotated, Any, Literal

from chattts_client import AsyncTTSClient, Chunk, SynthesisOptions, TTSError
from chattts_client.tracing import is_traceparent
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.audio import FORMATS, AudioWriter, FormatName
from gateway.errors import GatewayError, from_client, invalid_field
from gateway.metrics import SpeechReport
from gateway.settings import Settings
from gateway.voices import MAX_ID_CHARACTERS, spoken_by

MODEL = "chattts"
# OpenAI's names, which its clients send unless they are told another one.
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
MAX_CHARACTERS = 20_000  # the server's limit
NORMAL_SPEED_TAG = 5

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class VoiceId(BaseModel):
    """A voice as an object."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=MAX_ID_CHARACTERS)


class SpeechRequest(BaseModel):
    """What to say; the fields after `stream_format` are this server's own."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(
        description="chattts; OpenAI's names are taken for it", json_schema_extra={"enum": [MODEL, *MODEL_ALIASES]}
    )
    input: str = Field(min_length=1, max_length=MAX_CHARACTERS, description="what to say")
    voice: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | VoiceId = Field(
        default="default", description="one of /v1/audio/voices, the id of a cloned voice or a ChatTTS speaker string"
    )
    instructions: str | None = Field(default=None, max_length=MAX_CHARACTERS, description="not possible; leave it out")
    response_format: FormatName = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"

    mode: Literal["exact", "low_latency"] = Field(
        default="exact", description="of the stream: the samples of a whole answer, or the first ones sooner"
    )
    refine: bool | None = Field(default=None, description="let the model add pauses and laughter to the text first")
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    min_new_tokens: int | None = None
    max_new_tokens: int | None = None
    normalize: bool | None = None
    refine_prompt: Text | None = None
    prompt: Text | None = None
    language: Text | None = None
    priority: Text | None = None
    deadline_ms: int | None = None
    refine_temperature: float | None = None
    refine_max_new_tokens: int | None = None

    def check(self) -> None:
        """Refuse what the types above do not.

        Raises:
            GatewayError: 404 for another model, 400 for the rest.
        """
        if self.model not in (MODEL, *MODEL_ALIASES):
            message = f"the model {self.model[:60]!a} does not exist; allowed is {MODEL}"
            raise GatewayError(404, message, "model_not_found", "model")
        if self.instructions:
            raise invalid_field("instructions", "cannot be followed by this model; 'refine_prompt' and 'prompt' can")

    @property
    def voice_name(self) -> str:
        """The voice, however it is written."""
        return self.voice if isinstance(self.voice, str) else self.voice.id

    def options(self, voice: str, speed_tags: Mapping[int, float]) -> tuple[SynthesisOptions, float]:
        """What the server is asked for, and the tempo that its samples are to be changed by.

        Args:
            voice: as `spoken_by` takes it.
            speed_tags: how fast ChatTTS's speed tags are; the one nearest to `speed` is asked for.

        Raises:
            GatewayError: the voice is none.
        """
        own = {option.name for option in fields(SynthesisOptions)} & set(type(self).model_fields)
        values: dict[str, Any] = {name: getattr(self, name) for name in own} | spoken_by(voice)
        if self.refine is not None:
            values["skip_refine"] = not self.refine
        tag, tempo = speed_tag(self.speed, speed_tags if self.prompt is None else {})
        if tag != NORMAL_SPEED_TAG:
            values["prompt"] = f"[speed_{tag}]"
        return SynthesisOptions(**values), tempo


def speed_tag(speed: float, speed_tags: Mapping[int, float]) -> tuple[int, float]:
    """The speed tag of ChatTTS whose voice is nearest to `speed`, and the tempo that is missing to it."""
    factors = {NORMAL_SPEED_TAG: 1.0, **speed_tags}
    tag = min(factors, key=lambda one: abs(math.log(speed / factors[one])))
    tempo = speed / factors[tag]
    return tag, (1.0 if math.isclose(tempo, 1, abs_tol=1e-3) else tempo)


class SpeechResponse(Response):
    """The answer: asks the server only when it is sent, and lets go of it when the client goes."""

    def __init__(
        self,
        client: AsyncTTSClient,
        request: SpeechRequest,
        voice: str,
        *,
        settings: Settings,
        request_id: str,
        traceparent: str,
        report: Callable[[], SpeechReport],
        place: AbstractContextManager[None],
    ) -> None:
        """Nothing is sent yet; `voice` is as `spoken_by` takes it; `place` is held as long as something is sent.

        Raises:
            GatewayError: the request is wrong.
        """
        super().__init__()
        request.check()
        options, self._tempo = request.options(voice, settings.speed_tags)
        self._place, self._timeout_s = place, settings.timeout_s
        self._request, self._request_id, self._report = request, request_id, report
        trace = traceparent if is_traceparent(traceparent) else ""
        self._stream = client.stream(
            request.input, options, mode=request.mode, request_id=request_id, traceparent=trace
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Answer; a client that does not read what it gets is given up when the time of a synthesis is over.

        Raises:
            GatewayError: there is no place.
        """
        speaking = asyncio.create_task(self._speak(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((speaking, leaving), timeout=self._timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not speaking.done():
                speaking.cancel()  # and with it the request to the server
            await asyncio.gather(speaking, leaving, return_exceptions=True)
        if not speaking.cancelled():
            speaking.result()

    async def _speak(self, send: Send) -> None:
        started, failure = False, None
        with self._place, self._report() as report:
            try:
                async with aclosing(self._parts(report)) as parts:
                    async for head, body in parts:
                        if not started:
                            await send({"type": "http.response.start", "status": 200, "headers": head})
                            started = True
                        if body:
                            await send(_body(body, more=True))
            except TTSError as error:
                failure = from_client(error)
                report.failed(failure.status)
        # What follows is the end for the client, so by now its place is free and its synthesis counted.
        if failure is None:
            await send(_body(b"", more=False))
        elif not started:
            raise failure
        elif self._request.stream_format == "sse":
            await send(_body(_event("error", failure.body), more=False))
        else:
            raise failure  # the connection breaks off, which is all that audio can tell

    async def _parts(self, report: SpeechReport) -> AsyncGenerator[tuple[list[tuple[bytes, bytes]], bytes], None]:
        """The headers, and the body as it comes."""
        name: FormatName = self._request.response_format
        writer: AudioWriter | None = None
        headers: list[tuple[bytes, bytes]] = []
        num_tokens = 0
        async with self._stream as chunks:
            async for chunk in chunks:
                if writer is None:
                    headers = self._head(chunk)
                    writer = AudioWriter(name, chunk.sample_rate, self._tempo)
                num_tokens += chunk.num_tokens
                report.add(chunk)
                yield headers, self._wrapped(await _encoded(name, writer, chunk))
        yield headers, self._wrapped(writer.finish() if writer else b"")
        if self._request.stream_format == "sse":
            usage = {"input_tokens": 0, "output_tokens": num_tokens, "total_tokens": num_tokens}
            yield headers, _event("speech.audio.done", {"type": "speech.audio.done", "usage": usage})

    def _head(self, chunk: Chunk) -> list[tuple[bytes, bytes]]:
        is_sse = self._request.stream_format == "sse"
        media_type = "text/event-stream" if is_sse else FORMATS[self._request.response_format].media_type
        named = {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # NGINX would keep the stream back
            "x-sample-rate": str(chunk.sample_rate),
            "x-seed": str(chunk.seed),
        }
        return [(name.encode(), value.encode()) for name, value in named.items()]

    def _wrapped(self, audio: bytes) -> bytes:
        if not audio or self._request.stream_format == "audio":
            return audio
        name = "speech.audio.delta"
        return _event(name, {"type": name, "audio": base64.b64encode(audio).decode()})


async def _encoded(name: FormatName, writer: AudioWriter, chunk: Chunk) -> bytes:
    """Encoders take some milliseconds, for which other requests should not wait; plain samples take none."""
    if name in ("pcm", "wav"):
        return writer.write(chunk.audio)
    return await asyncio.to_thread(writer.write, chunk.audio)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _event(name: str, data: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()
