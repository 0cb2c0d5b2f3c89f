"""Numbers, dates, times, units and symbols as words: wetext's grammars behind one function that never fails."""

from __future__ import annotations

import re

from wetext import Normalizer

# "1,234,567" is one number in Chinese text too; wetext's Chinese grammar reads it as three.
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")

# wetext's English grammar reads these characters only apart from digits ("# 1", not "#1"); where one stands between two
# digits it belongs to a date, a fraction or a sum, and is read as it is.
_SYMBOL_BEFORE_DIGIT = re.compile(r"(?<!\d)([#%&*+/=@\[\]^_|\u2212])(?=\d)")
_SYMBOL_AFTER_DIGIT = re.compile(r"(?<=\d)([#$&*+/=@\[\]^_|~\u2212])(?!\d)")
_FOREIGN_BEFORE_DIGIT = re.compile(r"([^\x00-\x7f€£¥])(?=\d)")
_FOREIGN_AFTER_DIGIT = re.compile(r"(?<=\d)([^\x00-\x7f€£¥°℃²³½])")


class Verbalizer:
    """Writes out what a sentence has in digits and symbols. One instance serves one thread."""

    def __init__(self) -> None:
        """Make ready both grammars; they were loaded when wetext was imported (0.5 s, 50 MB)."""
        self._normalizers = {language: Normalizer(lang=language, operator="tn") for language in ("zh", "en")}

    def __call__(self, text: str, language: str) -> str:
        """`text` in words, without blanks at its ends.

        Takes about 0.1 ms per character, a little more than linear: callers bound the length of `text`.

        Args:
            text: a piece of a sentence, without tags; its only white space are blanks.
            language: "zh" or "en".
        """
        if language == "zh":
            text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
        spoken = self._try(text, language)
        if spoken is not None:
            return spoken
        text = _apart(text)
        spoken = self._try(text, language)
        if spoken is not None:
            return spoken
        return " ".join(self._word(word, language) for word in text.split())

    def _word(self, word: str, language: str) -> str:
        spoken = self._try(word, language)
        if spoken is None:  # keep what cannot be read: digits among it are better spoken somehow than lost
            spoken = "".join(self._try(run, language) or run for run in re.findall(r"\d+|\D+", word))
        return spoken

    def _try(self, text: str, language: str) -> str | None:
        """wetext's reading, or None where its grammars have no path for `text`."""
        try:
            spoken = str(self._normalizers[language].normalize(text))
        except AssertionError:  # the first of two grammars has none (wetext 0.1.8)
            return None
        return spoken if spoken or not text.strip() else None  # the second has none


def _apart(text: str) -> str:
    """`text` with single blanks only, and some between digits and the characters that may not touch them."""
    text = _SYMBOL_BEFORE_DIGIT.sub(r" \1 ", text)
    text = _SYMBOL_AFTER_DIGIT.sub(r" \1 ", text)
    text = _FOREIGN_BEFORE_DIGIT.sub(r"\1 ", text)
    text = _FOREIGN_AFTER_DIGIT.sub(r" \1", text)
    return " ".join(text.split())
