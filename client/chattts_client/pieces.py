"""A text that comes in pieces, as an LLM writes it: the tensors of the requests that carry it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from chattts_client.errors import invalid_input
from chattts_client.options import InputTensor, piece_tensors

Text = str | Iterable[str]
AsyncText = str | Iterable[str] | AsyncIterable[str]
_END: Any = object()


class Pieces:
    """The pieces of one text, and what went wrong where they come from.

    Attributes:
        error: what that raised, None so far.
    """

    def __init__(self, source: Iterable[str] | AsyncIterable[str], max_wait_ms: int | None) -> None:
        """Nothing is taken from `source` yet; `max_wait_ms` as `TTSClient.stream` takes it."""
        self._source = source
        self._text_id = secrets.token_hex(16)
        self._max_wait_ms = max_wait_ms
        self.error: BaseException | None = None

    def first(self) -> list[InputTensor]:
        """What the request that opens the text has beside the options and an empty text."""
        return piece_tensors(text_id=self._text_id, part="first", max_wait_ms=self._max_wait_ms)

    def __iter__(self) -> Iterator[list[InputTensor]]:
        """The inputs of each further request; after an error there are no more."""
        try:
            for text in self._source:  # type: ignore[union-attr]
                yield self._further("next", text)
            yield self._further("last", "")
        except Exception as error:
            self.error = error

    async def __aiter__(self) -> AsyncGenerator[list[InputTensor], None]:
        """As `__iter__`; what is no async iterable is iterated in a thread."""
        try:
            source = self._source if isinstance(self._source, AsyncIterable) else _in_thread(self._source)
            async for text in source:
                yield self._further("next", text)
            yield self._further("last", "")
        except Exception as error:
            self.error = error

    def _further(self, part: str, text: str) -> list[InputTensor]:
        return piece_tensors(text_id=self._text_id, part=part, text=text)


def pieces_of(text: object, kinds: tuple[type, ...], protocol: str, max_wait_ms: int | None) -> Pieces | None:
    """The pieces of `text`, None where it is a whole one.

    Raises:
        InvalidInputError: it is neither a string nor one of `kinds`, or comes in pieces where they cannot be sent.
    """
    if isinstance(text, str):
        if max_wait_ms is not None:
            raise invalid_input("max_wait_ms", max_wait_ms, "none where the text is a string")
        return None
    if not isinstance(text, kinds) or isinstance(text, bytes):
        raise invalid_input("text", text, f"a string, or {' or '.join(kind.__name__ for kind in kinds)} of strings")
    if protocol != "grpc":
        raise invalid_input("protocol", protocol, "grpc where the text comes in pieces")
    return Pieces(text, max_wait_ms)  # type: ignore[arg-type]


@contextmanager
def raising_errors_of(pieces: Pieces | None) -> Iterator[None]:
    """Raise what the source of `pieces` raised in place of what the stream made of that."""
    try:
        yield
    except BaseException:
        if pieces is not None and pieces.error is not None:
            raise pieces.error from None
        raise


async def _in_thread(source: Iterable[str]) -> AsyncIterator[str]:
    """`source`, which may take its time."""
    iterator = iter(source)
    while (text := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield text
