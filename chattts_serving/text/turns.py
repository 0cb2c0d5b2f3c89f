"""Turns: several voices in one request, each saying its own text in its own manner.

[{"name": "Anna", "speaker": "slt", "text": "Who is it?"}, {"speaker": "rms", "text": "Me.", "pause": 0.2}]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_NAME_CHARACTERS, MAX_SILENCE_S, MAX_TEXT_CHARACTERS, SynthesisRequest
from chattts_serving.text.sentences import End

MAX_TURNS = 200
INPUTS = frozenset(  # of the request that a turn may have for itself
    ("text", "speaker", "speaker_sample", "sample_text", "prompt", "language", "temperature", "top_p", "top_k")
) | {"repetition_penalty"}


@dataclass(frozen=True)
class Turn:
    """One turn of a request; a request without turns is one.

    Attributes:
        request: what is asked for in this turn, `text` and the voice among it.
        input: what said so, "turns", or "text" where that is SSML; "" where there are no turns.
        where: in that, such as "for turn 2".
        name: who speaks, for people.
        pause: samples of silence behind it; None for the usual ones.
        end: what it ends with, by which those are chosen; None is a paragraph.
    """

    request: SynthesisRequest
    input: str = ""
    where: str = ""
    name: str = ""
    pause: int | None = None
    end: End | None = None

    @contextmanager
    def named(self) -> Iterator[None]:
        """What is wrong inside is said of the input that has the turns, with the place of this one.

        Raises:
            InvalidInputError: whatever was wrong.
        """
        try:
            yield
        except InvalidInputError as error:
            if not self.input or error.name not in INPUTS:
                raise
            value = error.value if error.name == self.input else {error.name: error.value}
            raise InvalidInputError(self.input, value, f"{self.where}: {error.allowed}") from error


def turns_of(request: SynthesisRequest) -> tuple[Turn, ...]:
    """The turns of `request`, in order, 1 or more.

    Raises:
        InvalidInputError: `turns` is no JSON list of MAX_TURNS objects at most, one of them has another key or a wrong
            value, or their texts are too long together.
    """
    if not request.turns:
        return (Turn(request),)
    if request.text:
        raise InvalidInputError("turns", request.turns, "none beside 'text'")
    try:
        entries = json.loads(request.turns)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("turns", request.turns, f"a JSON list of objects ({error})") from error
    if not isinstance(entries, list) or not 1 <= len(entries) <= MAX_TURNS:
        found = f"{len(entries)} turns" if isinstance(entries, list) else request.turns
        raise InvalidInputError("turns", found, f"a JSON list of 1 to {MAX_TURNS} objects")
    turns = tuple(_turn(request, number, entry) for number, entry in enumerate(entries, 1))
    num_characters = sum(len(turn.request.text) for turn in turns)
    if num_characters > MAX_TEXT_CHARACTERS:
        allowed = f"texts of at most {MAX_TEXT_CHARACTERS:,} characters together"
        raise InvalidInputError("turns", f"texts of {num_characters:,} characters", allowed)
    return turns


def _turn(request: SynthesisRequest, number: int, entry: object) -> Turn:
    known = {*INPUTS, "name", "pause"}
    if not isinstance(entry, dict) or not known.issuperset(entry) or "text" not in entry:
        raise _wrong(number, entry, f"an object with 'text' and any of {', '.join(sorted(known - {'text'}))}")
    name, pause = entry.get("name", ""), entry.get("pause")
    if not isinstance(name, str) or len(name) > MAX_NAME_CHARACTERS or not (name.isprintable() or not name):
        raise _wrong(number, {"name": name}, f"a name of at most {MAX_NAME_CHARACTERS} printable characters")
    if pause is not None and (type(pause) not in (int, float) or not 0 <= pause <= MAX_SILENCE_S):
        raise _wrong(number, {"pause": pause}, f"a pause of 0 to {MAX_SILENCE_S} seconds behind the turn")
    inputs = {key: value for key, value in entry.items() if key in INPUTS}
    if {"speaker", "speaker_sample"} & set(inputs):  # the request's voice is no part of another one
        inputs = {"speaker": "", "speaker_sample": "", "sample_text": "", **inputs}
    turn = Turn(request, "turns", _where(number), name, None if pause is None else round(pause * SAMPLE_RATE))
    with turn.named():
        return replace(turn, request=replace(request, turns="", **inputs))


def _where(number: int) -> str:
    return f"for turn {number}"


def _wrong(number: int, value: object, allowed: str) -> InvalidInputError:
    return InvalidInputError("turns", value, f"{_where(number)}: {allowed}")
