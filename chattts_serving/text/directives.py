"""What a text says in brackets of how it is to be read, beside the control tags that the model knows itself.

[pause 500ms] and [pause 1.5s] are silence of exactly that length, [spell A1-B2] is said sign by sign. What only looks
like one of these ([pause 2 min], [spell 5€]) is an error, as with control tags; "[pause]" and "[spell it out]" are
punctuation.
"""

from __future__ import annotations

import re
from decimal import Decimal

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_SILENCE_S

MAX_SPELLED = 64  # characters of one [spell ...], which is never cut
_SIGNS = {  # English, Chinese
    "-": ("dash", "杠"),
    "_": ("underscore", "下划线"),
    ".": ("dot", "点"),
    "/": ("slash", "斜杠"),
    "@": ("at", "at"),
    "+": ("plus", "加"),
    "#": ("hash", "井号"),
}
_DIGITS = (
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    tuple("零一二三四五六七八九"),
)

PAUSE_PATTERN = r"\[pause [0-9]{1,6}(?:\.[0-9]{1,6})?m?s\]"
SPELL_PATTERN = rf"\[spell [A-Za-z0-9{re.escape(''.join(_SIGNS))}]{{1,{MAX_SPELLED}}}\]"
_PAUSE = re.compile(rf"({PAUSE_PATTERN})")
_SPELL = re.compile(SPELL_PATTERN)
_LENGTH = re.compile(r"([0-9.]+)(m?s)")
_MEANT = re.compile(r"\[(?:pause [-+]?\.?[0-9][^\[\]\n]*|spell [^\s\[\]]*)\]")
_ALLOWED_PAUSE = f"[pause 500ms] or [pause 1.5s], from 0s to {MAX_SILENCE_S}s"
_ALLOWED_SPELL = f"[spell ...] with 1 to {MAX_SPELLED} letters, digits and {' '.join(_SIGNS)}"


def check_directives(name: str, text: str) -> None:
    """Check those in the input `name`.

    Raises:
        InvalidInputError: one is none, or a pause is too long; the message shows it.
    """
    for found in _MEANT.findall(text):
        if found.startswith("[pause"):
            if not _PAUSE.fullmatch(found) or pause_samples(found) > MAX_SILENCE_S * SAMPLE_RATE:
                raise InvalidInputError(name, found, _ALLOWED_PAUSE)
        elif not _SPELL.fullmatch(found):
            raise InvalidInputError(name, found, _ALLOWED_SPELL)


def refuse_directives(name: str, text: str) -> None:
    """Refuse them in the input `name`, which is not read out.

    Raises:
        InvalidInputError: there is one, or what looks like one.
    """
    for found in _MEANT.findall(text):
        raise InvalidInputError(name, found, "text without [pause ...] and [spell ...]")


def split_pauses(text: str) -> list[str]:
    """`text` taken apart at its pauses: text at even places (maybe empty), pauses at odd ones."""
    return _PAUSE.split(text)


def pause_samples(pause: str) -> int:
    """How many samples a pause such as "[pause 1.5s]" has, to the nearest."""
    number, unit = _LENGTH.findall(pause)[0]
    return round(Decimal(number) * SAMPLE_RATE / (1_000 if unit == "ms" else 1))


def is_spelling(text: str) -> bool:
    """Whether `text` is a [spell ...] that can be said."""
    return _SPELL.fullmatch(text) is not None


def is_spelled(tag: str) -> bool:
    """Whether `tag` is a [spell ...]."""
    return tag.startswith("[spell ")


def num_spelled(tag: str) -> int:
    """How many signs a [spell ...] has."""
    return len(tag) - len("[spell ]")


def spelled(tag: str, language: str) -> str:
    """What is said of a [spell ...], in words of `language`, "zh" or "en": "A one dash B two"."""
    place = int(language == "zh")
    signs = tag.removeprefix("[spell ").removesuffix("]")
    words = [
        _DIGITS[place][int(sign)] if sign.isdigit() else _SIGNS[sign][place] if sign in _SIGNS else sign.upper()
        for sign in signs
    ]
    return " ".join(words)
