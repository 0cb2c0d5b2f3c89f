"""A text that comes in pieces, wherever they are cut: sentences leave it once no further text could change them.

Sentences, warning and errors are those of the whole text. Two things make that sure: what a whole text goes through
before it is split looks at neighbours and lines only, so a part of it is settled where neither reaches over its end,
and no entry of the lexicon may; and `sentences.split_finished` keeps what the next sentence may still join.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_TEXT_CHARACTERS
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.directives import MAX_SPELLED, check_directives
from chattts_serving.text.lexicon import Lexicon
from chattts_serving.text.markup import MEANT, without_markup
from chattts_serving.text.normalizer import detect_language
from chattts_serving.text.scripts import Scripts
from chattts_serving.text.sentences import (
    MAX_PIECE_WIDTH,
    MAX_PIECES,
    End,
    Piece,
    split_complete,
    split_finished,
    split_sentences,
)
from chattts_serving.text.tags import check_tags, without_tags

# Between two words, or two Chinese characters: no rule for characters joins what stands on either side, and none for
# markup takes what follows for the beginning of a line.
_BETWEEN = re.compile(r"(?<=\s)(?=[A-Za-z\u4e00-\u9fff])|(?<=[\u4e00-\u9fff，。！？；、…])(?=[A-Za-z\u4e00-\u9fff])")
_CUT_WORD = re.compile(r"\u00ad\s*\n\s*(?=\S)")  # two lines that are one
# What a mark further on in the line may make markup of: half a pair, or a line that begins with a mark.
_OPENS = re.compile(r"[\[<`*_|]|~~|==")
_LINE_MARK = re.compile(r"\s*(?:[`~|#>\[:=+_•‣◦▪●○-]|\*(?!\*{0,2}[^\s*]))")
_UNSURE = re.compile(r"\\|&\S|(?<!\S)[*_`~]{2,}(?!\S)")  # rewritten alone, though maybe half of something
WITHOUT_ENTRIES = Lexicon()
# The address of a link whose text was taken for a footnote, which no open bracket shows.
_OPEN_LINK = re.compile(r"\]\((?:[^()\s]|\([^()\s]*\))*(?:\([^()\s]*|[ \t]+(?:[\"'][^\"'\n]*[\"']?)?[ \t]*)?\Z")
_TRY_AGAIN = 1.25  # times as long as what was not settled when it was looked at last
_MAY_END = re.compile(r"[.!?。！？…；\n\r\f\u2028\u2029]|\[pause ")
_OPEN_BRACKET = re.compile(r"\[[^\[\]\n]*\Z")  # which may become a pause or a spelling
_MAYBE_TAG = re.compile(rf"\[[^\[\]\n]{{0,{MAX_SPELLED + len('spell ')}}}\Z")
_PART_OF_WORD = re.compile(r"[\x21-\x7e]*[A-Za-z0-9\[_'-]\Z")


class Sentence(NamedTuple):
    """A sentence of a text in known characters, without markup, not yet normalised.

    Attributes:
        text: its words.
        end: what ends it.
        language: "zh" or "en".
        silence: where it is a pause, without words: samples.
    """

    text: str
    end: End
    language: str
    silence: int | None = None


class Languages:
    """The language of each sentence; one without words has that of the one before, the first ones that of the next."""

    def __init__(self) -> None:
        """No sentence was seen."""
        self._language = ""
        self._waiting: list[Piece] = []

    def add(self, pieces: Iterable[Piece]) -> list[Sentence]:
        """More of the text; the sentences whose language is known, all but those without words at the beginning."""
        found: list[Sentence] = []
        for piece in pieces:
            self._language = detect_language(piece.text, otherwise=self._language)
            self._waiting.append(piece)
            if self._language:
                found += self.end()
        return found

    def end(self) -> list[Sentence]:
        """The sentences that still wait."""
        waiting, self._waiting = self._waiting, []
        language = self._language or detect_language("")
        return [Sentence(piece.text, piece.end, language, piece.silence) for piece in waiting]


class UnfinishedText:
    """One text, as much of it as has come."""

    def __init__(
        self, *, normalize: bool = True, strict_tags: bool = False, lexicon: Lexicon = WITHOUT_ENTRIES
    ) -> None:
        """Nothing has come; arguments as in `SynthesisRequest`, `lexicon` with the entries of the server."""
        self._normalize, self._strict_tags, self._lexicon = normalize, strict_tags, lexicon
        self._raw = ""  # what is not settled
        self._looked_at = 0  # its length when that was tried last
        self._unread = ""  # what is settled, and may begin a word of the lexicon
        self._num_said = 0  # characters of what was not
        self._open = ""  # what of that is not given out
        self._is_line_start = True
        self._beginning = ""  # of the text, for messages
        self._num_characters = self._num_pieces = 0
        self._languages, self._scripts = Languages(), Scripts()

    @property
    def warning(self) -> str:
        """What of the text is not spoken, as far as it is settled."""
        return self._scripts.warning

    def add(self, text: str) -> list[Sentence]:
        """More text; the sentences that are finished now.

        Raises:
            InvalidInputError: the text has become too long, or has a tag that is none.
        """
        self._num_characters += len(text)
        if self._num_characters > MAX_TEXT_CHARACTERS:
            allowed = f"pieces of 1 to {MAX_TEXT_CHARACTERS:,} characters together, got {self._num_characters:,}"
            raise InvalidInputError("text", text, allowed)
        self._beginning = self._beginning or text
        self._raw = _CUT_WORD.sub("", self._raw + text)
        self._settle_lines()
        self._settle_words()
        if not _MAY_END.search(self._open) and len(self._open.encode()) <= MAX_PIECE_WIDTH:
            return []
        pieces, self._open = split_finished(self._open)
        return self._finished(pieces)

    def end(self) -> list[Sentence]:
        """No more text comes; the sentences that are left.

        Raises:
            InvalidInputError: as `add`, or most of the text is in a script that the model does not know.
        """
        self._settle(len(self._raw))
        self._say(self._lexicon(self._unread))
        self._scripts.check(self._beginning)
        pieces, self._open = split_sentences(self._open), ""
        return self._finished(pieces) + self._languages.end()

    def hurry(self) -> list[Sentence]:
        """What can be said before the text goes on: up to the last sentence, or else clause, that seems complete.

        Sentences may differ from those of the whole text afterwards.

        Raises:
            InvalidInputError: as `add`.
        """
        open_ = _MAYBE_TAG.search(self._raw) or _PART_OF_WORD.search(self._raw)
        self._settle(open_.start() if open_ else len(self._raw))
        pieces, self._open = split_complete(self._open)
        return self._finished(pieces)

    def _settle_lines(self) -> None:
        """Settle all but the last line."""
        newline = self._raw.rstrip().rfind("\n")
        if newline >= 0:
            self._settle(newline + 1)
            self._is_line_start = True

    def _settle_words(self) -> None:
        """Settle of the last line what no mark further on can change."""
        if len(self._raw) < _TRY_AGAIN * self._looked_at:
            return
        ends = [match.end() for match in _BETWEEN.finditer(self._raw)]
        mark = _OPENS.search(self._raw)
        before = [end for end in ends if mark and end <= mark.start()]
        for end in (*ends[-1:], *before[-1:]):
            if self._is_closed(to_known_characters(self._raw[:end])):
                self._settle(end)
                return
        self._looked_at = len(self._raw)

    def _is_closed(self, part: str) -> bool:
        """Whether `part`, a line's beginning or what follows a settled one, is rewritten alike whatever follows."""
        if not self._normalize:
            return not _OPEN_BRACKET.search(part)
        part = MEANT.sub("", part)
        if self._is_line_start and (_LINE_MARK.match(part) or not any(map(str.isalnum, part))):  # maybe a rule
            return False
        if _UNSURE.search(part) or _OPEN_LINK.search(part):
            return False
        return not _OPENS.search(without_tags(without_markup(part)))

    def _settle(self, end: int) -> None:
        known = to_known_characters(self._raw[:end])
        check_tags("text", known, strict=self._strict_tags)
        check_directives("text", known)
        said, self._unread = self._lexicon.begin(self._unread + (without_markup(known) if self._normalize else known))
        self._say(said)
        self._is_line_start = self._is_line_start and not known.strip()
        self._raw, self._looked_at = self._raw[end:], 0

    def _say(self, said: str) -> None:
        self._num_said += len(said)
        self._lexicon.check_length(self._num_said)
        self._scripts.add(said)
        self._open += said

    def _finished(self, pieces: list[Piece]) -> list[Sentence]:
        self._num_pieces += sum(piece.silence is None for piece in pieces)
        if self._num_pieces > MAX_PIECES:
            allowed = f"at most {MAX_PIECES:,} sentences where it comes in pieces"
            raise InvalidInputError("text", f"{self._num_pieces:,} sentences", allowed)
        return self._languages.add(pieces)
