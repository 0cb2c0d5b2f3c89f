"""Numbers, dates, times, units and symbols as words: our rules, then wetext's grammars, behind one function.

The grammars read nothing but what has digits and symbols: they take ordinary words for abbreviations ("Sun", "No.").
"""

from __future__ import annotations

import re

from wetext import Normalizer

from chattts_serving.text import chinese, english

# "1,234,567" is one number in Chinese text too; wetext's Chinese grammar reads it as three.
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")

# What the English grammar reads with the words that belong to it: a month beside a day, the half of the day behind a
# time, both sides of a sign that stands alone.
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_WRITTEN = r"\S*[\d#$%&*+/=@\\^_|~€£¥]\S*|\S*\w\.(?:com|org|net|edu|gov|io|cn|ai|dev)\b\S*"
_SIGN = r"[-+*/=&@^|~]"
_SPAN = re.compile(
    rf"(?<!\S)(?:{_MONTH} (?=\d)|\S+ (?={_SIGN} ))*(?:{_WRITTEN})"
    rf"(?: (?:{_WRITTEN}|(?:{_MONTH}|[AaPp]\.?[Mm]\.?),?(?!\w)|(?<= {_SIGN} )\S+))*"
)
_AROUND = re.compile(r"^([(\"'“‘\[{<]*)(.*?)((?<![ap]\.m)[)\"'”’\]}>,.;:!?…]*)$", re.DOTALL | re.IGNORECASE)

# wetext's English grammar reads these characters only apart from digits ("# 1", not "#1"); where one stands between two
# digits it belongs to a date, a fraction or a sum, and is read as it is.
_SYMBOL_BEFORE_DIGIT = re.compile(r"(?<!\d)([#%&*+/=@\[\]^_|\u2212])(?=\d)")
_SYMBOL_AFTER_DIGIT = re.compile(r"(?<=\d)([#$&*+/=@\[\]^_|~\u2212])(?!\d)")
_FOREIGN_BEFORE_DIGIT = re.compile(r"([^\x00-\x7f€£¥])(?=\d)")
_FOREIGN_AFTER_DIGIT = re.compile(r"(?<=\d)([^\x00-\x7f€£¥°℃²³½])")

_READ_IN_CHINESE = re.compile(r"[\d#$%&*+/=@^_|~€£¥￥°℃²³½]")
_COLON = re.compile(r"(?<=\d):(?=\d)")
_PERCENT = re.compile(r"(\d[\d.]*)%")

_GRAMMARS = {language: Normalizer(lang=language, operator="tn") for language in ("zh", "en")}

# The grammars' work, in letters of English words, which take 0.04 ms each on one core.
_MAX_WORK = 30_000  # 1 to 2 s: prose of 20,000 characters, 7 % of them hard; as many hard ones would take 7 s
_HARD_WORK = 8  # a hard character of English, 0.1 to 0.35 ms
_HARD = re.compile(r"[^A-Za-z ]|\b[A-Za-z]\b")  # digits, marks, letters that stand alone
_CHINESE_WORK = 2  # a character of Chinese that has a digit, 0.1 ms; Chinese without one is never looked at
_CALL_WORK = 3
_DIGIT = re.compile(r"\d")


class Verbalizer:
    """Writes out what the sentences of one request have in digits and symbols, until `_MAX_WORK` is done.

    What is left then stays as it is, so that no text holds the caller for long.
    """

    def __init__(self, work: int = 0) -> None:
        """`work` was done before; the grammars were loaded when wetext was imported (0.5 s, 50 MB)."""
        self._work = work

    @property
    def work(self) -> int:
        """What was done for the request so far."""
        return self._work

    def __call__(self, text: str, language: str) -> str:
        """`text` in words, without blanks at its ends.

        Args:
            text: a piece of a sentence, without tags; its only white space are blanks. Callers bound its length: the
                last piece before the end of the work is done as a whole.
            language: "zh" or "en".
        """
        if language == "en":
            return _SPAN.sub(self._span, english.rewrite(text)).strip()
        text = _THOUSANDS.sub(lambda match: match.group().replace(",", ""), chinese.rewrite(text))
        return self._read(text, language) if _READ_IN_CHINESE.search(text) else text.strip()

    def _span(self, match: re.Match[str]) -> str:
        """What the English grammar makes of a span, less the marks around it."""
        before, text, behind = _AROUND.findall(match.group())[0]
        return f"{before}{self._read(text, 'en')}{behind}" if text else match.group()

    def _read(self, text: str, language: str) -> str:
        """What the grammar of `language` makes of `text`, or of what it can read of it."""
        if self._work >= _MAX_WORK:
            return _unread(text, language)
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
        self._work += _work(text, language)
        try:
            spoken = str(_GRAMMARS[language].normalize(text))
        except AssertionError:  # the first of two grammars has none (wetext 0.1.8)
            return None
        return spoken if spoken or not text.strip() else None  # the second has none


def _unread(text: str, language: str) -> str:
    """`text` with its digits, and words for the signs that would be lost among them."""
    if language == "en":
        return _COLON.sub(" ", text).strip()
    return _PERCENT.sub(r"百分之\1", _COLON.sub("点", text)).strip()


def _work(text: str, language: str) -> int:
    """How long the grammars take for `text`, at most and about; see `_MAX_WORK`."""
    if language == "zh":
        return _CALL_WORK + (_CHINESE_WORK * len(text) if _DIGIT.search(text) else 0)
    return _CALL_WORK + len(text) + (_HARD_WORK - 1) * len(_HARD.findall(text))


def _apart(text: str) -> str:
    """`text` with single blanks only, and some between digits and the characters that may not touch them."""
    text = _SYMBOL_BEFORE_DIGIT.sub(r" \1 ", text)
    text = _SYMBOL_AFTER_DIGIT.sub(r" \1 ", text)
    text = _FOREIGN_BEFORE_DIGIT.sub(r"\1 ", text)
    text = _FOREIGN_AFTER_DIGIT.sub(r" \1", text)
    return " ".join(text.split())
