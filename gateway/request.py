"""A request for speech as OpenAI documents it, and what clients of all kinds make of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, ClassVar, Literal

from chattts_client import SynthesisOptions
from chattts_client.errors import shown
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from gateway.audio import FormatName
from gateway.errors import GatewayError, invalid_field
from gateway.voices import DEFAULT, MAX_ID_CHARACTERS, spoken_by

MODEL = "chattts"
# OpenAI's names, which its clients send unless they are told another one; routers of models put the maker in front.
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
MODEL_PATTERN = rf"(openai/)?({MODEL}|({'|'.join(MODEL_ALIASES)})(-\d{{4}}(-\d{{2}}-\d{{2}})?)?)"
MAX_CHARACTERS, MAX_TURNS = 20_000, 200  # the server's limits
NORMAL_SPEED_TAG = 5
# Of other makers' interfaces: they would be heard or change the file, and have another name here.
MEANT = {
    "audio_format": "response_format",
    "format": "response_format",
    "lang": "language",
    "lang_code": "language",
    "output_format": "response_format",
    "speaker": "voice",
    "text": "input",
    "voice_id": "voice",
    "word_timestamps": "word_times",
}

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


def _described(schema: dict[str, Any], kind: type[Any]) -> None:
    """Leave out what `kind` leaves out, and say that null is a field that is not given."""
    for name in getattr(kind, "LEFT_OUT", ()):
        del schema["properties"][name]
    for name, field in schema["properties"].items():
        kept = {key: field.pop(key) for key in ("default", "description", "title") if key in field}
        if name not in schema.get("required", ()) and field and {"type": "null"} not in field.get("anyOf", ()):
            kinds = [*field.pop("anyOf"), {"type": "null"}] if "anyOf" in field else [{**field}, {"type": "null"}]
            field.clear()
            field["anyOf"] = kinds
        field.update(kept)


class VoiceId(BaseModel):
    """A voice as an object."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(max_length=MAX_ID_CHARACTERS)


class Turn(BaseModel):
    """One turn of several voices."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_described)

    text: str = Field(min_length=1, max_length=MAX_CHARACTERS)
    voice: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | VoiceId = Field(
        default="", description="as that of the request, which is the default"
    )
    name: str = Field(default="", max_length=64, description="who speaks, for people")
    pause: float | None = Field(default=None, ge=0, le=30, description="seconds behind the turn")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    prompt: Text | None = None
    language: Text | None = None

    def values(self, voice: str) -> dict[str, Any]:
        """The turn as the server takes it, in `voice`, which is as `spoken_by` takes it.

        Raises:
            GatewayError: the voice is none.
        """
        return {**self.model_dump(exclude_none=True, exclude={"voice"}), **spoken_by(voice)}


# Told apart before they are checked, so that what is wrong is said of the one that was meant.
Said = Annotated[
    Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS), Tag("text")]
    | Annotated[list[Turn], Field(min_length=1, max_length=MAX_TURNS), Tag("turns")],
    Discriminator(lambda given: "turns" if isinstance(given, list) else "text"),
]


class SpeechRequest(BaseModel):
    """What to say; the fields from `mode` on are this server's own."""

    KIND: ClassVar[str] = "a request"
    LEFT_OUT: ClassVar[Sequence[str]] = ()  # fields that another kind of request has not

    model_config = ConfigDict(extra="forbid", json_schema_extra=_described)

    model: str = Field(
        description="chattts; OpenAI's names are taken for it", json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"}
    )
    input: Said = Field(description="what to say: a text, or turns of several voices")
    voice: Annotated[str, Field(max_length=MAX_ID_CHARACTERS)] | VoiceId = Field(
        default=DEFAULT, description="one of /v1/audio/voices, the id of a cloned voice or a ChatTTS speaker string"
    )
    response_format: FormatName = "mp3"
    speed: float = Field(default=1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    instructions: Any = Field(default=None, description="ignored: this model cannot follow any")
    user: Any = Field(default=None, description="ignored")
    metadata: Any = Field(default=None, description="ignored")

    mode: Literal["exact", "low_latency"] = Field(
        default="exact", description="of the stream: the samples of a whole answer, or the first ones sooner"
    )
    stream: bool = Field(default=True, description="false: the file when it is whole, with its length in it")
    allow_silence: bool | None = Field(
        default=None, description="answer a short silence where `input` has nothing to say, such as an emoji alone"
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
    lexicon: dict[str, str] | None = Field(default=None, description="words and how to say them")
    ssml: bool | None = Field(default=None, description="take `input` for a document of SSML")
    strict_tags: bool | None = Field(default=None, description="refuse bracketed words that are no control tags")
    redraw_long: bool | None = Field(default=None, description="draw sentences again that go on long after their text")
    word_times: bool | None = Field(
        default=None, description="with `stream_format` sse, events that say when each word is said"
    )
    refine_prompt: Text | None = None
    prompt: Text | None = None
    language: Text | None = None
    priority: Text | None = None
    deadline_ms: int | None = None
    refine_temperature: float | None = None
    refine_max_new_tokens: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        """What generated clients send for a field that they were not given."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    def check(self, *, strict: bool) -> None:
        """Refuse what the types above do not.

        Args:
            strict: refuse fields that would be ignored, too.

        Raises:
            GatewayError: 404 for another model, 400 for the rest.
        """
        check_model(self.model)
        for name in self.LEFT_OUT:
            if name in self.model_fields_set:
                raise invalid_field(name, f"is no field of {self.KIND}; leave it out")
        if self.word_times and not self.has_place_for_words:
            raise invalid_field("word_times", "needs 'stream_format' sse: audio has no place for words")
        if strict and self.ignored:
            raise invalid_field(self.ignored[0], "would be ignored, which --strict forbids; leave it out")

    @property
    def has_place_for_words(self) -> bool:
        """Whether the answer can say when words are said."""
        return self.stream_format == "sse"

    @property
    def ignored(self) -> list[str]:
        """The fields that were given and change nothing."""
        return [name for name in ("instructions", "user", "metadata") if getattr(self, name)]

    @property
    def turns(self) -> list[Turn]:
        """What several voices say; none where `input` is a text."""
        return [] if isinstance(self.input, str) else self.input

    @property
    def text(self) -> str:
        """What is said, in lines where there are turns."""
        return self.input if isinstance(self.input, str) else "\n".join(turn.text for turn in self.input)

    @property
    def voice_names(self) -> list[str]:
        """The voice, however it is written, and then that of each turn."""
        own = _named(self.voice) or DEFAULT
        return [own, *(_named(turn.voice) or own for turn in self.turns)]

    def options(self, voices: Sequence[str], speed_tags: Mapping[int, float]) -> tuple[SynthesisOptions, float]:
        """What the server is asked for, and the tempo that its samples are to be changed by.

        Args:
            voices: those of `voice_names`, as `spoken_by` takes them.
            speed_tags: how fast ChatTTS's speed tags are; the one nearest to `speed` is asked for.

        Raises:
            GatewayError: the voice is none.
        """
        own = {option.name for option in fields(SynthesisOptions)} & set(type(self).model_fields)
        values: dict[str, Any] = {name: getattr(self, name) for name in own - {"turns"}} | spoken_by(voices[0])
        if self.turns:
            values["turns"] = [turn.values(voice) for turn, voice in zip(self.turns, voices[1:], strict=True)]
        if self.refine is not None:
            values["skip_refine"] = not self.refine
        tag, tempo = speed_tag(self.speed, speed_tags if self.prompt is None else {})
        if tag != NORMAL_SPEED_TAG:
            values["prompt"] = f"[speed_{tag}]"
        return SynthesisOptions(**values), tempo


def _named(voice: str | VoiceId) -> str:
    name = voice if isinstance(voice, str) else voice.id
    return name.strip().strip("\ufeff").strip()


def wrong_field(error: Mapping[str, Any]) -> GatewayError:
    """What Pydantic says of the field at `loc`, in this API's words."""
    name = next(map(str, error["loc"]), "body")
    of_turn = re.search(r"input\.turns\.(\d+)\.(\w+)", ".".join(map(str, error["loc"])))
    field = f"input[{of_turn[1]}].{of_turn[2]}" if of_turn else name
    if error["type"] == "extra_forbidden":
        meant = f"; '{MEANT[name]}' does what it says" if name in MEANT else ""
        message = f"{shown(field)} is no field of this API{meant}"
    else:
        given = "" if error["type"] == "missing" else f"; it is {shown(error.get('input'))}"
        message = f"'{field}': {error['msg']}{given}"
    return GatewayError(400, message, "invalid_value", name)


def check_model(name: str) -> None:
    """Refuse the name of another model.

    Raises:
        GatewayError: 404.
    """
    if not re.fullmatch(MODEL_PATTERN, name, re.ASCII):
        message = f"the model {shown(name)} does not exist; allowed is {MODEL}"
        raise GatewayError(404, message, "model_not_found", "model")


def speed_tag(speed: float, speed_tags: Mapping[int, float]) -> tuple[int, float]:
    """The speed tag of ChatTTS whose voice is nearest to `speed`, and the tempo that is missing to it."""
    factors = {NORMAL_SPEED_TAG: 1.0, **speed_tags}
    tag = min(factors, key=lambda one: abs(math.log(speed / factors[one])))
    tempo = speed / factors[tag]
    return tag, (1.0 if math.isclose(tempo, 1, abs_tol=1e-3) else tempo)
