"""Speech of texts that are still written, over a WebSocket, with the events of vLLM-Omni's `/v1/audio/speech/stream`.

A connection has any number of texts, one after the other. Of each the model is asked while it comes, and each sentence
is a file of its own: a header event, the audio in binary frames, `audio.done`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

from chattts_client import Chunk, InvalidInputError, TTSError
from chattts_client.errors import shown
from chattts_client.watermark import Marker
from pydantic import Field, ValidationError
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from gateway.audio import AudioWriter, FormatName, encoded
from gateway.errors import GatewayError, from_client, invalid_field
from gateway.request import MAX_CHARACTERS, MODEL, MODEL_PATTERN, SpeechRequest, wrong_field
from gateway.settings import Settings
from gateway.shared import Gateway, about
from gateway.speech import NOTHING_TO_SAY
from gateway.words import heard

CONFIG, TEXT, DONE, CLOSE = "session.config", "input.text", "input.done", "session.close"
MAX_WAITING = 1_000  # messages
GRACE_S = 5.0  # past the time of a synthesis, which the server keeps, for a client that does not read
TOO_MUCH, IS_LATE = 1008, 1013  # why the gateway closes: a limit, or a client that does not read


class SessionConfig(SpeechRequest):
    """What holds for the texts of a session: fields of a request for speech, and two of sessions."""

    KIND: ClassVar[str] = "a session"
    LEFT_OUT: ClassVar[Sequence[str]] = ("input", "stream", "stream_format", "allow_silence", "ssml")

    model: str = Field(default=MODEL, json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"})
    input: str = ""
    response_format: FormatName = "wav"
    stream_audio: bool = Field(default=False, description="send a sentence in frames as it is spoken, not in one")
    max_wait_ms: int | None = Field(default=None, description="without text, after which clauses are spoken")
    type: Literal["session.config"]

    @property
    def has_place_for_words(self) -> bool:
        """They are an event."""
        return True


class _ClosedError(ConnectionError):
    """The client wants no more."""


class SpeechSession:
    """One connection."""

    def __init__(self, socket: WebSocket, here: Gateway) -> None:
        """Nothing is sent yet."""
        self._socket, self._here = socket, here
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._num_waiting = 0  # characters of it
        self._config: SessionConfig | None = None
        self._num_texts = 0
        self._has_ended = True  # the text that comes

    async def run(self) -> None:
        """Speak until the client leaves, says that it has done, or rests for as long as a synthesis may take."""
        await self._socket.accept()
        tasks = [asyncio.create_task(one) for one in (self._read(), self._speak())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()  # and with it the request to the server
            await asyncio.gather(*tasks, return_exceptions=True)
        code = 1000
        for task in done:
            code = task.result()
        if self._socket.application_state is WebSocketState.CONNECTED is self._socket.client_state:
            await self._socket.close(code)

    async def _read(self) -> int:
        """Take messages as they come, so that it is seen when the client leaves; the code to close with."""
        try:
            while True:
                try:
                    message = _message(await self._socket.receive())
                    self._count(message)
                    self._inbox.put_nowait(message)
                except GatewayError as error:
                    await self._say_error(error)
                    if error.status == 413:
                        return TOO_MUCH
        except WebSocketDisconnect as left:
            return left.code

    def _count(self, message: Mapping[str, Any]) -> None:
        self._num_waiting += len(message.get("text", ""))
        if self._num_waiting > MAX_CHARACTERS or self._inbox.qsize() >= MAX_WAITING:
            allowed = f"{MAX_CHARACTERS:,} characters in {MAX_WAITING:,} messages"
            raise GatewayError(413, f"too much text waits to be spoken; allowed are {allowed}", "too_large", "text")

    async def _next(self) -> dict[str, Any]:
        """The next message.

        Raises:
            _ClosedError: none comes for as long as a synthesis may take.
        """
        try:
            message = await asyncio.wait_for(self._inbox.get(), self._here.settings.timeout_s)
        except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
            raise _ClosedError from None
        self._num_waiting -= len(message.get("text", ""))
        return message

    async def _speak(self) -> int:
        """Do what the messages say, in their order; the code to close with."""
        try:
            while True:
                try:
                    await self._do(await self._next())
                except GatewayError as error:
                    await self._say_error(error)
        except _ClosedError:
            return 1000
        except (TimeoutError, asyncio.TimeoutError):
            return IS_LATE
        except WebSocketDisconnect as left:
            return left.code

    async def _do(self, message: dict[str, Any]) -> None:
        if message["type"] == CLOSE:
            raise _ClosedError
        if message["type"] == CONFIG:
            self._config = self._configured(message)
        elif self._config is None:
            raise GatewayError(400, f"the first message is {shown(message['type'])}; allowed is {CONFIG}", "no_config")
        else:
            await self._say_text(self._config, message)

    def _configured(self, message: Mapping[str, Any]) -> SessionConfig:
        try:
            config = SessionConfig(**message)
        except ValidationError as error:
            raise wrong_field(error.errors()[0]) from None
        config.check(strict=self._here.settings.strict)
        config.options(config.voice_names, self._here.settings.speed_tags)
        return config

    async def _say_text(self, config: SessionConfig, message: dict[str, Any]) -> None:
        """Speak the text that begins with `message`; what is wrong with it does not end the session."""
        text = _Text(self._num_texts, self._here.settings, config.ignored)
        self._num_texts += 1
        self._has_ended = message["type"] == DONE
        if not self._has_ended:
            try:
                most_s = self._here.settings.timeout_s + GRACE_S
                await asyncio.wait_for(self._say(config, message["text"], text), most_s)
            except GatewayError as error:
                await self._say_error(error)
            except TTSError as error:
                await self._say_error(from_client(error))
            while not self._has_ended:  # of a text that failed
                await self._further()
        await self._send({"type": "session.done", **text.outcome()})

    async def _say(self, config: SessionConfig, beginning: str, text: _Text) -> None:
        here = self._here
        voices = [await here.voices.resolved(name) for name in config.voice_names]
        options, tempo = config.options(voices, here.settings.speed_tags)
        with here.access.synthesis(self._socket.state.owner), here.metrics.speech() as report:
            stream = here.client.stream(
                self._pieces(beginning),
                options,
                mode=config.mode,
                max_wait_ms=config.max_wait_ms,
                **asdict(about(self._socket)),
            )
            sentence: _Sentence | None = None
            try:
                async with stream as chunks:
                    async for chunk in chunks:
                        report.add(chunk)
                        text.add(chunk)
                        if chunk.refined_text:
                            sentence = _Sentence(config, tempo, text, chunk)
                            await self._send(sentence.start())
                        if sentence is None:
                            continue
                        if chunk.sentences and config.word_times:
                            await self._send(sentence.words(chunk))
                        await self._send_audio(await sentence.write(chunk))
                        if chunk.sentences:
                            await self._send_audio(await sentence.finish())
                            await self._send(sentence.done(failed=False))
                            sentence = None
            except TTSError as error:
                if sentence is not None:
                    await self._send(sentence.done(failed=True))
                if isinstance(error, InvalidInputError) and NOTHING_TO_SAY.search(str(error)):
                    return
                failure = from_client(error)
                report.failed(failure.status)
                raise failure from error

    async def _pieces(self, beginning: str) -> AsyncGenerator[str, None]:
        """What comes of the text."""
        state = self._socket.state
        piece: str | None = beginning
        while piece is not None:
            state.characters = getattr(state, "characters", 0) + len(piece)
            if self._here.settings.log_text:
                state.text = getattr(state, "text", "") + piece
            yield piece
            piece = await self._further()

    async def _further(self) -> str | None:
        """The next piece of the text that comes; None at its end.

        Raises:
            _ClosedError: the client wants no more.
        """
        while True:
            message = await self._next()
            if message["type"] == TEXT:
                text: str = message["text"]
                return text
            if message["type"] == DONE:
                self._has_ended = True
                return None
            if message["type"] == CLOSE:
                raise _ClosedError
            await self._say_error(
                GatewayError(400, f"{CONFIG} comes amid a text; allowed is behind {DONE}", "too_late")
            )

    async def _send(self, event: Mapping[str, object]) -> None:
        await self._socket.send_text(json.dumps(event, ensure_ascii=False))

    async def _send_audio(self, audio: bytes) -> None:
        if audio:
            await self._socket.send_bytes(audio)

    async def _say_error(self, error: GatewayError) -> None:
        event = {"type": "error", "message": str(error), "code": error.code, "param": error.param}
        await self._send({**event, "status": error.status})


class _Text:
    """What is told of one text at its end.

    Attributes:
        index: which of the connection's.
        num_sentences: that have begun.
        num_spoken, num_heard: samples of those that have ended, as the server spoke them and in their files.
    """

    def __init__(self, index: int, settings: Settings, ignored: Sequence[str]) -> None:
        self.index, self.num_sentences = index, 0
        self.num_spoken = self.num_heard = 0
        self._ignored = ignored
        self._settings = settings
        self._marker: Marker | None = None
        self._seed: int | None = None
        self._warning = ""

    def add(self, chunk: Chunk) -> None:
        self._seed, self._warning = chunk.seed, chunk.warning

    def marker(self, sample_rate: int) -> Marker | None:
        """One for all its sentences, whose samples together are those of the whole text."""
        self._marker = self._marker or self._settings.marker(sample_rate)
        return self._marker

    def outcome(self) -> dict[str, object]:
        told = {"utterance_index": self.index, "total_sentences": self.num_sentences}
        seed = None if self._seed is None else str(self._seed)
        named = {"seed": seed, "warning": self._warning, "ignored": self._ignored}
        return told | {name: value for name, value in named.items() if value}


class _Sentence:
    """One sentence on its way to the client, a file of its own."""

    def __init__(self, config: SessionConfig, tempo: float, text: _Text, chunk: Chunk) -> None:
        self._name, self._streams = config.response_format, config.stream_audio
        self._place = {"utterance_index": text.index, "sentence_index": text.num_sentences}
        text.num_sentences += 1
        self._said, self._sample_rate = chunk.refined_text, chunk.sample_rate
        self._text, self._tempo = text, tempo
        marker = text.marker(chunk.sample_rate)
        self._writer = AudioWriter(self._name, chunk.sample_rate, tempo, whole=not self._streams, marker=marker)
        self._held: list[bytes] = []
        self._num_bytes = self._num_samples = 0

    def start(self) -> dict[str, object]:
        """The event in front of the audio."""
        about = {"sentence_text": self._said, "format": self._name, "sample_rate": self._sample_rate}
        return {"type": "audio.start", **self._place, **about}

    def words(self, chunk: Chunk) -> dict[str, object]:
        """The event of its words, which come with the `chunk` that ends it, at the times of the whole text."""
        start = self._text.num_heard / self._sample_rate
        shift = start - self._text.num_spoken / self._sample_rate / self._tempo  # files end a little sooner or later
        words = [asdict(word) for word in heard(chunk.words, self._tempo, shift)]
        warning = {"warning": chunk.warning} if chunk.warning else {}
        return {"type": "audio.words", **self._place, "start": start, "words": words, **warning}

    async def write(self, chunk: Chunk) -> bytes:
        """What can be sent of it with `chunk`."""
        self._num_samples += len(chunk.audio)
        return self._sent(await encoded(self._name, self._writer, chunk), is_end=False)

    async def finish(self) -> bytes:
        """The rest of it."""
        rest = self._sent(self._writer.finish(), is_end=True)
        self._text.num_spoken += self._num_samples
        self._text.num_heard += self._writer.num_written
        return rest

    def done(self, *, failed: bool) -> dict[str, object]:
        """The event behind the audio."""
        return {"type": "audio.done", **self._place, "total_bytes": self._num_bytes, "error": failed}

    def _sent(self, part: bytes, *, is_end: bool) -> bytes:
        self._held.append(part)
        if not (self._streams or is_end):
            return b""
        sent = b"".join(self._held)
        self._held = []
        self._num_bytes += len(sent)
        return sent


def _message(event: Mapping[str, Any]) -> dict[str, Any]:
    """The message in an event of ASGI.

    Raises:
        GatewayError: it is none of this protocol.
        WebSocketDisconnect: the client has left.
    """
    if event["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(event.get("code", 1000))
    try:
        message = json.loads(event.get("text") or "")
    except (ValueError, RecursionError):
        raise GatewayError(400, "the message is no JSON text", "invalid_json") from None
    kinds = (CONFIG, TEXT, DONE, CLOSE)
    kind = message.get("type") if isinstance(message, dict) else None
    if kind not in kinds:
        raise invalid_field("type", f"is {shown(kind)}; allowed is one of {', '.join(kinds)}")
    if kind == TEXT and not isinstance(message.get("text"), str):
        raise invalid_field("text", f"is {shown(message.get('text'))}; allowed is a string")
    return dict(message)
