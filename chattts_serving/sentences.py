"""Long text in pieces that the model speaks one by one: sentences, merged where too short and cut where too long."""

from __future__ import annotations

import re
import unicodedata

from chattts_serving.tags import TAG_PATTERN

# A piece's width is how long it takes to say, in Latin letters: MAX_PIECE_WIDTH is 360 letters, 120 Chinese characters
# or 72 digits, which are 25 to 30 s of speech and as many tokens at most.
_WIDE = 3  # a Chinese character, one of another script, a tag
_DIGIT = 5  # spoken as a word of its own
_NUMBER = 10  # "½" or "⑳": two words
MAX_PIECE_WIDTH = 360
MIN_PIECE_WIDTH = 12  # 4 Chinese characters or 12 letters; the model is unsteady on less
MAX_PIECES = 1_500  # of 20,000 characters: each costs gpt_decoder a prompt

_ATOM = re.compile(f"{TAG_PATTERN}|.", re.DOTALL)  # what is never cut

# Where a sentence ends: at a newline, or after a run of these with the closing brackets, quotes and tags that touch it.
# An ASCII mark needs white space, a wide character or the end of the text behind it: "a.b", "x?y=1" and "3.14" go on.
_CLOSING = rf"(?:[”’\"'）)】」』》〉]|{TAG_PATTERN})*"
_END = re.compile(
    r"\n+"
    rf"|[。！？…；][。！？…；.!?]*{_CLOSING}"
    rf"|(?<![.!?])[!?][.!?]*{_CLOSING}(?![!-~”’）】」』》〉])"
    rf"|(?<![.!?])\.[.!?]*{_CLOSING}(?=\s|$)"
)  # the lookbehinds keep a long run of marks from being tried from each of its places

# A full stop after one of these ends no sentence, nor does one after a single letter ("J. Smith", "e.g.", "p.m.").
_ABBREVIATIONS = frozenset(
    [
        *("mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "mt", "rev", "hon", "gen", "sen", "rep", "gov", "capt"),
        *("col", "lt", "sgt", "inc", "ltd", "co", "corp", "dept", "vs", "etc", "approx", "ave", "blvd", "rd"),
        *("jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    ]
)
_BEFORE_NUMBER = frozenset(["no", "nos", "fig", "figs", "vol", "p", "pp", "sec", "ch", "eq"])  # "No. 5"; "No. You go."
_NUMBER_FOLLOWS = re.compile(r"\s*\d")
_LAST_WORD = re.compile(r"(?:[A-Za-z]\.)*[A-Za-z]+\Z")

_Measured = tuple[str, int]  # a piece and its width

_SOFT_BREAKS = ("，,、;；:：—", " \t\u3000")  # where to cut an over-long sentence, the best first


def split_sentences(text: str) -> list[str]:
    """`text` as a list of pieces that the model can speak well.

    Every character of `text` is in one piece, in order, but for white space at a piece's ends; no piece is blank or
    wider than MAX_PIECE_WIDTH, and none has part of a tag. Of 20,000 characters there are at most MAX_PIECES.
    """
    pieces = [_measured(piece) for sentence in _sentences(text) for piece in _cut(sentence)]
    least = MIN_PIECE_WIDTH
    pieces = _merge_short(pieces, least)
    while len(pieces) > MAX_PIECES and least < MAX_PIECE_WIDTH:
        least *= 2
        pieces = _merge_short(pieces, least)
    return [stripped for piece, _ in pieces if (stripped := piece.strip())]


def _sentences(text: str) -> list[str]:
    """`text` cut after the end of each sentence."""
    ends = [match.end() for match in _END.finditer(text) if not _is_abbreviation(text, match)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def _is_abbreviation(text: str, end: re.Match[str]) -> bool:
    """Whether `end` is the full stop of an abbreviation or an initial."""
    if end.group() != ".":
        return False
    word = _LAST_WORD.search(text, max(0, end.start() - 20), end.start())
    if word is None:
        return False
    last = word.group().lower().rpartition(".")[2]
    if last in _BEFORE_NUMBER:
        return _NUMBER_FOLLOWS.match(text, end.end()) is not None
    return len(last) == 1 or last in _ABBREVIATIONS


def _width(atom: str) -> int:
    if atom.isdecimal():
        return _DIGIT
    if unicodedata.category(atom[0]) == "No":
        return _NUMBER
    return 1 if len(atom) == 1 and atom.isascii() else _WIDE


def _cut(sentence: str) -> list[str]:
    """`sentence` in pieces of at most MAX_PIECE_WIDTH, cut at commas or blanks where there are any."""
    atoms = _ATOM.findall(sentence)
    pieces = []
    start = end = width = 0
    while end < len(atoms):
        width += _width(atoms[end])
        if width > MAX_PIECE_WIDTH:
            end = _last_soft_break(atoms, start, end)
            pieces.append("".join(atoms[start:end]))
            start, width = end, 0
        else:
            end += 1
    return [*pieces, "".join(atoms[start:])]


def _last_soft_break(atoms: list[str], start: int, end: int) -> int:
    """Where to cut atoms[start:end]: behind the last good place of its second half, or at `end`."""
    middle = (start + end) // 2
    for breaks in _SOFT_BREAKS:
        for place in range(end - 1, middle, -1):
            if atoms[place] in breaks and not atoms[place + 1].isdigit():  # "1,000" stays whole
                return place + 1
    return end


def _measured(piece: str) -> _Measured:
    return piece, sum(map(_width, _ATOM.findall(piece)))


def _merge_short(pieces: list[_Measured], least: int) -> list[_Measured]:
    """`pieces` with each that is narrower than `least` joined to the next, the last one to the one before."""
    merged: list[_Measured] = []
    for piece in pieces:
        if merged and merged[-1][1] < least and _fit(merged[-1], piece):
            merged[-1] = _join(merged[-1], piece)
        else:
            merged.append(piece)
    if len(merged) > 1 and merged[-1][1] < least and _fit(*merged[-2:]):
        merged[-2:] = [_join(*merged[-2:])]
    return merged


def _fit(left: _Measured, right: _Measured) -> bool:
    return left[1] + right[1] <= MAX_PIECE_WIDTH


def _join(left: _Measured, right: _Measured) -> _Measured:
    return left[0] + right[0], left[1] + right[1]
