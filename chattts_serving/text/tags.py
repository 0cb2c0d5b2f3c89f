"""Control tags: the words in brackets that tell the model how to speak, and how text is taken apart at brackets.

A bracket that opens no tag, as in "[1]", "[sic]" or "Dear [Customer]", is punctuation. What frames prompts ([Stts],
[spk_emb], ...) and what only looks like a tag ([laugh_3]) is an error, as the caller meant something by it that would
not happen; strict callers want that of every bracketed word that is no tag.
"""

from __future__ import annotations

import re

from chattts_serving.errors import InvalidInputError
from chattts_serving.text.directives import PAUSE_PATTERN, SPELL_PATTERN

CONTROL_TAGS = frozenset(
    f"[{name}]"
    for name in (
        *("uv_break", "v_break", "lbreak", "llbreak", "undefine", "laugh", "music", "pure"),
        *(f"break_{degree}" for degree in range(8)),
        *(f"laugh_{degree}" for degree in range(3)),
        *(f"oral_{degree}" for degree in range(10)),
        *(f"speed_{degree}" for degree in range(10)),
    )
)
CONTROL_PATTERN = "(?:" + "|".join(map(re.escape, sorted(CONTROL_TAGS))) + ")"
TAG_PATTERN = f"(?:{CONTROL_PATTERN}|{PAUSE_PATTERN}|{SPELL_PATTERN})"  # what is no words, so that nothing changes it
_ALLOWED = (
    "control tags: [uv_break], [v_break], [lbreak], [llbreak], [laugh], [music], [pure], [undefine], "
    "[break_0] to [break_7], [laugh_0] to [laugh_2], [oral_0] to [oral_9], [speed_0] to [speed_9]"
)
_CONTROL_TAG = re.compile(CONTROL_PATTERN)
_TAG = re.compile(TAG_PATTERN)
_WORD = re.compile(r"\[[A-Za-z][A-Za-z0-9_]*\]")
# The tokenizer's own, and degrees that are out of range.
_RESERVED = re.compile(
    r"\[(?:[SPE](?:tts|break|asr)|spk_emb|empty_spk|CLS|SEP|UNK|PAD|MASK"
    r"|(?:break|laugh|oral|speed)_\w+)\]"
)
_TAG_OR_TEXT = re.compile(f"({TAG_PATTERN})")
_SPEAKABLE = re.compile(r"[\u4e00-\u9fffA-Za-z0-9]")  # what is left of a text once it is normalised, less punctuation


def split_tags(text: str) -> list[str]:
    """`text` taken apart at its tags, directives among them: text at even places (maybe empty), tags at odd ones.

    Joined they are `text`.
    """
    return _TAG_OR_TEXT.split(text)


def without_tags(text: str) -> str:
    """`text` with a space for each tag."""
    return _TAG.sub(" ", text)


def is_speakable(text: str) -> bool:
    """Whether there is a Chinese character, a letter or a digit outside tags."""
    return _SPEAKABLE.search(without_tags(text)) is not None


def check_tags(name: str, text: str, *, strict: bool = True) -> None:
    """Check that every control tag in the input `name` is one that the model knows and a caller may use.

    Args:
        name: of the input.
        text: its value.
        strict: take every bracketed word for a tag; otherwise those only that are reserved.

    Raises:
        InvalidInputError: one is not; the message shows it.
    """
    for tag in _WORD.findall(text):
        if not _CONTROL_TAG.fullmatch(tag) and (strict or _RESERVED.fullmatch(tag)):
            raise InvalidInputError(name, tag, f"text with {_ALLOWED}")


def check_only_tags(name: str, text: str) -> None:
    """Check that the input `name` is nothing but known control tags, with blanks between them or not; "" is fine.

    Raises:
        InvalidInputError: it is not.
    """
    check_tags(name, text)
    if _CONTROL_TAG.sub(" ", text).strip():
        raise InvalidInputError(name, text, f"nothing but {_ALLOWED}")
