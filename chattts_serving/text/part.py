"""A part of a text on its way from who takes its pieces to who normalises them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

from chattts_serving.errors import InvalidInputError
from chattts_serving.text.sentences import End
from chattts_serving.text.unfinished import Sentence


class SoFar(NamedTuple):
    """What the parts of a text before the next one had.

    Attributes:
        work: that numbers have cost, as `Verbalizer` counts it.
        num_texts: sentences with something to say.
        usual: samples of silence after the last of them where none is asked for.
        asked: samples that were asked for since; None where none were.
        silences: samples that were asked for before that.
    """

    work: int = 0
    num_texts: int = 0
    usual: int = 0
    asked: int | None = None
    silences: int = 0

    def to_json(self) -> str:
        """These numbers as one JSON object."""
        return json.dumps(self._asdict())

    @classmethod
    def from_json(cls, text: str) -> SoFar:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


NOTHING = SoFar()


@dataclass(frozen=True)
class Part:
    """Sentences of one text, in their order.

    Attributes:
        sentences: that are finished, and were in no part before.
        is_first: whether no part came before.
        goes_on: whether others may follow.
        so_far: what the parts before had.
        beginning: of the whole text, for messages.
    """

    sentences: tuple[Sentence, ...]
    is_first: bool = True
    goes_on: bool = False
    so_far: SoFar = NOTHING
    beginning: str = ""

    def to_json(self) -> str:
        """This part as one JSON object."""
        sentences = [(one.text, one.end.name, one.language, one.silence) for one in self.sentences]
        values = {**vars(self), "sentences": sentences, "so_far": self.so_far._asdict()}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: `text` is no such object.
        """
        try:
            values = json.loads(text)
            sentences = [
                Sentence(str(one), End[end], str(language), silence)
                for one, end, language, silence in values.pop("sentences")
            ]
            part = cls(sentences=tuple(sentences), so_far=SoFar(**values.pop("so_far")), **values)
            numbers = [*part.so_far, *(one.silence for one in sentences)]
            is_right = all(number is None or (type(number) is int and number >= 0) for number in numbers)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("part", text, "what chattts_stream writes") from error
        if not is_right or None in (*part.so_far[:3], part.so_far.silences) or not isinstance(part.beginning, str):
            raise InvalidInputError("part", text, "what chattts_stream writes")
        return part
