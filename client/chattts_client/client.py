"""The two clients, blocking and asyncio: options in, speech out, whole or in chunks."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from chattts_client import recording
from chattts_client.errors import DeadlineExceededError, TTSError, invalid_input, mapped_errors
from chattts_client.options import InputTensor, Mode, OptionValues, SynthesisOptions, input_tensors, merged
from chattts_client.pieces import AsyncText, Pieces, Text, pieces_of, raising_errors_of
from chattts_client.speech import Chunk, Speech, speech_from, text_of
from chattts_client.streams import AsyncSpeechStream, ChunkReader, SpeechStream
from chattts_client.tracing import About
from chattts_client.transport import AsyncTransport, Call, ProtocolName, connect, connect_async
from chattts_client.voices import MODEL as VOICES_MODEL
from chattts_client.voices import NO_TEXT, Voice, voices_from
from chattts_client.voices import OUTPUT as VOICES_OUTPUT

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack  # in typing from Python 3.11 on

DEFAULT_URLS = {"grpc": "127.0.0.1:8001", "http": "127.0.0.1:8000"}  # Triton's ports
DEFAULT_TIMEOUT = 600.0  # s: a long text on a CPU takes minutes
MAX_DEADLINE_MS = 3_600_000  # the most that the server takes as `deadline_ms`
PROBE_TIMEOUT = 5.0  # s for one question whether the server is ready
PROBE_INTERVAL = 0.2  # s between two of them


@dataclass(frozen=True)
class Endpoint:
    """Where requests go and how long they may take; checked once.

    Attributes:
        protocol: "grpc" or "http".
        url: "host:port"; an IPv6 address stands in brackets.
        model: the Triton model of whole answers.
        timeout: seconds for one synthesis; None for no limit.
        stream_model: the Triton model of streams.

    Raises:
        InvalidInputError: a value is none of these.
    """

    protocol: ProtocolName
    url: str
    model: str = "chattts"
    timeout: float | None = DEFAULT_TIMEOUT
    stream_model: str = "chattts_stream"

    def __post_init__(self) -> None:
        """Check every value."""
        if self.protocol not in DEFAULT_URLS:
            raise invalid_input("protocol", self.protocol, "grpc or http")
        host_port = re.fullmatch(r"(?:\[[^/\s\[\]]+\]|[^/\s:\[\]]+):(\d{1,5})", self.url)
        if not host_port or not 0 < int(host_port[1]) < 2**16:
            allowed = f"HOST:PORT, such as {DEFAULT_URLS[self.protocol]}; an IPv6 address stands in brackets"
            raise invalid_input("url", self.url, allowed)
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            raise invalid_input("timeout", self.timeout, "a number of seconds above 0, or None for no limit")

    def tensors(self, text: str, options: SynthesisOptions, mode: Mode | None = None) -> list[InputTensor]:
        """The inputs of one request; `mode` is that of a stream.

        The timeout goes along as `deadline_ms` unless that is given: without it the server would go on with a request
        that nobody waits for. A timeout above what the server takes is kept here only.

        Raises:
            InvalidInputError: a value does not fit its tensor.
        """
        if options.deadline_ms is None and self.timeout is not None and self.timeout * 1000 <= MAX_DEADLINE_MS:
            options = replace(options, deadline_ms=max(1, int(self.timeout * 1000)))
        return input_tensors(text, options, mode)

    def streamed(
        self, text: object, pieces: Pieces | None, options: SynthesisOptions, mode: Mode, about: About
    ) -> Call:
        """The call that streams `text`, or its `pieces`. Raises as `tensors`."""
        tensors = self.tensors(text if isinstance(text, str) else "", options, mode)
        if pieces is not None:
            tensors += pieces.first()
        return Call(self.stream_model, tensors, self.timeout, about, pieces=pieces)

    def never_ready(self, timeout: float) -> DeadlineExceededError:
        """The error of `wait_ready`."""
        return DeadlineExceededError(f"model '{self.model}' at {self.url} is not ready after {timeout:g} s")


def _endpoint(
    url: str | None, protocol: ProtocolName, model: str, timeout: float | None, stream_model: str
) -> Endpoint:
    return Endpoint(protocol, url if url is not None else DEFAULT_URLS.get(protocol, ""), model, timeout, stream_model)


class TTSClient:
    """Blocking client.

    Over gRPC it may be shared by threads; over HTTP each thread needs its own (tritonclient's rule).

        with TTSClient() as client:
            client.synthesize("Hello there.", seed=42).save("hello.wav")
            for chunk in client.stream("Hello there.", seed=42):
                play(chunk.audio)
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "grpc",
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        model: str = "chattts",
        stream_model: str = "chattts_stream",
    ) -> None:
        """Nothing is sent yet.

        Args:
            url: "host:port"; None is 127.0.0.1 with Triton's port of `protocol`, 8001 or 8000.
            protocol: "grpc" or "http".
            timeout: seconds for one synthesis, also sent to the server as `deadline_ms`; None for no limit.
            model: the Triton model of whole answers.
            stream_model: the Triton model of streams.

        Raises:
            InvalidInputError: a value is none of these.
        """
        self.endpoint = _endpoint(url, protocol, model, timeout, stream_model)
        self._transport = connect(protocol, self.endpoint.url)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def synthesize(
        self,
        text: str = "",
        options: SynthesisOptions | None = None,
        *,
        request_id: str = "",
        traceparent: str = "",
        **changes: Unpack[OptionValues],
    ) -> Speech:
        """Speak `text`.

        Args:
            text: 1 to 20,000 characters; none with the option `turns`.
            options: None leaves all to the server.
            request_id: by which the server's log calls this request.
            traceparent: W3C's, of the trace that this request belongs to.
            changes: single options by name, in front of `options`.

        Raises:
            InvalidInputError: an input is wrong.
            OverloadedError: the server has no room now, or is about to end.
            DeadlineExceededError: it took longer than the timeout or `deadline_ms`.
            ConnectionFailedError: no server there.
            ServerError: the server failed.
        """
        tensors = self.endpoint.tensors(text, merged(options, changes))
        with mapped_errors(self.endpoint.url):
            about = About(request_id, traceparent)
            result = self._transport.infer(Call(self.endpoint.model, tensors, self.endpoint.timeout, about))
        return speech_from(result.as_numpy)

    def stream(
        self,
        text: Text = "",
        options: SynthesisOptions | None = None,
        *,
        mode: Mode = "exact",
        max_wait_ms: int | None = None,
        request_id: str = "",
        traceparent: str = "",
        **changes: Unpack[OptionValues],
    ) -> SpeechStream:
        """Speak `text` chunk by chunk; `client.joined` makes a `Speech` of all.

        The request is sent when the first chunk is asked for. The timeout holds from then to the last chunk, whatever
        the caller does in between. Leaving the stream early cancels the request: see `SpeechStream`.

        Args:
            text: 1 to 20,000 characters, none with the option `turns`; or an iterable of pieces of a text that is still
                written, over gRPC. Sentences are spoken as they are finished, and sound as those of the whole text do.
                A thread iterates.
            options: None leaves all to the server.
            max_wait_ms: of pieces: milliseconds without one after which what seems complete is spoken, clauses too; the
                sound may differ then.
            mode: "exact" for the samples that `synthesize` gives, "low_latency" for the first ones sooner.
            request_id: by which the server's log calls this request.
            traceparent: W3C's, of the trace that this request belongs to.
            changes: single options by name, in front of `options`.

        Raises:
            InvalidInputError: a value cannot be sent. What `synthesize` raises else, the stream raises, and what the
                iterable raises.
        """
        pieces = pieces_of(text, (Iterable,), self.endpoint.protocol, max_wait_ms)
        about = About(request_id, traceparent)
        return SpeechStream(self._chunks(self.endpoint.streamed(text, pieces, merged(options, changes), mode, about)))

    def _chunks(self, call: Call) -> Generator[Chunk, None, None]:
        reader = ChunkReader()
        results = self._transport.stream(call)
        with raising_errors_of(call.pieces), mapped_errors(self.endpoint.url), closing(results):
            for result in results:
                chunk = reader.add(result)
                if chunk is not None:
                    yield chunk
        yield reader.last()

    def voices(self) -> list[Voice]:
        """The voices of the server that the option `speaker` takes by name. Raises what `synthesize` raises."""
        with mapped_errors(self.endpoint.url):
            result = self._transport.infer(Call(VOICES_MODEL, NO_TEXT, self.endpoint.timeout, output=VOICES_OUTPUT))
        return voices_from(text_of(result.as_numpy, VOICES_OUTPUT))

    def clone(self, audio: NDArray[Any], sample_rate: int) -> str:
        """The voice of a recording, for the option `speaker_sample`; `sample_text` is then its transcript.

        Args:
            audio: floating point samples [num_samples] of one channel, -1 to 1; at most 30 s.
            sample_rate: samples per second; the server resamples.

        Raises:
            InvalidInputError: it is no such recording. Else what `synthesize` raises.
        """
        tensors = recording.recording_tensors(audio, sample_rate)
        with mapped_errors(self.endpoint.url):
            result = self._transport.infer(Call(recording.MODEL, tensors, self.endpoint.timeout))
        return text_of(result.as_numpy, "speaker_sample")

    def is_ready(self, timeout: float = PROBE_TIMEOUT) -> bool:
        """Whether the model answers requests; False too where no server answers within `timeout` seconds."""
        try:
            with mapped_errors(self.endpoint.url):
                return self._transport.is_model_ready(self.endpoint.model, timeout)
        except TTSError:
            return False

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Return once the model is ready.

        Raises:
            DeadlineExceededError: it is not, after `timeout` seconds.
        """
        end = time.monotonic() + timeout
        while not self.is_ready(max(PROBE_INTERVAL, min(PROBE_TIMEOUT, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise self.endpoint.never_ready(timeout)
            time.sleep(PROBE_INTERVAL)

    def close(self) -> None:
        """Close the connection; the client cannot be used again."""
        self._transport.close()


class AsyncTTSClient:
    """asyncio client, for any number of syntheses at once on one event loop. Arguments and errors as `TTSClient`.

    async with AsyncTTSClient() as client:
        speeches = await asyncio.gather(*(client.synthesize(text, seed=42) for text in texts))
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "grpc",
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        model: str = "chattts",
        stream_model: str = "chattts_stream",
    ) -> None:
        """As `TTSClient`; may be made before the event loop runs."""
        self.endpoint = _endpoint(url, protocol, model, timeout, stream_model)
        self._connected: AsyncTransport | None = None

    @property
    def _transport(self) -> AsyncTransport:
        """Connected at first use: the connections belong to the event loop that runs then."""
        if self._connected is None:
            self._connected = connect_async(self.endpoint.protocol, self.endpoint.url)
        return self._connected

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    async def synthesize(
        self,
        text: str = "",
        options: SynthesisOptions | None = None,
        *,
        request_id: str = "",
        traceparent: str = "",
        **changes: Unpack[OptionValues],
    ) -> Speech:
        """As `TTSClient.synthesize`."""
        tensors = self.endpoint.tensors(text, merged(options, changes))
        with mapped_errors(self.endpoint.url):
            about = About(request_id, traceparent)
            result = await self._transport.infer(Call(self.endpoint.model, tensors, self.endpoint.timeout, about))
        return speech_from(result.as_numpy)

    def stream(
        self,
        text: AsyncText = "",
        options: SynthesisOptions | None = None,
        *,
        mode: Mode = "exact",
        max_wait_ms: int | None = None,
        request_id: str = "",
        traceparent: str = "",
        **changes: Unpack[OptionValues],
    ) -> AsyncSpeechStream:
        """As `TTSClient.stream`, for `async for`; pieces may come from an async iterable, too."""
        pieces = pieces_of(text, (AsyncIterable, Iterable), self.endpoint.protocol, max_wait_ms)
        about = About(request_id, traceparent)
        return AsyncSpeechStream(
            self._chunks(self.endpoint.streamed(text, pieces, merged(options, changes), mode, about))
        )

    async def _chunks(self, call: Call) -> AsyncGenerator[Chunk, None]:
        reader = ChunkReader()
        results = self._transport.stream(call)
        with raising_errors_of(call.pieces), mapped_errors(self.endpoint.url):
            async with aclosing(results):
                async for result in results:
                    chunk = reader.add(result)
                    if chunk is not None:
                        yield chunk
        yield reader.last()

    async def voices(self) -> list[Voice]:
        """As `TTSClient.voices`."""
        with mapped_errors(self.endpoint.url):
            result = await self._transport.infer(
                Call(VOICES_MODEL, NO_TEXT, self.endpoint.timeout, output=VOICES_OUTPUT)
            )
        return voices_from(text_of(result.as_numpy, VOICES_OUTPUT))

    async def clone(self, audio: NDArray[Any], sample_rate: int) -> str:
        """As `TTSClient.clone`."""
        tensors = recording.recording_tensors(audio, sample_rate)
        with mapped_errors(self.endpoint.url):
            result = await self._transport.infer(Call(recording.MODEL, tensors, self.endpoint.timeout))
        return text_of(result.as_numpy, "speaker_sample")

    async def is_ready(self, timeout: float = PROBE_TIMEOUT) -> bool:
        """As `TTSClient.is_ready`."""
        try:
            with mapped_errors(self.endpoint.url):
                return await self._transport.is_model_ready(self.endpoint.model, timeout)
        except TTSError:
            return False

    async def wait_ready(self, timeout: float = 60.0) -> None:
        """As `TTSClient.wait_ready`."""
        end = time.monotonic() + timeout
        while not await self.is_ready(max(PROBE_INTERVAL, min(PROBE_TIMEOUT, end - time.monotonic()))):
            if time.monotonic() >= end:
                raise self.endpoint.never_ready(timeout)
            await asyncio.sleep(PROBE_INTERVAL)

    async def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        if self._connected is not None:
            await self._connected.close()
            self._connected = None
