"""How words are said: entries of a server's file and of a request, put in place of whole words before all else.

    {"nginx": "engine x", "重庆": "虫庆", "SQL": "[spell SQL]"}

A word of letters is whole where no letter or digit touches it ("nginx's" has "nginx"); Chinese characters have no such
bounds. The longest entry goes first, what was put in place is not looked at again, and case counts.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from chattts_serving.errors import ConfigError, InvalidInputError, shown
from chattts_serving.request import MAX_TEXT_CHARACTERS
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.directives import check_directives
from chattts_serving.text.tags import check_tags, split_tags

MAX_ENTRIES = 500  # of a request
MAX_FILE_ENTRIES, MAX_FILE_BYTES = 20_000, 4_000_000
MAX_WORD_CHARACTERS = 64
MAX_SAID_CHARACTERS = 200

_MOST_BEHIND = 3  # characters behind a word tell whether it is whole
_SUFFIX = re.compile("'(?![sS](?![A-Za-z]))[A-Za-z]")  # an apostrophe by which a word goes on, but for "'s"


class Lexicon:
    """A text -> the same with the words of its entries as they are to be said. Threads may share one."""

    def __init__(self, entries: Mapping[str, str] | None = None) -> None:
        """`entries` as `load_lexicon` and `parse_lexicon` give them."""
        self._entries = dict(entries or {})
        lengths: dict[str, set[int]] = {}
        for word in self._entries:
            lengths.setdefault(word[0], set()).add(len(word))
        self._lengths = {first: sorted(of_first, reverse=True) for first, of_first in lengths.items()}
        self._first = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None

    def __bool__(self) -> bool:
        """Whether there is an entry."""
        return bool(self._entries)

    def with_entries(self, entries: Mapping[str, str]) -> Lexicon:
        """This one with `entries`, which go before its own."""
        return Lexicon({**self._entries, **entries}) if entries else self

    def __call__(self, text: str) -> str:
        """`text`, as `to_known_characters` gives it, with the words replaced; what stands in tags is left alone.

        Raises:
            InvalidInputError: it becomes longer than a text may be.
        """
        if self._first is None:
            return text
        pieces = split_tags(text)
        pieces[::2] = [self._replaced(piece) for piece in pieces[::2]]
        said = "".join(pieces)
        self.check_length(len(said))
        return said

    def begin(self, text: str) -> tuple[str, str]:
        """What is said of `text`, a text's beginning that cuts no tag, whatever follows; and the rest, to go on with.

        The texts that go on so, with the call for the last rest, say together what the call for all of it does.
        """
        if self._first is None:
            return text, ""
        *before, last = split_tags(text)
        before[::2] = [self._replaced(piece) for piece in before[::2]]
        end = len(last)
        while end and _is_letter(last[end - 1]):  # a word that may go on
            end -= 1
        for start, _ in self._words_in(last):
            if self._is_open(last, start):
                end = min(end, start)
                break
        return "".join([*before, self._replaced(last, end)]), last[end:]

    def check_length(self, num_characters: int) -> None:
        """Check how long a text has become with the words replaced.

        Raises:
            InvalidInputError: it is longer than a text may be.
        """
        if self and num_characters > MAX_TEXT_CHARACTERS:
            most = f"at most {MAX_TEXT_CHARACTERS:,} characters"
            allowed = f"entries with which the text has {most}, not {num_characters:,}"
            raise InvalidInputError("lexicon", f"{len(self._entries)} entries", allowed)

    def _replaced(self, text: str, most: int | None = None) -> str:
        """The first `most` characters of `text`, all by default, with the words replaced; none goes past them."""
        parts, end = [], 0
        for start, word in self._words_in(text):
            if word and (most is None or start < most):
                parts += [text[end:start], self._entries[word]]
                end = start + len(word)
        return "".join([*parts, text[end:most]])

    def _words_in(self, text: str) -> Iterator[tuple[int, str]]:
        """Where words of entries may stand, but for places inside of one, and which does; "" for none."""
        end = 0
        for match in self._first.finditer(text) if self._first else ():
            start = match.start()
            if start >= end:
                word = self._word_at(text, start)
                yield start, word
                end = start + len(word)

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self._entries)

    def _is_open(self, text: str, start: int) -> bool:
        """Whether it depends on what follows `text` which word stands at `start`."""
        if len(text) - start >= MAX_WORD_CHARACTERS + _MOST_BEHIND:
            return False
        if start and _is_letter(text[start - 1]) and _is_letter(text[start]):
            return False
        rest = text[start:]
        place = bisect_left(self._sorted, rest)
        if any(word != rest and word.startswith(rest) for word in self._sorted[place : place + 2]):
            return True
        found = [length for length in self._lengths[rest[0]] if rest[:length] in self._entries]
        return any(
            _is_letter(rest[length - 1])
            and (not rest[length:] or (rest[length] == "'" and len(rest) - length < _MOST_BEHIND))
            for length in found
        )

    def _word_at(self, text: str, start: int) -> str:
        """The longest word of an entry that stands at `start`; "" for none."""
        for length in self._lengths[text[start]]:
            word = text[start : start + length]
            if word in self._entries and _is_whole(text, start, start + len(word)):
                return word
        return ""


def _is_whole(text: str, start: int, end: int) -> bool:
    """Whether no word begins before `start` or goes on behind `end`."""
    begins = start == 0 or not (_is_letter(text[start - 1]) and _is_letter(text[start]))
    if not begins or end == len(text) or not _is_letter(text[end - 1]):
        return begins
    return not _is_letter(text[end]) and not _SUFFIX.match(text, end)


def _is_letter(character: str) -> bool:
    """Whether words end where it does not follow: a letter or digit, but no Chinese character."""
    return character.isalnum() and not "\u3040" <= character <= "\u9fff"


def parse_lexicon(text: str) -> dict[str, str]:
    """The entries of the input `lexicon`; "" has none.

    Raises:
        InvalidInputError: it is no JSON object of at most MAX_ENTRIES, or an entry is wrong; the message shows that.
    """
    if not text:
        return {}
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("lexicon", text, f"a JSON object of words and how to say them ({error})") from error
    if not isinstance(entries, dict) or len(entries) > MAX_ENTRIES:
        found = f"{len(entries)} entries" if isinstance(entries, dict) else text
        raise InvalidInputError("lexicon", found, f"a JSON object of at most {MAX_ENTRIES} words and how to say them")
    return _checked(entries)


def load_lexicon(path: Path) -> dict[str, str]:
    """The entries of a file: a JSON object of at most MAX_FILE_ENTRIES.

    Raises:
        ConfigError: it is missing, unreadable or too large, or an entry is wrong; the message shows that.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"the lexicon {path} has more than {MAX_FILE_BYTES:,} bytes, which is what is allowed")
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read the lexicon {path}: {error}") from error
    if not isinstance(entries, dict) or len(entries) > MAX_FILE_ENTRIES:
        allowed = f"a JSON object of at most {MAX_FILE_ENTRIES:,} words and how to say them"
        raise ConfigError(f"the lexicon {path} holds {shown(entries)}; allowed is {allowed}")
    try:
        return _checked(entries)
    except InvalidInputError as error:
        raise ConfigError(f"the lexicon {path} is wrong: {error}") from error


def _checked(entries: Mapping[str, object]) -> dict[str, str]:
    """`entries` with their words in the characters that texts are brought to."""
    checked = {}
    for word, said in entries.items():
        known = to_known_characters(word).strip()
        is_word = 1 <= len(known) <= MAX_WORD_CHARACTERS and known.isprintable()
        if not is_word or "[" in known or "]" in known:
            allowed = f"a word of 1 to {MAX_WORD_CHARACTERS} characters in one line, without [ and ]"
            raise InvalidInputError("lexicon", {word: said}, allowed)
        if not isinstance(said, str) or not 1 <= len(said) <= MAX_SAID_CHARACTERS or not said.isprintable():
            allowed = f"1 to {MAX_SAID_CHARACTERS} printable characters in one line to say for a word"
            raise InvalidInputError("lexicon", {word: said}, allowed)
        checked[known] = to_known_characters(said)
        try:
            check_tags("lexicon", checked[known])
            check_directives("lexicon", checked[known])
        except InvalidInputError as error:
            raise InvalidInputError("lexicon", {word: said}, f"an entry without faults in its tags: {error}") from error
    return checked
