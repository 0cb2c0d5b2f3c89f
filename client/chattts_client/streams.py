"""Streams of speech as their callers hold them: iterators that cancel the request when they are left early."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from chattts_client.errors import ServerError
from chattts_client.speech import Chunk, chunk_from

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

    from chattts_client.transport import Result


class SpeechStream(Iterator[Chunk]):
    """The chunks of one text; the request is sent when the first one is asked for.

    A `for` loop that is left early cancels the request as soon as nothing refers to the stream. Where something does, a
    `with` block or `close` does it. One thread may use it.
    """

    def __init__(self, chunks: Generator[Chunk, None, None]) -> None:
        """Closing `chunks` must cancel the request."""
        self._chunks = chunks

    def __next__(self) -> Chunk:
        """Wait for the next chunk. Raises what `TTSClient.synthesize` raises."""
        return next(self._chunks)

    def close(self) -> None:
        """Cancel the request, unless it has ended."""
        self._chunks.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


class AsyncSpeechStream(AsyncIterator[Chunk]):
    """As `SpeechStream`, for one task; cancelling the task cancels the request, too."""

    def __init__(self, chunks: AsyncGenerator[Chunk, None]) -> None:
        """Closing `chunks` must cancel the request."""
        self._chunks = chunks

    async def __anext__(self) -> Chunk:
        """Wait for the next chunk. Raises what `TTSClient.synthesize` raises."""
        return await self._chunks.__anext__()

    async def aclose(self) -> None:
        """Cancel the request, unless it has ended."""
        await self._chunks.aclose()

    async def __aenter__(self) -> Self:
        """Itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()


class ChunkReader:
    """The chunks in the answers of `chattts_stream`.

    It keeps the last chunk until the stream has ended, so that leaving after that chunk cancels nothing: a cancellation
    that meets the end of its stream can crash Triton 2.51 (measured over gRPC).
    """

    def __init__(self) -> None:
        """Nothing has been answered."""
        self._last: Chunk | None = None

    def add(self, result: Result) -> Chunk | None:
        """The chunk in `result`, None where it is kept.

        Raises:
            ServerError: it is not what the contract says.
        """
        chunk = chunk_from(result.as_numpy)
        if not chunk.is_final:
            return chunk
        self._last = chunk
        return None

    def last(self) -> Chunk:
        """The last chunk, when the stream has ended.

        Raises:
            ServerError: there was none.
        """
        if self._last is None:
            raise ServerError("the stream ended before its last chunk", "INTERNAL")
        return self._last
