"""Sentences as SubRip subtitles."""

from __future__ import annotations

import re
from collections.abc import Iterable

from chattts_client.speech import Sentence

_CONTROL_TAG = re.compile(r"\[[a-zA-Z][a-zA-Z0-9_]*\]")  # the server has made every other bracket a word or a comma


def srt(sentences: Iterable[Sentence]) -> str:
    """A SubRip file: a cue a sentence, without control tags; one of tags alone keeps them, one of nothing gets dots.

    Of several who speak, each turn begins with a name, where it has one.
    """
    cues, turn = [], None
    for number, sentence in enumerate(sentences, 1):
        name = f"{sentence.name}: " if sentence.name and sentence.turn != turn else ""
        turn = sentence.turn
        times = f"{_time(sentence.start)} --> {_time(sentence.end)}"
        cues.append(f"{number}\n{times}\n{name}{_words(sentence.text)}\n\n")
    return "".join(cues)


def _time(seconds: float) -> str:
    """SubRip's HH:MM:SS,mmm."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"


def _words(text: str) -> str:
    """`text` on one line, since an empty line would end the cue."""
    return " ".join(_CONTROL_TAG.sub(" ", text).split()) or " ".join(text.split()) or "..."
