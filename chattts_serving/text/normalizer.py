"""From what people write to what the model was trained on: words, Chinese characters and four kinds of punctuation.

The rules are those of ChatTTS 0.2.5 (`ChatTTS/norm.py`); where ours differ on purpose,
tests/text/test_normalizer.py lists the case and the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.text.directives import is_spelled, spelled
from chattts_serving.text.tags import split_tags, without_tags

# Half-width punctuation and its full-width form, which Chinese text gets. Brackets are not among it: they are for tags.
_HALF_WIDTH = "!\"'#$%&(),-*+./:;<=>?@\\^`{|}~"
_FULL_WIDTH = "！“‘＃＄％＆（），－＊＋。／：；＜＝＞？＠＼＾｀｛｜｝～"
_TO_FULL_WIDTH = str.maketrans(_HALF_WIDTH, _FULL_WIDTH)

# Punctuation that the model does not know, by what comes nearest.
_TO_KNOWN = str.maketrans(
    {
        **dict.fromkeys("：；（）【】『』「」《》－", "，"),
        **dict.fromkeys(":;()<>-", ","),
        "！": "。",
        "!": ".",
    }
)
_UNKNOWN = re.compile(r"[^\u4e00-\u9fffA-Za-z0-9，。、,. ]+")
_WHITE_SPACE = re.compile(r"\s")
_SPARE_BLANKS = re.compile(r" +(?=[ ,.，。、])")
_APOSTROPHES = frozenset("'’‘")

Verbalize = Callable[[str, str], str]  # a text without tags and its language

_CHINESE_CHARACTER = re.compile(r"[\u4e00-\u9fff]")
_ENGLISH_WORD = re.compile(r"\b[A-Za-z]+\b")


def detect_language(text: str, otherwise: str = "en") -> str:
    """ "zh" where Chinese characters outnumber English words, else "en"; `otherwise` where there are neither."""
    text = without_tags(text)
    num_chinese, num_english = len(_CHINESE_CHARACTER.findall(text)), len(_ENGLISH_WORD.findall(text))
    if num_chinese == num_english == 0:
        return otherwise
    return "zh" if num_chinese > num_english else "en"


def load_homophones(path: Path) -> dict[str, str]:
    """Characters that the model mispronounces, and ones of the same sound that it does not: {"粡": "同", ...}.

    Raises:
        ConfigError: the file is missing, or is no such map.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}; run python -m export") from error
    if not isinstance(values, dict) or not all(
        isinstance(value, str) and len(key) == len(value) == 1 for key, value in values.items()
    ):
        raise ConfigError(f"{path} is no map of characters to characters; run python -m export again")
    return values


class Normalizer:
    """Rewrites one sentence so that the model can say it; tags stay as and where they are."""

    def __init__(self, homophones: Mapping[str, str]) -> None:
        """`homophones` as `load_homophones` gives them."""
        self._homophones = str.maketrans(dict(homophones))

    def __call__(self, text: str, language: str, verbalize: Verbalize | None) -> str:
        """`text` with what cannot be spoken left out.

        Args:
            text: one sentence of what `to_known_characters` gives, tags among it but no pauses.
            language: "zh" or "en".
            verbalize: writes out numbers, dates and units; without it digits stay digits.

        Returns:
            Chinese characters, ASCII letters and digits, ",.，。、", blanks, and the control tags of `text`.
        """
        pieces = split_tags(text)
        pieces[::2] = [self._normalize(piece, language, verbalize) for piece in pieces[::2]]
        are_spelled = [place for place in range(1, len(pieces), 2) if is_spelled(pieces[place])]
        for place in are_spelled:
            pieces[place] = f" {spelled(pieces[place], language)} "
        text = "".join(pieces)
        return (_SPARE_BLANKS.sub("", text) if are_spelled else text).strip()

    def _normalize(self, text: str, language: str, verbalize: Verbalize | None) -> str:
        """The same for text without tags."""
        text = _WHITE_SPACE.sub(" ", text)
        if verbalize:
            text = verbalize(text, language)
            if language == "zh":
                text = text.translate(_TO_FULL_WIDTH)
        text = text.translate(_TO_KNOWN).translate(self._homophones)
        return _UNKNOWN.sub(_leave_out, text)


def _leave_out(match: re.Match[str]) -> str:
    """Nothing, or a blank where two words would run into one ("yes—no"); an apostrophe parts no words ("don't")."""
    text, (start, end) = match.string, match.span()
    between_words = start > 0 and end < len(text) and text[start - 1].isalnum() and text[end].isalnum()
    ascii_words = between_words and text[start - 1].isascii() and text[end].isascii()
    return " " if ascii_words and not _APOSTROPHES.issuperset(match.group()) else ""
