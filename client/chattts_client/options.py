"""What a caller may ask for, and how it goes over the wire: the contract of `chattts` and `chattts_stream`, once.

`SynthesisOptions` is the table of the optional inputs: name, Python type, Triton datatype and help text. Everything
else (tensors for both protocols, flags of the command line) is made from it. Ranges are the server's business; here
only what cannot be put into a tensor is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from chattts_client.errors import invalid_input

Mode = Literal["exact", "low_latency"]
"""Of a stream: the samples that the whole answer would have, or the first ones sooner."""

FP32_MAX = float(np.finfo(np.float32).max)


def _option(datatype: str, description: str) -> Any:
    """A field that is not sent unless it is given."""
    return field(default=None, metadata={"datatype": datatype, "help": description})


@dataclass(frozen=True)
class SynthesisOptions:
    """The optional inputs of a synthesis; None is not sent and leaves the choice to the server."""

    turns: Sequence[Mapping[str, object]] | None = _option("JSON", "what several voices say, in place of the text")
    speaker: str | None = _option(
        "BYTES",
        "name of a voice of the server, a mixture such as slt:2+rms:1, or ChatTTS speaker string; default sampled "
        "from seed",
    )
    speaker_sample: str | None = _option("BYTES", "ChatTTS spk_smp string: the voice of a recording")
    sample_text: str | None = _option("BYTES", "transcript of the speaker sample")
    seed: int | None = _option("INT64", "decides the sampled voice and every token, >= 0; default random")
    temperature: float | None = _option("FP32", "of the audio tokens, > 0; default 0.3")
    top_p: float | None = _option("FP32", "probability mass to draw from, (0, 1]; default 0.7")
    top_k: int | None = _option("INT32", "tokens to draw from, 1 to 626; default 20")
    repetition_penalty: float | None = _option("FP32", "> 0, 1 is none; default 1.05")
    min_new_tokens: int | None = _option("INT32", "fewest audio tokens per sentence; default 0")
    max_new_tokens: int | None = _option("INT32", "most audio tokens per sentence, to 2048; default 2048 (43.7 s)")
    skip_refine: bool | None = _option("BOOL", "speak the text as it stands, without the refining pass")
    refine_only: bool | None = _option("BOOL", "answer the refined text alone, without audio")
    normalize: bool | None = _option("BOOL", "write out numbers, dates and units as words")
    lexicon: Mapping[str, str] | None = _option("JSON", "words and how to say them")
    ssml: bool | None = _option("BOOL", "take the text for a document of SSML")
    strict_tags: bool | None = _option("BOOL", "refuse bracketed words that are no control tags")
    redraw_long: bool | None = _option(
        "BOOL", "draw sentences again that go on long after their text can have been said"
    )
    word_times: bool | None = _option("BOOL", "say when each word is said")
    refine_prompt: str | None = _option("BYTES", "control tags of the refining pass: [oral_2][laugh_0][break_6]")
    prompt: str | None = _option("BYTES", "control tags of the audio pass; default [speed_5]")
    language: str | None = _option("BYTES", "zh or en; default detected")
    deadline_ms: int | None = _option("INT32", "the server gives up after this many milliseconds; default the timeout")
    priority: str | None = _option("BYTES", "interactive, or batch to let those go first; default interactive")
    refine_temperature: float | None = _option("FP32", "of the refined text, > 0; default 0.7")
    refine_max_new_tokens: int | None = _option("INT32", "most tokens of a refined sentence, to 384; default 384")


class OptionValues(TypedDict, total=False):
    """The fields of `SynthesisOptions` as keyword arguments, for type checkers."""

    turns: Sequence[Mapping[str, object]] | None
    speaker: str | None
    speaker_sample: str | None
    sample_text: str | None
    seed: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    min_new_tokens: int | None
    max_new_tokens: int | None
    skip_refine: bool | None
    refine_only: bool | None
    normalize: bool | None
    lexicon: Mapping[str, str] | None
    ssml: bool | None
    strict_tags: bool | None
    redraw_long: bool | None
    word_times: bool | None
    refine_prompt: str | None
    prompt: str | None
    language: str | None
    deadline_ms: int | None
    priority: str | None
    refine_temperature: float | None
    refine_max_new_tokens: int | None


JSON = frozenset(option.name for option in fields(SynthesisOptions) if option.metadata["datatype"] == "JSON")
"""The inputs that go as JSON text."""
DATATYPES: Mapping[str, str] = {
    "text": "BYTES",
    **{
        option.name: "BYTES" if option.name in JSON else option.metadata["datatype"]
        for option in fields(SynthesisOptions)
    },
}
STREAM_DATATYPES: Mapping[str, str] = {**DATATYPES, "mode": "BYTES"}
PIECE_DATATYPES: Mapping[str, str] = {"text_id": "BYTES", "part": "BYTES", "max_wait_ms": "INT32"}


class InputTensor(NamedTuple):
    """One input as it goes over the wire, for either protocol."""

    name: str
    datatype: str  # Triton's name
    array: NDArray[Any]  # [1, 1] for one value, the batch of one in front


def merged(options: SynthesisOptions | None, changes: OptionValues) -> SynthesisOptions:
    """`options` with `changes` on top.

    Raises:
        TypeError: a name in `changes` is no option.
    """
    return replace(options or SynthesisOptions(), **changes)


def input_tensors(text: str, options: SynthesisOptions, mode: Mode | None = None) -> list[InputTensor]:
    """The tensors of one request: `text` or `turns`, each option that is not None, and `mode`, which streams have.

    Raises:
        InvalidInputError: a value does not fit its tensor; the message names the input.
    """
    values = {"text": text, **{option.name: getattr(options, option.name) for option in fields(options)}, "mode": mode}
    if options.turns is not None and not text:
        del values["text"]
    return [_tensor(name, value) for name, value in values.items() if name == "text" or value is not None]


def piece_tensors(**values: object) -> list[InputTensor]:
    """The tensors of a piece of a text, one for each value that is not None.

    Raises:
        InvalidInputError: as `input_tensors`.
    """
    return [_tensor(name, value) for name, value in values.items() if value is not None]


def _tensor(name: str, value: object) -> InputTensor:
    datatype = {**STREAM_DATATYPES, **PIECE_DATATYPES}[name]
    if name in JSON:
        value = _json(name, value)
    if datatype == "BYTES":
        array = np.array([[_utf8(name, value)]], dtype=object)
    elif datatype == "BOOL":
        array = np.array([[_boolean(name, value)]], dtype=np.bool_)
    elif datatype == "FP32":
        array = np.array([[_number(name, value)]], dtype=np.float32)
    else:
        array = _integer_array(name, value, np.dtype({"INT32": np.int32, "INT64": np.int64}[datatype]))
    return InputTensor(name, datatype, array)


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid_input(name, value, "what JSON can hold: strings, numbers, lists and dicts of these") from error


def _utf8(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise invalid_input(name, value, "a string")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid_input(
            name, value, f"text that UTF-8 can encode; character {error.start + 1} is a lone surrogate"
        ) from error


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise invalid_input(name, value, "True or False")
    return bool(value)


def _number(name: str, value: object) -> float:
    """NaN and infinities pass: the server has the word on ranges."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise invalid_input(name, value, "a number")
    try:
        number = float(value)
        fits = not FP32_MAX < abs(number) < math.inf
    except OverflowError:  # an int beyond every float
        fits = False
    if not fits:
        raise invalid_input(name, value, f"a number that fits 32-bit floating point, -{FP32_MAX:.4g} to {FP32_MAX:.4g}")
    return number


def _integer_array(name: str, value: object, dtype: np.dtype[Any]) -> NDArray[Any]:
    limits = np.iinfo(dtype)
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise invalid_input(name, value, "an integer")
    if not limits.min <= value <= limits.max:
        raise invalid_input(name, value, f"an integer of {limits.bits} bits, {limits.min} to {limits.max}")
    return np.array([[value]], dtype=dtype)
