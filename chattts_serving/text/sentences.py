"""Long text in pieces that the model speaks one by one: sentences, merged where too short and cut where too long."""

from __future__ import annotations

import enum
import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from chattts_serving.text.directives import is_spelled, num_spelled, pause_samples, split_pauses
from chattts_serving.text.tags import CONTROL_PATTERN, TAG_PATTERN

# A piece's width is how long it takes to say, in Latin letters: MAX_PIECE_WIDTH is 360 letters, 120 Chinese characters
# or 72 digits, which are 25 to 30 s of speech and as many tokens at most.
_WIDE = 3  # a Chinese character, one of another script, a tag
_DIGIT = 5  # spoken as a word of its own
_NUMBER = 10  # "½" or "⑳": two words
MAX_PIECE_WIDTH = 360
MIN_PIECE_WIDTH = 12  # 4 Chinese characters or 12 letters; the model is unsteady on less
MAX_PIECES = 1_500  # of 20,000 characters: each costs gpt_decoder a prompt

_ATOM = re.compile(f"{TAG_PATTERN}|.", re.DOTALL)  # what is never cut

_NEWLINES = "\n\r\f\u2028\u2029"
_PARAGRAPH = re.compile(rf"[^{_NEWLINES}]+(?:[{_NEWLINES}]\s*)?")  # with the white space up to the next

# Where a sentence ends: after a run of these with the closing brackets, quotes and tags that touch it, and white space.
# An ASCII mark needs white space, a wide character or the end of the text behind it: "a.b", "x?y=1" and "3.14" go on.
_CLOSING = rf"(?:[”’\"'）)】」』》〉]|{CONTROL_PATTERN})*"
_END = re.compile(
    rf"([。！？…；][。！？…；.!?]*{_CLOSING}"
    rf"|(?<![.!?])[!?][.!?]*{_CLOSING}(?![!-~”’）】」』》〉])"
    rf"|(?<![.!?])\.[.!?]*{_CLOSING}(?=\s|$))\s*"
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

_SOFT_BREAKS = ("，,、;；:：—", " \t\u3000")  # where to cut an over-long sentence, the best first
_CLAUSE = re.compile(rf"(?:[{_SOFT_BREAKS[0]}](?!\d)|[{_NEWLINES}])\s*")


class End(enum.Enum):
    """What ends a piece."""

    PARAGRAPH = enum.auto()  # one newline or several; also the end of the text
    SENTENCE = enum.auto()
    CUT = enum.auto()  # none of these: the sentence was too long


class Piece(NamedTuple):
    """Text to speak in one go, and what ends it; or no text, and silence that was asked for, in samples."""

    text: str
    end: End
    silence: int | None = None


class _Measured(NamedTuple):
    """A piece with the white space that follows it, and the width without that."""

    text: str
    width: int
    end: End


def split_sentences(text: str) -> list[Piece]:
    """`text` in pieces that the model can speak well, and the pauses between them.

    Every character of `text` is in one piece, in order, but for white space at a piece's ends and pauses, which are
    pieces of their own; no other piece is blank or wider than MAX_PIECE_WIDTH, and none has part of a tag. Of 20,000
    characters there are at most MAX_PIECES without pauses, and MAX_SENTENCES of `request` with any.
    """
    least = MIN_PIECE_WIDTH
    stretches = split_pauses(text)
    spoken = [_pieces(stretch) for stretch in stretches[::2]]
    while sum(map(len, spoken)) > MAX_PIECES and least < MAX_PIECE_WIDTH:
        least *= 2
        spoken = [_merge_short(pieces, least) for pieces in spoken]
    found = _stripped(spoken[0])
    for pause, pieces in zip(stretches[1::2], spoken[1:], strict=True):
        found += [_silence(pause), *_stripped(pieces)]
    return found


def split_finished(text: str) -> tuple[list[Piece], str]:
    """The pieces of `text` that stay as they are whatever follows it, and the rest, where splitting goes on.

    A word must not be cut at the end of `text`, nor a tag, nor a run of marks. What follows may lengthen the last
    piece or have it cut; and as one that is short joins the piece before, that is there only once another has begun.
    """
    *ended, text = split_pauses(text)
    found = []
    for stretch, pause in zip(ended[::2], ended[1::2], strict=True):
        found += [*_stripped(_pieces(stretch)), _silence(pause)]
    if not text.strip():
        return found, text
    *finished, last = _pieces(text)
    rest = last.text.rstrip() + text[len(text.rstrip()) :]
    if finished and finished[-1].width < MIN_PIECE_WIDTH:  # the last one is too wide for it, and may yet be cut
        rest = finished.pop().text + rest
    return found + _stripped(finished), rest


def split_complete(text: str) -> tuple[list[Piece], str]:
    """The pieces of `text` up to its last sentence that is complete, or clause, whichever ends later; and the rest."""
    ends = [match.end() for match in _END.finditer(text) if not _is_abbreviation(text, match)]
    clauses = [match.end() for match in _CLAUSE.finditer(text)]
    after_pause = len(text) - len(split_pauses(text)[-1])
    cut = max([after_pause, *ends[-1:], *clauses[-1:]])
    complete = text[:cut]
    pieces = split_sentences(complete)
    spoken = complete.rstrip()
    if pieces and pieces[-1].silence is None:
        end = End.CUT if spoken[-1] in _SOFT_BREAKS[0] else End.SENTENCE
        if any(newline in complete[len(spoken) :] for newline in _NEWLINES):
            end = End.PARAGRAPH
        pieces[-1] = pieces[-1]._replace(end=end)
    return pieces, text[cut:]


def _pieces(text: str) -> list[_Measured]:
    """Those of `text`, which has no pauses. A short sentence joins one of its own paragraph, where there is another."""
    pieces = [piece for paragraph in _paragraphs(text) for piece in _merge_short(paragraph, MIN_PIECE_WIDTH)]
    return _merge_short(pieces, MIN_PIECE_WIDTH)


def _stripped(pieces: list[_Measured]) -> list[Piece]:
    return [Piece(piece.text.strip(), piece.end) for piece in pieces]


def _silence(pause: str) -> Piece:
    return Piece("", End.CUT, pause_samples(pause))


def _paragraphs(text: str) -> Iterator[list[_Measured]]:
    """The pieces of each paragraph, none of them blank."""
    for paragraph in _PARAGRAPH.findall(text.strip()):
        pieces = []
        for sentence in _sentences(paragraph):
            pieces += [_measured(piece, End.CUT) for piece in _cut(sentence)]
            pieces[-1] = pieces[-1]._replace(end=End.SENTENCE)
        yield [*pieces[:-1], pieces[-1]._replace(end=End.PARAGRAPH)]


def _sentences(paragraph: str) -> list[str]:
    """`paragraph` cut after the end of each sentence and the white space that follows it."""
    ends = [match.end() for match in _END.finditer(paragraph) if not _is_abbreviation(paragraph, match)]
    sentences = [paragraph[start:end] for start, end in zip([0, *ends], [*ends, len(paragraph)], strict=True)]
    return [sentence for sentence in sentences if sentence]


def _is_abbreviation(text: str, end: re.Match[str]) -> bool:
    """Whether `end`, a match of _END, is the full stop of an abbreviation or an initial."""
    if end[1] != ".":
        return False
    word = _LAST_WORD.search(text, max(0, end.start() - 20), end.start())
    if word is None:
        return False
    last = word.group().lower().rpartition(".")[2]
    if last in _BEFORE_NUMBER:
        return _NUMBER_FOLLOWS.match(text, end.end(1)) is not None
    return len(last) == 1 or last in _ABBREVIATIONS


def _width(atom: str) -> int:
    if is_spelled(atom):
        return num_spelled(atom) * _DIGIT
    if atom.isdecimal():
        return _DIGIT
    if unicodedata.category(atom[0]) == "No":
        return _NUMBER
    return 1 if len(atom) == 1 and atom.isascii() else _WIDE


def _cut(sentence: str) -> list[str]:
    """`sentence` in pieces of at most MAX_PIECE_WIDTH, cut at commas or blanks where there are any; none is blank."""
    spoken = sentence.rstrip()
    atoms = _ATOM.findall(spoken)
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
    pieces.append("".join(atoms[start:]) + sentence[len(spoken) :])
    return [piece for piece in pieces if not piece.isspace()]


def _last_soft_break(atoms: list[str], start: int, end: int) -> int:
    """Where to cut atoms[start:end]: behind the last good place of its second half, or at `end`."""
    middle = (start + end) // 2
    for breaks in _SOFT_BREAKS:
        for place in range(end - 1, middle, -1):
            if atoms[place] in breaks and not atoms[place + 1].isdigit():  # "1,000" stays whole
                return place + 1
    return end


def _total_width(text: str) -> int:
    return sum(map(_width, _ATOM.findall(text)))


def _measured(piece: str, end: End) -> _Measured:
    return _Measured(piece, _total_width(piece.rstrip()), end)


def _merge_short(pieces: list[_Measured], least: int) -> list[_Measured]:
    """`pieces` with each that is narrower than `least` joined to the next, the last one to the one before."""
    merged: list[_Measured] = []
    for piece in pieces:
        if merged and merged[-1].width < least:
            merged[-1:] = _joined(merged[-1], piece)
        else:
            merged.append(piece)
    if len(merged) > 1 and merged[-1].width < least:
        merged[-2:] = _joined(*merged[-2:])
    return merged


def _joined(left: _Measured, right: _Measured) -> list[_Measured]:
    """Both in one piece, or as they are where that would be too wide."""
    width = left.width + _total_width(left.text[len(left.text.rstrip()) :]) + right.width
    if width > MAX_PIECE_WIDTH:
        return [left, right]
    return [_Measured(left.text + right.text, width, right.end)]
