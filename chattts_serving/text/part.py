"""A part of a text on its way from who takes its pieces to who normalises them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_PAUSE_TOKENS
from chattts_serving.text.sentences import End
from chattts_serving.text.unfinished import Sentence


@dataclass(frozen=True)
class Part:
    """Sentences of one text, in their order.

    Attributes:
        sentences: that are finished, and were in no part before.
        is_first: whether no part came before.
        goes_on: whether others may follow.
        work: that numbers have cost in the parts before, as `Verbalizer` counts it.
        pause: audio tokens of silence after the last sentence before that has something to say; 0 where there was none.
        beginning: of the whole text, for messages.
    """

    sentences: tuple[Sentence, ...]
    is_first: bool = True
    goes_on: bool = False
    work: int = 0
    pause: int = 0
    beginning: str = ""

    def to_json(self) -> str:
        """This part as one JSON object."""
        sentences = [(one.text, one.end.name, one.language) for one in self.sentences]
        return json.dumps({**vars(self), "sentences": sentences}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Read what `to_json` wrote.

        Raises:
            InvalidInputError: `text` is no such object.
        """
        try:
            values = json.loads(text)
            sentences = [Sentence(str(one), End[end], str(language)) for one, end, language in values.pop("sentences")]
            part = cls(sentences=tuple(sentences), **values)
            is_right = part.work >= 0 and 0 <= part.pause <= MAX_PAUSE_TOKENS and isinstance(part.beginning, str)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise InvalidInputError("part", text, "what chattts_stream writes") from error
        if not is_right:
            raise InvalidInputError("part", text, "what chattts_stream writes")
        return part
