"""Characters as they are typed, pasted and copied from PDFs, in the form that grammars, tokenizer and model know.

Every rule is about single characters, or what stands in for one; words and numbers are `normalizer`'s.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Nothing is seen of them, so nothing is said: soft hyphens, zero-width blanks and joiners, marks of direction,
# selectors of variants. A soft hyphen at the end of a line joins the word that a PDF has cut there.
_CUT_WORD = re.compile(r"\u00ad\s*\n\s*")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e01ef\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]"
)

# Radicals that stand for their characters in PDFs whose font lacks those, and do not decompose in Unicode; and "№",
# which decomposes to a word.
_STANDS_FOR = {"№": "No. "} | dict(
    zip(
        "⺒⺓⺠⺩⺮⻁⻄⻅⻆⻉⻋⻑⻓⻔⻗⻘⻙⻚⻛⻜⻝⻢⻣⻤⻥⻦⻧⻨⻩⻪⻫⻬⻭⻮⻯⻰⻱⻲",
        "巳幺民王竹虎西见角贝车长长门雨青韦页风飞食马骨鬼鱼鸟卤麦黄黾斉齐歯齿竜龙龟龟",
        strict=True,
    )
)

# An apostrophe inside a word, whatever the keyboard had.
_APOSTROPHE = re.compile(r"(?<=[A-Za-z])[`´ʹʻʼʽˈ＇′‵’‘](?=(?:t|s|d|m|ll|re|ve|em)\b)", re.IGNORECASE)

# What full-width signs mean beside digits; elsewhere they are Chinese punctuation.
_SIGN_BEFORE_DIGIT = re.compile(r"[－＋＄＃￠￡￦](?=[\d０-９])")
_SIGN_AFTER_DIGIT = re.compile(r"(?<=[\d０-９])[％＋]")
_SIGN_BETWEEN_DIGITS = re.compile(r"(?<=[\d０-９])[：／．～＊＝，－](?=[\d０-９])")
_HALF_WIDTH = str.maketrans("－＋＄＃￠￡￦％：／．～＊＝，", "-+$#¢£₩%:/.~*=,")
_SYMBOLS = str.maketrans("−〇﹣﹢﹦⁄∕∶", "-零-+=//:")
_BLANK = re.compile(r"[^\S\n\r\f\u2028\u2029 ]")
_AMOUNT = re.compile(r"\d\s?k?$")  # what stands before a unit

# Letters of names that NFKD does not take apart; the others of their blocks say which letter they are in their name.
_LATIN = {"SHARP S": "ss", "ETH": "d", "THORN": "th", "ENG": "ng", "SCHWA": "e", "OPEN E": "e", "OPEN O": "o"}
_LATIN_NAME = re.compile(r"LATIN (CAPITAL|SMALL) (?:LETTER|LIGATURE) (?:DOTLESS |LONG )?(.+?)(?: WITH .+)?$")
_DIGRAPHS = frozenset(("AA", "AE", "AO", "AU", "AV", "AY", "DZ", "IJ", "LJ", "NJ", "OE", "OO"))

_GREEK_ALONE = re.compile(r"(?<![\u0370-\u03ff])[\u0391-\u03c9](?![\u0370-\u03ff])")
_LIKE_GREEK = str.maketrans("\u2126µ", "Ωμ")

_LOOKED_AT = re.compile(r"[^\x00-\x7f\u4e00-\u9fff，。！？、；：“”‘’（）《》…—²³°℃℉Ωμ]")
_KNOWN = re.compile(r"[\x20-\x7e\u4e00-\u9fff²³°]+")


def to_known_characters(text: str) -> str:
    """`text` in letters, digits and marks that are known where there are any for it, else as it is.

    "é" becomes "e", "Ł" "L", "１" "1", "½" " 1/2", "㎏" "kg", "⽅" "方", "don`t" "don't", "α" "alpha".
    What nobody sees goes. Newlines stay, other white space becomes blanks.
    """
    text = _INVISIBLE.sub("", _CUT_WORD.sub("", unicodedata.normalize("NFC", text)))
    text = _APOSTROPHE.sub("'", text)
    if text.isascii():
        return _white_space(text)
    for signs in (_SIGN_BEFORE_DIGIT, _SIGN_AFTER_DIGIT, _SIGN_BETWEEN_DIGITS):
        text = signs.sub(lambda match: match.group().translate(_HALF_WIDTH), text)
    text = _GREEK_ALONE.sub(_greek, text.translate(_SYMBOLS).translate(_LIKE_GREEK))
    return _white_space(_LOOKED_AT.sub(lambda match: _known(match.group()), text))


def _white_space(text: str) -> str:
    return _BLANK.sub(" ", text)


def _greek(match: re.Match[str]) -> str:
    """The letter's name, apart from what it touches; in a unit behind a number ("kΩ", "μm") it stays."""
    before = match.string[match.start() - 1 : match.start()]
    behind = match.string[match.end() : match.end() + 1]
    is_in_unit = match.group() == "Ω" or (match.group() == "μ" and behind.isascii() and behind.isalpha())
    if is_in_unit and _AMOUNT.search(match.string, max(0, match.start() - 3), match.start()):
        return match.group()
    name = unicodedata.name(match.group()).split()[-1].lower()
    return f"{' ' if before.isalnum() else ''}{name}{' ' if behind.isalnum() else ''}"


@lru_cache(4096)
def _known(character: str) -> str:
    """`character`, or what it stands for."""
    if character in _STANDS_FOR:
        return _STANDS_FOR[character]
    if not (character.isalnum() or unicodedata.category(character) in ("So", "Lm", "Sk")):
        return character
    plain = "".join(part for part in _decomposed(character) if not unicodedata.combining(part))
    if plain != character and _KNOWN.fullmatch(plain):
        return f" {plain}" if "/" in plain else plain  # "1½" is not "11/2"
    name = _LATIN_NAME.match(unicodedata.name(character, ""))
    if name is None:
        return character
    letters = _LATIN.get(name[2]) or (name[2] if name[2] in _DIGRAPHS or len(name[2]) == 1 else "")
    if not letters:
        return character
    return letters.capitalize() if name[1] == "CAPITAL" else letters.lower()


def _decomposed(character: str) -> str:
    """`character` as Unicode takes it apart, but for raised digits, which the grammars read in "m²"."""
    kind, _, parts = unicodedata.decomposition(character).rpartition("> ")
    if not parts or character in "²³" or (kind == "<super" and not character.isalnum()):
        return character
    return "".join(_decomposed(chr(int(part, 16))) for part in parts.split()).replace("\u2044", "/")


def other_scripts(text: str) -> dict[str, int]:
    """How many letters of `text`, as `to_known_characters` gives it, nobody can say, by script: {"Cyrillic": 5}."""
    found: dict[str, int] = {}
    for character in _LOOKED_AT.findall(text):
        if character.isalpha():
            script = unicodedata.name(character, "other").split()[0].capitalize()
            script = {"Cjk": "rare Chinese characters"}.get(script, script)
            found[script] = found.get(script, 0) + 1
    return found
