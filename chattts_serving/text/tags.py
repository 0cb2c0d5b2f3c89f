"""Control tags: the words in brackets that tell the model how to speak, and how text is taken apart at them.

A bracket that opens no tag, as in "[1]" or "[sic!]", is punctuation. A tag that the model does not know, or one that
frames prompts ([Stts], [spk_emb], ...), is an error, because the caller meant something by it that would not happen.
"""

from __future__ import annotations

import re

from chattts_serving.errors import InvalidInputError

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
TAG_PATTERN = r"\[[A-Za-z][A-Za-z0-9_]*\]"
_ALLOWED = (
    "control tags: [uv_break], [v_break], [lbreak], [llbreak], [laugh], [music], [pure], [undefine], "
    "[break_0] to [break_7], [laugh_0] to [laugh_2], [oral_0] to [oral_9], [speed_0] to [speed_9]"
)
_TAG = re.compile(TAG_PATTERN)
_TAG_OR_TEXT = re.compile(f"({TAG_PATTERN})")
_SPEAKABLE = re.compile(r"[\u4e00-\u9fffA-Za-z0-9]")  # what is left of a text once it is normalised, less punctuation


def split_tags(text: str) -> list[str]:
    """`text` taken apart at its tags: text at even places (maybe empty), tags at odd ones; joined they are `text`."""
    return _TAG_OR_TEXT.split(text)


def without_tags(text: str) -> str:
    """`text` with a space for each tag."""
    return _TAG.sub(" ", text)


def is_speakable(text: str) -> bool:
    """Whether there is a Chinese character, a letter or a digit outside tags."""
    return _SPEAKABLE.search(without_tags(text)) is not None


def check_tags(name: str, text: str) -> None:
    """Check that every tag in the input `name` is one that the model knows and a caller may use.

    Raises:
        InvalidInputError: one is not; the message shows it.
    """
    for tag in _TAG.findall(text):
        if tag not in CONTROL_TAGS:
            raise InvalidInputError(name, tag, f"text with {_ALLOWED}")


def check_only_tags(name: str, text: str) -> None:
    """Check that the input `name` is nothing but known tags, with blanks between them or not; "" is fine.

    Raises:
        InvalidInputError: it is not.
    """
    check_tags(name, text)
    if without_tags(text).strip():
        raise InvalidInputError(name, text, f"nothing but {_ALLOWED}")
