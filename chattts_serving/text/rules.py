"""Text rewritten by rules: patterns and what takes the place of what they find, one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

NUMBER = r"\d[\d,]*(?:\.\d+)?"  # a pattern: "1,234.5"


class Rules:
    """A text -> the same with every rule applied."""

    def __init__(self, rules: Iterable[Rule], flags: int = 0) -> None:
        """`rules` as `re.sub` takes each, in order, with `flags` of `re`."""
        self._rules = [(re.compile(pattern, flags), replacement) for pattern, replacement in rules]

    def __call__(self, text: str) -> str:
        """`text` rewritten."""
        for pattern, replacement in self._rules:
            text = pattern.sub(replacement, text)
        return text
