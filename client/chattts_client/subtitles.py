"""Subtitles, SubRip or WebVTT: a cue a word where words have times, else a sentence."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from chattts_client.speech import Sentence, Word

ENDINGS = (".srt", ".vtt")

_CONTROL_TAG = re.compile(r"\[[a-zA-Z][a-zA-Z0-9_]*\]")  # the server has made every other bracket a word or a comma


class _Cue(NamedTuple):
    start: float
    end: float
    text: str


def subtitles(ending: str, sentences: Sequence[Sentence], words: Sequence[Word] = ()) -> str:
    """A file with an `ending` of ENDINGS: a cue a word, or a sentence where there are no words.

    Control tags are left out; a cue of tags alone keeps them, one of nothing gets dots. Of several who speak, each turn
    begins with a name, where it has one.
    """
    cues = _of_words(sentences, words) if words else _of_sentences(sentences)
    return _vtt(cues) if ending == ".vtt" else _srt(cues)


def _srt(cues: Iterable[_Cue]) -> str:
    """A SubRip file."""
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def _vtt(cues: Iterable[_Cue]) -> str:
    """A WebVTT file."""
    return "WEBVTT\n\n" + "".join(
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{html.escape(cue.text, quote=False)}\n\n" for cue in cues
    )


def _of_sentences(sentences: Sequence[Sentence]) -> list[_Cue]:
    names = _names(sentences)
    return [_Cue(one.start, one.end, name + _shown(one.text)) for one, name in zip(sentences, names, strict=True)]


def _of_words(sentences: Sequence[Sentence], words: Iterable[Word]) -> list[_Cue]:
    """The first word of a sentence bears the name."""
    names = dict(enumerate(_names(sentences)))
    return [_Cue(word.start, word.end, names.pop(word.sentence, "") + _shown(word.text)) for word in words]


def _names(sentences: Iterable[Sentence]) -> list[str]:
    """What stands in front of each sentence."""
    names, turn = [], None
    for sentence in sentences:
        names.append(f"{sentence.name}: " if sentence.name and sentence.turn != turn else "")
        turn = sentence.turn
    return names


def _time(seconds: float, mark: str) -> str:
    """HH:MM:SS and milliseconds behind `mark`."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"


def _shown(text: str) -> str:
    """`text` on one line, since an empty line would end the cue."""
    return " ".join(_CONTROL_TAG.sub(" ", text).split()) or " ".join(text.split()) or "..."
