"""A request for speech as OpenAI documents it, and what clients of all kinds make of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from chattts_client import SynthesisOptions
from chattts_client.errors import shown
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.audio import FormatName
from gateway.errors import GatewayError, invalid_field
from gateway.voices import DEFAULT, MAX_ID_CHARACTERS, spoken_by

MODEL = "chattts"
# OpenAI's names, which its clients send unless they are told another one; routers of models put the maker in front.
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
MODEL_PATTERN = rf"(openai/)?({MODEL}|({'|'.join(MODEL_ALIASES)})(-\d{{4}}(-\d{{2}}-\d{{2}})?)?)"
MAX_CHARACTERS = 20_000  # the server's limit
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
}

Text = Annotated[str, Field(max_length=MAX_CHARACTERS)]


def _nullable(schema: dict[str, Any]) -> None:
    """Say that null is a field that is not given."""
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


class SpeechRequest(BaseModel):
    """What to say; the fields from `mode` on are this server's own."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_nullable)

    model: str = Field(
        description="chattts; OpenAI's names are taken for it", json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"}
    )
    input: str = Field(min_length=1, max_length=MAX_CHARACTERS, description="what to say")
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
    strict_tags: bool | None = Field(default=None, description="refuse bracketed words that are no control tags")
    redraw_long: bool | None = Field(default=None, description="draw sentences again that go on long after their text")
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
        if strict and self.ignored:
            raise invalid_field(self.ignored[0], "would be ignored, which --strict forbids; leave it out")

    @property
    def ignored(self) -> list[str]:
        """The fields that were given and change nothing."""
        return [name for name in ("instructions", "user", "metadata") if getattr(self, name)]

    @property
    def voice_name(self) -> str:
        """The voice, however it is written."""
        name = self.voice if isinstance(self.voice, str) else self.voice.id
        return name.strip().strip("\ufeff").strip() or DEFAULT

    def options(self, voice: str, speed_tags: Mapping[int, float]) -> tuple[SynthesisOptions, float]:
        """What the server is asked for, and the tempo that its samples are to be changed by.

        Args:
            voice: as `spoken_by` takes it.
            speed_tags: how fast ChatTTS's speed tags are; the one nearest to `speed` is asked for.

        Raises:
            GatewayError: the voice is none.
        """
        own = {option.name for option in fields(SynthesisOptions)} & set(type(self).model_fields)
        values: dict[str, Any] = {name: getattr(self, name) for name in own} | spoken_by(voice)
        if self.refine is not None:
            values["skip_refine"] = not self.refine
        tag, tempo = speed_tag(self.speed, speed_tags if self.prompt is None else {})
        if tag != NORMAL_SPEED_TAG:
            values["prompt"] = f"[speed_{tag}]"
        return SynthesisOptions(**values), tempo


def wrong_field(error: Mapping[str, Any]) -> GatewayError:
    """What Pydantic says of the field at `loc`, in this API's words."""
    name = next(map(str, error["loc"]), "body")
    if error["type"] == "extra_forbidden":
        meant = f"; '{MEANT[name]}' does what it says" if name in MEANT else ""
        message = f"{shown(name)} is no field of this API{meant}"
    else:
        given = "" if error["type"] == "missing" else f"; it is {shown(error.get('input'))}"
        message = f"'{name}': {error['msg']}{given}"
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
