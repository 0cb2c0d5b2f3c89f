"""Letters of scripts that the model does not know: they are left out, and the caller is told."""

from __future__ import annotations

from collections import Counter

from chattts_serving.errors import InvalidInputError
from chattts_serving.text.characters import other_scripts
from chattts_serving.text.tags import without_tags

MAX_LEFT_OUT = 0.5  # of a text's letters; where more are in scripts that the model does not know, it is refused


class Scripts:
    """Counts the letters of one text."""

    def __init__(self) -> None:
        """None was seen."""
        self._others: Counter[str] = Counter()
        self._num_letters = 0

    def add(self, text: str) -> None:
        """Count those of `text`, a part of the text as `to_known_characters` gives it."""
        self._others.update(other_scripts(text))
        self._num_letters += sum(map(str.isalpha, without_tags(text)))

    @property
    def warning(self) -> str:
        """What is not spoken, for people to read; "" where all is."""
        if not self._others:
            return ""
        left_out = self._others.total()
        return f"not spoken, as the model speaks Chinese and English: {left_out:,} letters ({self._names})"

    def check(self, text: str) -> None:
        """Refuse the text, of which a message shows `text`, where the model does not know most of it.

        Raises:
            InvalidInputError: that is so.
        """
        left_out = self._others.total()
        if left_out > MAX_LEFT_OUT * self._num_letters:
            counted = f"{left_out:,} of its {self._num_letters:,} letters are others ({self._names})"
            raise InvalidInputError("text", text, f"text in Chinese or English; {counted}")

    @property
    def _names(self) -> str:
        return ", ".join(sorted(self._others, key=self._others.__getitem__, reverse=True))
