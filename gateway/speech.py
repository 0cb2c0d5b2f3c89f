"""Speech on its way to a client: it leaves while the model still speaks, or as a whole file."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict
from functools import partial

import numpy as np
from chattts_client import Chunk, InvalidInputError, TTSError
from chattts_client.tracing import About
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.audio import FORMATS, AudioWriter, encoded
from gateway.errors import from_client
from gateway.metrics import SpeechReport
from gateway.request import SpeechRequest
from gateway.shared import Gateway
from gateway.words import heard

Headers = list[tuple[bytes, bytes]]

LIVE_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # NGINX would keep the stream back
    "x-ai-generated": "true",
}
SILENCE_S, SILENCE_RATE = 0.2, 24_000
# How the server refuses a text without anything to say.
NOTHING_TO_SAY = re.compile(r"input 'text' is .*; allowed is text with at least one word", re.DOTALL)


class Utterance:
    """What one request has the server say, on its way into a file; it may be asked for again."""

    def __init__(
        self, here: Gateway, request: SpeechRequest, voices: Sequence[str], *, about: About, whole: bool
    ) -> None:
        """Nothing is sent yet; `voices` are as `options` takes them, `whole` is as `AudioWriter` takes it.

        Raises:
            GatewayError: the request is wrong.
        """
        request.check(strict=here.settings.strict)
        options, self.tempo = request.options(voices, here.settings.speed_tags)
        self._request, self._whole, self._marker = request, whole, here.settings.marker
        asked = request.allow_silence
        self._allow_silence = here.settings.allow_silence if asked is None else asked
        self._ask = partial(
            here.client.stream,
            "" if request.turns else request.text,
            options,
            mode=request.mode,
            request_id=about.request_id,
            traceparent=about.traceparent,
        )

    async def parts(self, report: SpeechReport) -> AsyncGenerator[tuple[Chunk | None, bytes], None]:
        """Ask; each chunk with the bytes of the file that come with it, and None with the last of them."""
        name, writer = self._request.response_format, None
        async with aclosing(self._chunks()) as chunks:
            async for chunk in chunks:
                if writer is None:
                    marker = self._marker(chunk.sample_rate)
                    writer = AudioWriter(name, chunk.sample_rate, self.tempo, whole=self._whole, marker=marker)
                report.add(chunk)
                yield chunk, await encoded(name, writer, chunk)
        yield None, writer.finish() if writer else b""

    async def _chunks(self) -> AsyncGenerator[Chunk, None]:
        """Those of the server, or a silence where it has nothing to say and that is wished for."""
        try:
            async with self._ask() as chunks:
                async for chunk in chunks:
                    yield chunk
        except InvalidInputError as error:
            if not self._allow_silence or not NOTHING_TO_SAY.search(str(error)):
                raise
            audio = np.zeros(round(SILENCE_S * SILENCE_RATE), np.float32)
            yield Chunk(audio, SILENCE_RATE, self._request.seed or 0, "", "", 0, (), index=0, is_final=True)


class LiveResponse(Response):
    """An answer that is made while it is sent, and let go of when the client goes."""

    most_s: float | None = None  # for all of it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        """Answer; a client that does not read what it gets is given up when `most_s` seconds are over."""
        speaking = asyncio.create_task(self.speak(send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((speaking, leaving), timeout=self.most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not speaking.done():
                speaking.cancel()  # and with it what the server was asked for
            await asyncio.gather(speaking, leaving, return_exceptions=True)
        if not speaking.cancelled():
            speaking.result()

    async def speak(self, send: Send) -> None:
        """Send the answer; what is raised before the first message is answered as an error."""
        raise NotImplementedError


class SpeechResponse(LiveResponse):
    """The answer of `POST /v1/audio/speech`: asks the server only when it is sent."""

    def __init__(
        self, here: Gateway, request: SpeechRequest, voices: Sequence[str], *, about: About, owner: str
    ) -> None:
        """Nothing is sent yet; `voices` are as `options` takes them.

        Raises:
            GatewayError: the request is wrong.
        """
        super().__init__()
        self.most_s = here.settings.timeout_s
        self._place, self._report = here.access.synthesis(owner), here.metrics.speech
        self._request = request
        self._is_whole = not (request.stream and FORMATS[request.response_format].streams)
        self._utterance = Utterance(here, request, voices, about=about, whole=self._is_whole)

    async def speak(self, send: Send) -> None:
        """Send what the server says.

        Raises:
            GatewayError: there is no place, or the server says no.
        """
        started, failure = False, None
        with self._place, self._report() as report:
            try:
                async with aclosing(self._parts(report)) as parts:
                    async for head, body in parts:
                        if not started:
                            await send({"type": "http.response.start", "status": 200, "headers": head})
                            started = True
                        if body:
                            await send(body_message(body, more=True))
            except TTSError as error:
                failure = from_client(error)
                report.failed(failure.status)
        # What follows is the end for the client, so by now its place is free and its synthesis counted.
        if failure is None:
            await send(body_message(b"", more=False))
        elif not started:
            raise failure
        elif self._request.stream_format == "sse":
            await send(body_message(_event("error", failure.body), more=False))
        # Else nothing is sent any more: without its end the connection breaks off, which is all that audio can tell.

    async def _parts(self, report: SpeechReport) -> AsyncGenerator[tuple[Headers, bytes], None]:
        """The headers, and the body as it comes; of a whole file all of it in the end."""
        headers: Headers = []
        held: list[bytes] = []
        num_tokens, warning = 0, ""
        async with aclosing(self._utterance.parts(report)) as parts:
            async for chunk, part in parts:
                if chunk is not None:
                    headers = headers or self._head(chunk)
                    num_tokens, warning = num_tokens + chunk.num_tokens, chunk.warning
                if self._is_whole or chunk is None:
                    held.append(part)
                else:
                    yield headers, self._wrapped(part)
                if chunk is not None and chunk.words:
                    yield headers, self._words(chunk)
        rest = b"".join(held)
        if self._is_whole and self._request.stream_format == "audio":
            headers.append((b"content-length", str(len(rest)).encode()))
        yield headers, self._wrapped(rest)
        if self._request.stream_format == "sse":
            done = {"type": "speech.audio.done", "usage": usage(num_tokens)}
            yield headers, _event("speech.audio.done", done | ({"warning": warning} if warning else {}))

    def _head(self, chunk: Chunk) -> Headers:
        is_sse = self._request.stream_format == "sse"
        named = {
            "content-type": "text/event-stream" if is_sse else FORMATS[self._request.response_format].media_type,
            **LIVE_HEADERS,
            "x-sample-rate": str(chunk.sample_rate),
            "x-seed": str(chunk.seed),
        }
        if chunk.warning:
            named["x-warning"] = chunk.warning
        if self._request.ignored:
            named["x-ignored"] = ", ".join(self._request.ignored)
        return as_headers(named)

    def _words(self, chunk: Chunk) -> bytes:
        """The words of the sentences that end in `chunk`, at the times at which they are heard."""
        words = [asdict(word) for word in heard(chunk.words, self._utterance.tempo)]
        return _event("speech.audio.words", {"type": "speech.audio.words", "words": words})

    def _wrapped(self, audio: bytes) -> bytes:
        if not audio or self._request.stream_format == "audio":
            return audio
        name = "speech.audio.delta"
        return _event(name, {"type": name, "audio": base64.b64encode(audio).decode()})


def usage(num_tokens: int) -> dict[str, int]:
    """Tokens of audio, as OpenAI counts them."""
    return {"input_tokens": 0, "output_tokens": num_tokens, "total_tokens": num_tokens}


def as_headers(named: Mapping[str, str]) -> Headers:
    """Headers as ASGI has them."""
    return [(name.encode(), value.encode()) for name, value in named.items()]


def body_message(body: bytes, *, more: bool) -> Message:
    """A part of a body, as ASGI has it."""
    return {"type": "http.response.body", "body": body, "more_body": more}


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(name: str, data: Mapping[str, object]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
