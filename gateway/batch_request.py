"""A request of many texts, with the fields of vLLM-Omni's `/v1/audio/speech/batch`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from chattts_client.errors import shown
from chattts_client.several import PRIORITY
from pydantic import Field, ValidationError, WithJsonSchema

from gateway.audio import FormatName
from gateway.errors import GatewayError
from gateway.request import MODEL, MODEL_PATTERN, SpeechRequest, Text, wrong_field

MAX_ITEMS, MAX_BATCH_CHARACTERS = 64, 100_000
ID = r"\w[\w.-]{0,63}"  # part of a file's name


class BatchItem(SpeechRequest):
    """One text of a batch: a request for speech, always a whole file, and a name for it."""

    KIND: ClassVar[str] = "a batch"
    LEFT_OUT: ClassVar[Sequence[str]] = ("stream", "stream_format", "mode")

    model: str = Field(default=MODEL, json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"})
    response_format: FormatName = "wav"
    priority: Text | None = PRIORITY
    word_times: bool | None = Field(default=None, description="say when each word is said")
    id: str | None = Field(
        default=None, description="by which the answer calls it", json_schema_extra={"pattern": f"^{ID}$"}
    )

    @property
    def has_place_for_words(self) -> bool:
        """They are a field of the result."""
        return True

    def file_name(self, index: int) -> str:
        """What the file is called in an archive."""
        return f"{_name(self.id, index)}.{self.response_format}"

    def words_name(self, index: int) -> str:
        """What the file of its words is called there."""
        return f"{_name(self.id, index)}.words.json"


# Told apart one by one, so that a wrong item is an error of its own.
_ITEM = BatchItem.model_json_schema(ref_template="#/components/schemas/{model}")
Item = Annotated[dict[str, Any], WithJsonSchema({name: value for name, value in _ITEM.items() if name != "$defs"})]


class BatchRequest(BatchItem):
    """Texts, and what holds for all of them that do not say otherwise."""

    LEFT_OUT: ClassVar[Sequence[str]] = ("input", "id", *BatchItem.LEFT_OUT)

    input: str = ""
    items: list[Item] = Field(min_length=1, max_length=MAX_ITEMS, description="each with `input`, and its own fields")
    answer_format: Literal["json", "ndjson", "zip"] = Field(
        default="json", description="one object, a line for each text as it is spoken, or an archive of files"
    )

    def check(self, *, strict: bool) -> None:
        """Refuse what is wrong with all of it; what is wrong with an item, `item` says."""
        super().check(strict=strict)
        names: set[str] = set()
        for index, item in enumerate(self.items):
            given = item.get("id")
            name = given if isinstance(given, str) else _name(None, index)
            if given is not None and not (name is given and re.fullmatch(ID, name, re.ASCII)):
                allowed = "1 to 64 of A-Z, a-z, 0-9, '_', '-' and '.', neither of the last two in front"
                raise _wrong_items(f"[{index}].id", f"is {shown(given)}; allowed are {allowed}")
            if name.lower() in names:  # file systems may not tell capitals from small letters
                raise _wrong_items(f"[{index}].id", f"is {shown(name)}, which is another item's; allowed is a new one")
            names.add(name.lower())
        num_characters = sum(map(len, self.texts))
        if num_characters > MAX_BATCH_CHARACTERS:
            allowed = f"allowed are {MAX_BATCH_CHARACTERS:,} together"
            raise _wrong_items("", f"have {num_characters:,} characters; {allowed}")

    @property
    def texts(self) -> list[str]:
        """What each item says, "" where it is wrong."""
        return [_said(item.get("input")) for item in self.items]

    @property
    def _common(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, exclude={"items", "answer_format"})

    def item(self, index: int) -> BatchItem:
        """One text, with what holds for all of them.

        Raises:
            GatewayError: it is wrong.
        """
        own = {name: value for name, value in self.items[index].items() if value is not None}
        try:
            return BatchItem.model_validate(self._common | own)
        except ValidationError as error:
            raise wrong_field(error.errors()[0]) from None


def _name(given: str | None, index: int) -> str:
    return given or f"{index:02}"


def _said(given: object) -> str:
    """A text, or those of turns in lines."""
    turns = given if isinstance(given, list) else [{"text": given}]
    texts = [turn.get("text") for turn in turns if isinstance(turn, dict)]
    return "\n".join(text for text in texts if isinstance(text, str))


def _wrong_items(where: str, message: str) -> GatewayError:
    return GatewayError(400, f"'items{where}' {message}", "invalid_value", "items")
