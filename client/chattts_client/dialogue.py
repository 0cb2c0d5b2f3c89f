"""Dialogues as people write them: `NAME: text`, a line a turn, and which voice each name has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from chattts_client.errors import invalid_input

Turn = dict[str, object]
_LINE = re.compile(r"([^:：]{1,64}?)\s*[:：]\s*(.*)")
_FILE = "@"  # in front of a file's name, where a voice is expected


def turns_from(text: str, voices: Mapping[str, Turn]) -> list[Turn]:
    """The turns of a dialogue, for the option `turns`.

    Args:
        text: lines `NAME: text`; a line without a name, or with white space in front, goes on with the turn before.
        voices: the voice of each name, as `voices_from` gives it; another name is that of a voice of the server.

    Raises:
        InvalidInputError: the first line has no name, or a turn has no text.
    """
    turns: list[Turn] = []
    for number, line in enumerate(text.splitlines(), 1):
        found = _LINE.fullmatch(line.rstrip())
        if found and not line[0].isspace():
            turns.append({"name": found[1], "text": found[2], **voices.get(found[1], {"speaker": found[1]})})
        elif line.strip():
            if not turns:
                raise invalid_input("turns", line, f"lines NAME: TEXT; line {number} has no name")
            turns[-1]["text"] = f"{turns[-1]['text']}\n{line.strip()}".lstrip()
    for turn in turns:
        if not turn["text"]:
            raise invalid_input("turns", turn, "turns with a text each")
    if not turns:
        raise invalid_input("turns", text, "1 or more lines NAME: TEXT")
    return turns


def voices_from(mapping: Sequence[str]) -> dict[str, Turn]:
    """The voices of names, of `NAME=VOICE` each.

    Raises:
        InvalidInputError: one is none of these.
        OSError: a file cannot be read.
    """
    return dict(_voice_of(one) for one in mapping)


def _voice_of(text: str) -> tuple[str, Turn]:
    """The name, and its voice: one of the server, a mixture, a speaker string, or @FILE of `chattts clone`."""
    name, equals, voice = text.partition("=")
    if not name or not equals or not voice:
        raise invalid_input("voice", text, "NAME=VOICE, or NAME=@FILE of what chattts clone has written")
    if not voice.startswith(_FILE):
        return name, {"speaker": voice}
    lines = Path(voice.removeprefix(_FILE)).read_text(encoding="utf-8").splitlines()
    turn: Turn = {"speaker_sample": lines[0] if lines else ""}
    if len(lines) > 1:
        turn["sample_text"] = lines[1]
    return name, turn
