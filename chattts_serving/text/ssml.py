"""A part of SSML 1.1 as turns, pauses and spellings: speak, p, s, break, sub, say-as, voice, prosody's rate, xml:lang.

Documents come from callers, so the parser is expat with handlers that refuse whatever is no plain element: no DTD, and
so no entities but XML's own five; no processing instructions; a bounded depth. What cannot be done is refused by line
and column instead of being passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn
from xml.parsers import expat

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError
from chattts_serving.request import LANGUAGES, MAX_SILENCE_S, SynthesisRequest
from chattts_serving.text.directives import MAX_SPELLED, is_spelling, pause_samples
from chattts_serving.text.sentences import End
from chattts_serving.text.turns import Turn

MAX_DEPTH = 16
STRENGTHS_MS = {"none": 0, "x-weak": 100, "weak": 250, "medium": 500, "strong": 1_000, "x-strong": 1_500}
RATES = {"x-slow": 1, "slow": 3, "medium": 5, "default": 5, "fast": 7, "x-fast": 9}  # ChatTTS's speed tags
SPELLED = ("characters", "spell-out", "verbatim", "digits")

_ATTRIBUTES = {  # of each element
    "speak": {"version", "xml:lang", "xml:base", "xsi:schemaLocation"},
    "p": {"xml:lang"},
    "s": {"xml:lang"},
    "voice": {"name", "xml:lang"},
    "prosody": {"rate"},
    "break": {"time", "strength"},
    "sub": {"alias"},
    "say-as": {"interpret-as", "format", "detail"},
}
_WITHOUT_ELEMENTS = ("break", "sub", "say-as")
_TIME = re.compile(r"\+?([0-9]{1,6}(?:\.[0-9]{1,6})?m?s)")
_RATE = re.compile(r"([+-]?)([0-9]{1,4}(?:\.[0-9]{1,4})?)(%?)")
_SPEED_TAG = re.compile(r"\[speed_[0-9]\]")
_BLANKS = re.compile(r"\s+")
_SENTENCE_ENDS = tuple(".!?。！？…；")


@dataclass(frozen=True)
class _Style:
    """What holds inside an element: voice, speed tag and language; None for those of the request."""

    voice: str | None = None
    speed: int | None = None
    language: str | None = None


@dataclass
class _Run:
    """Text of one style.

    Attributes:
        style: its.
        where: line and column of the element that it stands in.
        text: as a text of a request has it.
    """

    style: _Style
    where: str
    text: str = ""

    @property
    def end(self) -> End:
        """What is at the end of the text."""
        if self.text.endswith("\n"):
            return End.PARAGRAPH
        return End.SENTENCE if self.text.rstrip().endswith(_SENTENCE_ENDS) else End.CUT


def turns_of_ssml(request: SynthesisRequest) -> tuple[Turn, ...]:
    """The turns of `request`, whose text is a document of SSML, 1 or more.

    Raises:
        InvalidInputError: it is none, or has an element, attribute or value that is not among the above; the message
            says where.
    """
    document = _Document()
    try:
        document.parse(request.text)
    except expat.ExpatError as error:
        where = f"line {error.lineno}, column {error.offset + 1}"
        allowed = f"well-formed XML; {expat.ErrorString(error.code)} at {where}"
        raise InvalidInputError("text", _line_of(request.text, error.lineno), allowed) from error
    runs = [run for run in document.runs if run.text.strip()] or [_Run(_Style(), "line 1, column 1")]
    return tuple(_turn(request, run) for run in runs)


def _turn(request: SynthesisRequest, run: _Run) -> Turn:
    style = run.style
    inputs: dict[str, Any] = {}
    if style.voice is not None:
        inputs = {"speaker": style.voice, "speaker_sample": "", "sample_text": ""}
    if style.speed is not None:
        inputs["prompt"] = f"{_SPEED_TAG.sub('', request.prompt)}[speed_{style.speed}]"
    if style.language is not None:
        inputs["language"] = style.language
    turn = Turn(replace(request, ssml=False, **inputs), "text", f"at {run.where}", end=run.end)
    if not run.text.strip():  # an empty document: what is said of it is said of the document
        return turn
    with turn.named():
        return replace(turn, request=replace(turn.request, text=run.text.strip()))


class _Document:
    """One document while it is read.

    Attributes:
        runs: text by style, in order.
    """

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self._open: list[tuple[str, _Style, str]] = []  # elements, what holds in them, and where they begin
        self._held: list[str] | None = None  # of sub and say-as: what stands in them
        self._instead: Callable[[str], str] = str  # makes of that what is said
        self._parser = expat.ParserCreate("utf-8")  # whatever the document says of itself
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = lambda *_: self._refuse("<!DOCTYPE", "a document without DTD")
        self._parser.EntityDeclHandler = lambda *_: self._refuse("<!ENTITY", "a document without entities")
        self._parser.ProcessingInstructionHandler = lambda target, _: self._refuse(
            f"<?{target}", "a document without processing instructions"
        )

    def parse(self, text: str) -> None:
        """Read all of it.

        Raises:
            InvalidInputError, expat.ExpatError: it is wrong.
        """
        self._parser.Parse(text.encode(), True)

    @property
    def _where(self) -> str:
        return f"line {self._parser.CurrentLineNumber}, column {self._parser.CurrentColumnNumber + 1}"

    def _refuse(self, found: str, allowed: str, where: str = "") -> NoReturn:
        raise InvalidInputError("text", found, f"at {where or self._where}: {allowed}")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        shown = f"<{name}>"
        if name not in _ATTRIBUTES:
            self._refuse(shown, f"one of {', '.join(sorted(_ATTRIBUTES))}")
        if (name == "speak") != (not self._open):
            self._refuse(shown, "one <speak> around all")
        if self._open and self._open[-1][0] in _WITHOUT_ELEMENTS:
            self._refuse(shown, f"no element in <{self._open[-1][0]}>")
        if len(self._open) >= MAX_DEPTH:
            self._refuse(shown, f"at most {MAX_DEPTH} elements in one another")
        for attribute, value in attributes.items():
            if attribute not in _ATTRIBUTES[name] and not (name == "speak" and attribute.startswith("xmlns")):
                known = ", ".join(sorted(_ATTRIBUTES[name]))
                self._refuse(f'<{name} {attribute}="{value}">', f"<{name}> with {known or 'no attribute'}")
        style = self._open[-1][1] if self._open else _Style()
        self._open.append((name, self._styled(name, attributes, style), self._where))
        if name == "p":
            self._end_paragraph()
        elif name == "break":
            self._add(f"[pause {self._pause(attributes)}]")
        elif name in ("sub", "say-as"):
            self._held, self._instead = [], self._replacement(name, attributes)

    def _end(self, name: str) -> None:
        if self._held is not None:
            held, self._held = "".join(self._held), None
            self._add(self._instead(held))
        elif name == "s":
            self._end_sentence()
        elif name == "p":
            self._end_sentence()
            self._end_paragraph()
        self._open.pop()

    def _text(self, text: str) -> None:
        if self._held is not None:
            self._held.append(text)
        elif text.strip() and self._open[-1][0] == "break":
            self._refuse(text.strip(), "a <break> with nothing in it")
        else:
            self._add(text)

    def _add(self, text: str) -> None:
        _, style, where = self._open[-1]
        if not self.runs or self.runs[-1].style != style:
            if not text.strip():
                return
            self.runs.append(_Run(style, where))
        run = self.runs[-1]
        said = _BLANKS.sub(" ", text)
        run.text += said.lstrip() if not run.text or run.text[-1].isspace() else said

    def _end_sentence(self) -> None:
        """What stands before it is a sentence, with a mark or without one."""
        said = self.runs[-1].text.rstrip() if self.runs else ""
        if said and said[-1].isalnum():
            mark = "." if said[-1].isascii() else "。"
            self.runs[-1].text = f"{said}{mark} "

    def _end_paragraph(self) -> None:
        if self.runs and not self.runs[-1].text.endswith("\n"):
            self.runs[-1].text = f"{self.runs[-1].text.rstrip()}\n"

    def _styled(self, name: str, attributes: Mapping[str, str], style: _Style) -> _Style:
        """The style inside of an element."""
        language = attributes.get("xml:lang")
        if language is not None:
            short = language.lower().partition("-")[0]
            if short not in LANGUAGES:
                self._refuse(f'<{name} xml:lang="{language}">', f"languages {', '.join(LANGUAGES)}, such as en-US")
            style = replace(style, language=short)
        if name == "voice":
            if not attributes.get("name"):
                self._refuse("<voice>", "a voice with a name, as the input 'speaker' takes it")
            style = replace(style, voice=attributes["name"])
        if name == "prosody":
            style = replace(style, speed=self._speed(attributes.get("rate", "")))
        return style

    def _speed(self, rate: str) -> int:
        """The speed tag that is asked for: [speed_5] is the usual rate, one more or less a fifth of an octave."""
        if rate in RATES:
            return RATES[rate]
        found = _RATE.fullmatch(rate)
        factor = 0.0
        if found:
            sign, number, percent = found.groups()
            factor = float(number) / (100 if percent else 1)
            if sign:
                factor = 1 + factor if sign == "+" else 1 - factor
        if factor <= 0 or (found and found[1] and not found[3]):
            allowed = f"a rate of {', '.join(RATES)}, a percentage (80%, +20%) or a factor (1.2)"
            self._refuse(f'<prosody rate="{rate}">', allowed)
        return min(9, max(0, round(5 + 5 * math.log2(factor))))

    def _pause(self, attributes: Mapping[str, str]) -> str:
        """The length of a break: its time, else what its strength stands for."""
        time, strength = attributes.get("time"), attributes.get("strength", "medium")
        if strength not in STRENGTHS_MS:
            self._refuse(f'<break strength="{strength}">', f"a strength of {', '.join(STRENGTHS_MS)}")
        found = _TIME.fullmatch(time or f"{STRENGTHS_MS[strength]}ms")
        if not found or pause_samples(f"[pause {found[1]}]") > MAX_SILENCE_S * SAMPLE_RATE:
            self._refuse(f'<break time="{time}">', f"a time such as 500ms or 1.5s, from 0s to {MAX_SILENCE_S}s")
        return found[1]

    def _replacement(self, name: str, attributes: Mapping[str, str]) -> Callable[[str], str]:
        """What makes of the text in a `sub` or `say-as` what is said."""
        if name == "sub":
            alias = attributes.get("alias", "")
            if not alias.strip():
                self._refuse("<sub>", "a sub with an alias, which is said for it")
            return lambda _: alias
        kind = attributes.get("interpret-as", "")
        if kind not in SPELLED:
            allowed = f"interpret-as {', '.join(SPELLED)}; numbers, dates and the like are read as in any text"
            self._refuse(f'<say-as interpret-as="{kind}">', allowed)
        return self._spelled

    def _spelled(self, text: str) -> str:
        words = [f"[spell {word}]" for word in text.split()]
        for word in words:
            if not is_spelling(word):
                allowed = f"in <say-as> words of 1 to {MAX_SPELLED} letters, digits and - _ . / @ + #"
                self._refuse(word.removeprefix("[spell ").removesuffix("]"), allowed, self._open[-1][2])
        return ", ".join(words)


def _line_of(text: str, number: int) -> str:
    """Line `number`, counted from 1, of a document."""
    lines = text.split("\n")
    return lines[number - 1] if number <= len(lines) else ""
