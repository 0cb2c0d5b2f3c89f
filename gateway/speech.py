"""The answer of `POST /v1/audio/speech`: speech that leaves while the model still speaks, or a whole file."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing
from dataclasses import asdict

import numpy as np
from chattts_client import AsyncTTSClient, Chunk, InvalidInputError, TTSError
from chattts_client.tracing import is_traceparent
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.audio import FORMATS, AudioWriter, FormatName, encoded
from gateway.errors import from_client
from gateway.metrics import SpeechReport
from gateway.request import SpeechRequest
from gateway.settings import Settings

Headers = list[tuple[bytes, bytes]]

SILENCE_S, SILENCE_RATE = 0.2, 24_000
# How the server refuses a text without anything to say.
NOTHING_TO_SAY = re.compile(r"input 'text' is .*; allowed is text with at least one word", re.DOTALL)


class SpeechResponse(Response):
    """The answer: asks the server only when it is sent, and lets go of it when the client goes."""

    def __init__(
        self,
        client: AsyncTTSClient,
        request: SpeechRequest,
        voices: Sequence[str],
        *,
        settings: Settings,
        request_id: str,
        traceparent: str,
        report: Callable[[], SpeechReport],
        place: AbstractContextManager[None],
    ) -> None:
        """Nothing is sent yet; `voices` are as `options` takes them; `place` is held as long as something is sent.

        Raises:
            GatewayError: the request is wrong.
        """
        super().__init__()
        request.check(strict=settings.strict)
        options, self._tempo = request.options(voices, settings.speed_tags)
        self._place, self._timeout_s = place, settings.timeout_s
        self._request, self._request_id, self._report = request, request_id, report
        self._is_whole = not (request.stream and FORMATS[request.response_format].streams)
        asked = request.allow_silence
        self._allow_silence = settings.allow_silence if asked is None else asked
        trace = traceparent if is_traceparent(traceparent) else ""
        self._stream = client.stream(
            "" if request.turns else request.text, options, mode=request.mode, request_id=request_id, traceparent=trace
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

    async def _parts(self, report: SpeechReport) -> AsyncGenerator[tuple[Headers, bytes], None]:
        """The headers, and the body as it comes; of a whole file all of it in the end."""
        name: FormatName = self._request.response_format
        writer: AudioWriter | None = None
        headers: Headers = []
        held: list[bytes] = []
        num_tokens = 0
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                if writer is None:
                    headers = self._head(chunk)
                    writer = AudioWriter(name, chunk.sample_rate, self._tempo, whole=self._is_whole)
                num_tokens += chunk.num_tokens
                report.add(chunk)
                part = await encoded(name, writer, chunk)
                if self._is_whole:
                    held.append(part)
                else:
                    yield headers, self._wrapped(part)
                if chunk.words:
                    yield headers, self._words(chunk)
        rest = b"".join([*held, writer.finish() if writer else b""])
        if self._is_whole and self._request.stream_format == "audio":
            headers.append((b"content-length", str(len(rest)).encode()))
        yield headers, self._wrapped(rest)
        if self._request.stream_format == "sse":
            usage = {"input_tokens": 0, "output_tokens": num_tokens, "total_tokens": num_tokens}
            yield headers, _event("speech.audio.done", {"type": "speech.audio.done", "usage": usage})

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        """Those of the server, or a silence where it has nothing to say and that is wished for."""
        try:
            async with self._stream as chunks:
                async for chunk in chunks:
                    yield chunk
        except InvalidInputError as error:
            if not self._allow_silence or not NOTHING_TO_SAY.search(str(error)):
                raise
            audio = np.zeros(round(SILENCE_S * SILENCE_RATE), np.float32)
            yield Chunk(audio, SILENCE_RATE, self._request.seed or 0, "", "", 0, (), index=0, is_final=True)

    def _head(self, chunk: Chunk) -> Headers:
        is_sse = self._request.stream_format == "sse"
        media_type = "text/event-stream" if is_sse else FORMATS[self._request.response_format].media_type
        named = {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",  # NGINX would keep the stream back
            "x-ai-generated": "true",
            "x-sample-rate": str(chunk.sample_rate),
            "x-seed": str(chunk.seed),
        }
        if chunk.warning:
            named["x-warning"] = chunk.warning
        if self._request.ignored:
            named["x-ignored"] = ", ".join(self._request.ignored)
        return [(name.encode(), value.encode()) for name, value in named.items()]

    def _words(self, chunk: Chunk) -> bytes:
        """The words of the sentences that end in `chunk`, at the times at which they are heard."""
        times = [{"start": word.start / self._tempo, "end": word.end / self._tempo} for word in chunk.words]
        words = [asdict(word) | when for word, when in zip(chunk.words, times, strict=True)]
        warning = {"warning": chunk.warning} if chunk.warning else {}
        return _event("speech.audio.words", {"type": "speech.audio.words", "words": words, **warning})

    def _wrapped(self, audio: bytes) -> bytes:
        if not audio or self._request.stream_format == "audio":
            return audio
        name = "speech.audio.delta"
        return _event(name, {"type": name, "audio": base64.b64encode(audio).decode()})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _body(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


def _event(name: str, data: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
