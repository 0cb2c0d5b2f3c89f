"""Texts that come in pieces, behind `chattts_stream`: one request opens the text and hears it, others bring the rest.

All of it runs on one event loop. What waits for pieces is a place in the engine's list of requests and a little memory;
sentences go to text_frontend and on to gpt_decoder as they are finished.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from chattts_serving.errors import CancelledError, DeadlineExceededError, InvalidInputError
from chattts_serving.request import MAX_LEXICON_CHARACTERS
from chattts_serving.speech.reader import Values
from chattts_serving.speech.session import Models, SpeechSession, give_up, send_all, watched
from chattts_serving.speech.windows import ReadingPlan
from chattts_serving.text.lexicon import Lexicon, parse_lexicon
from chattts_serving.text.part import NOTHING, Part, SoFar
from chattts_serving.text.unfinished import WITHOUT_ENTRIES, Sentence, UnfinishedText

FIRST, NEXT, LAST = PARTS = ("first", "next", "last")
MAX_ID_CHARACTERS = 64
MAX_HURRY_MS = 60_000
INPUTS = ("text_id", "part", "max_wait_ms")  # of the pieces alone
NO_TEXT = " "  # for text_frontend, which has the text in parts
GIVEN = ("generation", "so_far")  # by text_frontend for each part


@dataclass(frozen=True)
class Piece:
    """One piece.

    Attributes:
        text_id: the text that it belongs to.
        part: "first", "next" or "last".
        text: what comes, maybe nothing.
        max_wait_ms: of the first: after which time without a piece clauses are spoken; None for never.
        lexicon: of the first: the request's entries, as JSON.
    """

    text_id: str
    part: str
    text: str
    max_wait_ms: int | None
    lexicon: str = ""

    @classmethod
    def of(cls, inputs: Mapping[str, object]) -> Piece | None:
        """The piece that a request with these inputs is; None where it has a whole text.

        Raises:
            InvalidInputError: it is no right one.
        """
        if not any(name in inputs for name in INPUTS):
            return None
        text_id, part, text = (inputs.get(name, "") for name in ("text_id", "part", "text"))
        if not isinstance(text_id, str) or not 1 <= len(text_id) <= MAX_ID_CHARACTERS:
            allowed = f"the name of a text in pieces, 1 to {MAX_ID_CHARACTERS} characters"
            raise InvalidInputError("text_id", text_id, allowed)
        if part not in PARTS:
            raise InvalidInputError("part", part, f"one of {', '.join(PARTS)}, with 'text_id'")
        if not isinstance(text, str) or "\0" in text:
            raise InvalidInputError("text", text, "a UTF-8 string without NUL characters")
        if part != FIRST:
            for name, value in inputs.items():
                if name not in ("text_id", "part", "text"):
                    raise InvalidInputError(name, value, f"none with a part that is '{part}': 'first' has said it")
        wait = inputs.get("max_wait_ms")
        if wait is not None and (not isinstance(wait, int) or not 1 <= wait <= MAX_HURRY_MS):
            raise InvalidInputError("max_wait_ms", wait, f"an integer from 1 to {MAX_HURRY_MS}")
        lexicon = inputs.get("lexicon", "")
        if not isinstance(lexicon, str) or len(lexicon) > MAX_LEXICON_CHARACTERS:
            raise InvalidInputError("lexicon", lexicon, f"0 to {MAX_LEXICON_CHARACTERS:,} characters")
        return cls(text_id, str(part), text, wait, lexicon)


class OpenText:
    """A text whose pieces come."""

    def __init__(
        self, inputs: Values, wait_s: float, hurry_s: float | None, lexicon: Lexicon = WITHOUT_ENTRIES
    ) -> None:
        """Nothing has come.

        Args:
            inputs: of text_frontend, but for the text.
            wait_s: seconds without a piece after which it is given up.
            hurry_s: after which what seems complete is spoken; None for never.
            lexicon: of the server and the request.
        """
        self.inputs = {**inputs, "text": NO_TEXT}
        flags = {"normalize": True, "strict_tags": False}
        self._text = UnfinishedText(
            lexicon=lexicon,
            **{name: bool(np.asarray(inputs.get(name, usual)).item()) for name, usual in flags.items()},
        )
        self._wait_s, self._hurry_s = wait_s, hurry_s
        self._sentences: list[Sentence] = []
        self._error: InvalidInputError | None = None
        self._changed = asyncio.Event()
        self._has_ended = False
        self._last_came = time.monotonic()
        self._beginning = ""
        self._is_first = True
        self.goes_on = True

    @property
    def warning(self) -> str:
        """What of it is not spoken, as far as it is known."""
        return self._text.warning

    def add(self, piece: Piece) -> None:
        """One more piece; where it makes the text a wrong one, `take` says so.

        Raises:
            InvalidInputError: the last one has come already.
        """
        if self._has_ended:
            raise InvalidInputError("part", piece.part, f"none: the last piece of {piece.text_id!r} has come")
        self._last_came = time.monotonic()
        self._has_ended = piece.part == LAST
        self._beginning = self._beginning or piece.text
        self._changed.set()
        if self._error is None:
            try:
                self._sentences += self._text.add(piece.text)
                if self._has_ended:
                    self._sentences += self._text.end()
            except InvalidInputError as error:
                self._error = error

    def take(self, so_far: SoFar = NOTHING) -> Part:
        """The sentences that are finished and were not taken; `goes_on` says whether others may follow.

        Args:
            so_far: what text_frontend said of the parts before.

        Raises:
            InvalidInputError: the text is wrong.
        """
        if self._error is not None:
            raise self._error
        self.goes_on = not self._has_ended
        part = Part(tuple(self._sentences), self._is_first, self.goes_on, so_far, self._beginning)
        self._sentences, self._is_first = [], False
        return part

    async def wait(self) -> None:
        """Return once there is something to take.

        Raises:
            DeadlineExceededError: no piece came for too long.
            InvalidInputError: the text is wrong.
        """
        hurried_at: float | None = None  # the piece after which it was tried
        while not (self._sentences or self._has_ended or self._error):
            self._changed.clear()
            hurries = self._hurry_s is not None and hurried_at != self._last_came
            patience = self._hurry_s if hurries and self._hurry_s is not None else self._wait_s
            left = self._last_came + patience - time.monotonic()
            try:
                await asyncio.wait_for(self._changed.wait(), max(0.0, left))
            except (TimeoutError, asyncio.TimeoutError):  # two classes until Python 3.11
                if not hurries:
                    message = f"deadline exceeded: no piece of the text came for {self._wait_s:g} s"
                    raise DeadlineExceededError(message) from None
                hurried_at = self._last_came
                self._sentences += self._text.hurry()


class OpenTexts:
    """The texts of one process that have not been spoken to their end, by their names."""

    def __init__(self, wait_s: float, num_instances: int, lexicon: Lexicon = WITHOUT_ENTRIES) -> None:
        """`wait_s` as for `OpenText`, `lexicon` of the server; of several processes, each would know its own texts."""
        self._wait_s, self._num_instances, self._lexicon = wait_s, num_instances, lexicon
        self._texts: dict[str, OpenText] = {}

    @contextmanager
    def opened(self, piece: Piece, inputs: Values) -> Iterator[OpenText]:
        """The text that `piece` begins, which others find by its name within this block; `inputs` as for `OpenText`.

        Raises:
            InvalidInputError: there is one of that name, or its lexicon is wrong.
        """
        if self._num_instances > 1:
            raise InvalidInputError("text_id", piece.text_id, "none: chattts_stream has several instances here")
        if piece.text_id in self._texts:
            raise InvalidInputError("text_id", piece.text_id, "a name that no other open text has")
        hurry_s = None if piece.max_wait_ms is None else piece.max_wait_ms / 1000
        lexicon = self._lexicon.with_entries(parse_lexicon(piece.lexicon))
        found = OpenText(inputs, self._wait_s, hurry_s, lexicon)
        found.add(piece)
        self._texts[piece.text_id] = found
        try:
            yield found
        finally:
            del self._texts[piece.text_id]

    def add(self, piece: Piece) -> None:
        """Give a further piece to its text.

        Raises:
            InvalidInputError: there is no such text, or its last piece has come.
        """
        text = self._texts.get(piece.text_id)
        if text is None:
            raise InvalidInputError(
                "text_id", piece.text_id, "the name of a text that is open: its 'first' comes first"
            )
        text.add(piece)


async def stream(
    models: Models,
    plan: ReadingPlan,
    text: OpenText,
    send: Callable[[Values], None],
    is_cancelled: Callable[[], bool],
) -> None:
    """As `session.stream`, for a `text` that comes in pieces.

    Raises:
        ServingError: the request failed, or was cancelled.
    """
    inputs = {**text.inputs, "part": text.take().to_json()}
    prepared = await models.call("text_frontend", inputs, [*GIVEN, "speaker_embedding", "used_speaker"])
    if is_cancelled():
        raise CancelledError("the caller has gone")
    told: dict[str, Any] = {"used_speaker": prepared["used_speaker"], "warning": text.warning}
    session = SpeechSession(models, plan, prepared)
    sending = asyncio.create_task(send_all(session, told, send))
    feeding = asyncio.create_task(_feed(models, session, text, prepared, told))
    await watched(session, asyncio.create_task(_both(session, sending, feeding)), is_cancelled)


async def _feed(models: Models, session: SpeechSession, text: OpenText, prepared: Values, told: dict[str, Any]) -> None:
    """Hand sentences on as they are finished, after those of which text_frontend said `prepared`."""
    seed = json.loads(str(prepared["generation"]))["seed"]  # one for all parts
    while text.goes_on:
        await text.wait()
        part = text.take(SoFar.from_json(str(prepared["so_far"])))
        inputs = {**text.inputs, "seed": np.array([seed], np.int64), "part": part.to_json()}
        prepared = await models.call("text_frontend", inputs, GIVEN)
        told["warning"] = text.warning
        await session.extend(str(prepared["generation"]))


async def _both(session: SpeechSession, sending: asyncio.Task[None], feeding: asyncio.Task[None]) -> None:
    """Wait until all is sent. Where one task fails the other ends, too."""
    try:
        await asyncio.wait((sending, feeding), return_when=asyncio.FIRST_EXCEPTION)
        if not sending.done():
            await give_up(session, sending)
            feeding.result()
        sending.result()
    finally:
        for task in (sending, feeding):
            task.cancel()
        await asyncio.gather(sending, feeding, return_exceptions=True)
