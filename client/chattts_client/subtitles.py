"""Sentences as SubRip subtitles."""

from __future__ import annotations

import re
from collections.abc import Iterable

from chattts_client.speech import Sentence

_CONTROL_TAG = re.compile(r"\[[a-zA-Z][a-zA-Z0-9_]*\]")  # the server has made every other bracket a word or a comma


def srt(sentences: Iterable[Sentence]) -> str:
    """A SubRip file: a cue a sentence, without control tags; one of tags alone keeps them, one of nothing gets dots."""
    return "".join(
        f"{number}\n{_time(sentence.start)} --> {_time(sentence.end)}\n{_words(sentence.text)}\n\n"
        for number, sentence in enumerate(sentences, 1)
    )


def _time(seconds: float) -> str:
    """SubRip's HH:MM:SS,mmm."""
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02},{milliseconds % 1000:03}"


def _words(text: str) -> str:
    """`text` on one line, since an empty line would end the cue."""
    return " ".join(_CONTROL_TAG.sub(" ", text).split()) or " ".join(text.split()) or "..."
