"""The three forms in which a batch is answered: one JSON object as vLLM-Omni's, lines of JSON, an archive."""

from __future__ import annotations

import base64
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from chattts_client import Word
from pydantic import BaseModel, Field

from gateway.audio import Sink


class Usage(BaseModel):
    """Tokens, as OpenAI counts them."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class BatchResult(BaseModel):
    """What became of one text."""

    index: int = Field(description="its place in `items`, from 0")
    id: str | None = None
    status: Literal["success", "error"]
    audio_data: str | None = Field(default=None, description="the file in base64; in an archive, `file` names it")
    file: str | None = None
    media_type: str | None = None
    sample_rate: int | None = Field(default=None, description="of the model, in Hz")
    seed: str | None = Field(default=None, description="gives the same speech again")
    words: list[Word] | None = Field(
        default=None, description="with `word_times`; in an archive, `words_file` names their file"
    )
    words_file: str | None = None
    warning: str | None = Field(default=None, description="what of the text is not spoken, or that words have no times")
    ignored: list[str] | None = Field(default=None, description="fields that changed nothing")
    usage: Usage | None = None
    error: str | None = Field(default=None, description="what went wrong, for people")
    code: str | None = Field(default=None, description="the same for programs")
    param: str | None = Field(default=None, description="the field that is to blame")
    http_status: int | None = Field(default=None, description="that the text would have been answered alone")


class BatchAnswer(BaseModel):
    """What became of all texts."""

    id: str = Field(description="of the request")
    results: list[BatchResult] = Field(description="in the order of `items`")
    total: int
    succeeded: int
    failed: int


@dataclass(frozen=True)
class Outcome:
    """What became of one text, and its file, b"" where there is none."""

    result: BatchResult
    audio: bytes = b""

    def told(self, **changes: object) -> dict[str, Any]:
        """As JSON has it; `changes` are fields of the result."""
        return self.result.model_copy(update=changes).model_dump(exclude_none=True)

    def with_audio(self) -> bytes:
        """As JSON text that carries the file."""
        audio_data = base64.b64encode(self.audio).decode() if self.audio else None
        return _json(self.told(audio_data=audio_data, file=None, words_file=None))

    def words(self) -> bytes:
        """The file of its words."""
        told = self.told()
        return _json({name: told[name] for name in ("words", "warning") if name in told})


class Answer(Protocol):
    """A body in the making: what may be sent with each outcome, and at the end."""

    media_type: str

    def add(self, outcome: Outcome) -> bytes:
        """What can be sent now that one has come."""

    def finish(self, totals: Mapping[str, object]) -> bytes:
        """The rest."""


class JsonAnswer:
    """One object, the results in the order of the items; those that come before their turn wait."""

    media_type = "application/json"

    def __init__(self) -> None:
        """Nothing is sent yet."""
        self._waiting: dict[int, bytes] = {}
        self._next = 0

    def add(self, outcome: Outcome) -> bytes:
        """Those whose turn has come."""
        self._waiting[outcome.result.index] = outcome.with_audio()
        parts = []
        while self._next in self._waiting:
            parts += [b", " if self._next else b'{"results": [', self._waiting.pop(self._next)]
            self._next += 1
        return b"".join(parts)

    def finish(self, totals: Mapping[str, object]) -> bytes:
        """What they come to."""
        return b"], " + _json(totals)[1:]


class LinesAnswer:
    """A line for each outcome as it comes, and one of the totals."""

    media_type = "application/x-ndjson"

    def add(self, outcome: Outcome) -> bytes:
        """A line."""
        return outcome.with_audio() + b"\n"

    def finish(self, totals: Mapping[str, object]) -> bytes:
        """The last line."""
        return _json(totals) + b"\n"


class ArchiveAnswer:
    """Files as they come, and manifest.json, which has the results in the order of the items."""

    media_type = "application/zip"

    def __init__(self) -> None:
        """Nothing is sent yet."""
        self._sink = Sink()
        # Compressed, since readers of streams find the end of no other file.
        self._archive = zipfile.ZipFile(self._sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        self._told: dict[int, dict[str, Any]] = {}

    def add(self, outcome: Outcome) -> bytes:
        """A file, and one of its words where they are wanted; an error has none."""
        result = outcome.result
        self._told[result.index] = outcome.told(words=None)
        if result.file is not None:
            self._archive.writestr(result.file, outcome.audio)
        if result.words_file is not None:
            self._archive.writestr(result.words_file, outcome.words())
        return self._sink.taken()

    def finish(self, totals: Mapping[str, object]) -> bytes:
        """The manifest, and where each file is."""
        results = [told for _, told in sorted(self._told.items())]
        self._archive.writestr("manifest.json", _json({**totals, "results": results}))
        self._archive.close()
        return self._sink.taken()


ANSWERS: Mapping[str, type[Answer]] = {"json": JsonAnswer, "ndjson": LinesAnswer, "zip": ArchiveAnswer}


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
