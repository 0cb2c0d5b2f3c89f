"""Markdown as chat models write it, and HTML's entities, less the marks: what is left is what a reader would say.

Lines stay lines, as they end paragraphs; control tags are left alone.
"""

from __future__ import annotations

import html
import re

from chattts_serving.text.rules import Rule, Rules
from chattts_serving.text.tags import TAG_PATTERN

_LINK_TEXT = rf"((?:{TAG_PATTERN}|[^\[\]\n])*)"
_URL = r"\((?:[^()\s]|\([^()\s]*\))*(?:[ \t]+[\"'][^\"'\n]*[\"'])?[ \t]*\)"


def _row(match: re.Match[str]) -> str:
    """The cells of a line of a table, with commas between them."""
    cells = [cell.strip() for cell in match[1].split("|")]
    return ", ".join(cell for cell in cells if cell)


# Each of one line, in order.
_LINES: tuple[Rule, ...] = (
    (r"^[ \t]*(?:```|~~~)[^`\n]*$", ""),  # fences of code
    (r"^[ \t]*(?:(?:[-*_=] *){3,}|\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?)[ \t]*$", ""),  # rules
    (r"^[ \t]*\|(.+)\|[ \t]*$", _row),
    (r"(?<=\S) \| (?=\S)", ", "),
    (r"^[ \t]*(?:>[ \t]?)+", ""),  # quotations
    (r"^[ \t]{0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$", r"\1"),  # headings
    (r"^[ \t]*[-*+•‣◦▪●○][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)", ""),  # items of lists
    (r"^([ \t]*\d+[.)][ \t]+)\[[ xX]\][ \t]+", r"\1"),
    (rf"^[ \t]*(?!{TAG_PATTERN})\[\^?[^\]\n]+\]:[ \t]+\S+.*$", ""),  # where links go
)
_SPANS: tuple[Rule, ...] = (
    (rf"!?(?!{TAG_PATTERN})\[{_LINK_TEXT}\]{_URL}", r"\1"),
    (rf"(?!{TAG_PATTERN})\[{_LINK_TEXT}\](?!{TAG_PATTERN})\[[^\[\]\n]*\]", r"\1"),
    (r"\[\^[^\[\]\s]+\]", ""),  # footnotes
    (r"<(https?://[^<>\s]+|[^<>\s@]+@[^<>\s@]+)>", r"\1"),
    (r"<!--[^\n]{0,200}?-->|</?[A-Za-z][A-Za-z0-9-]*(?:[ \t][^<>\n]*)?/?>", " "),  # HTML
    (r"(?<!`)`{1,3}([^`\n]+)`{1,3}(?!`)", r"\1"),
    (r"(\*\*\*|\*\*|___|__|~~|==)(?=\S)((?:(?!\1).)+?)(?<=\S)\1", r"\2"),
    (r"(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])", r"\1"),
    (r"(?<![^\W_]|_)_(?=[^\s_])([^\n]{1,200}?)(?<=[^\s_])_(?![^\W_]|_)", r"\1"),
    (
        r"(?<=[\u4e00-\u9fff])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*|\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?=[\u4e00-\u9fff])",
        r"\1\2",
    ),
    (r"(?<!\S)(?:\*{2,}|_{2,}|`{2,}|~{2,}|#{2,})(?!\S)", ""),
)
_rewrite = Rules((*_LINES, *_SPANS), re.MULTILINE)
_MARKS = re.compile(r"[*_`~#>|\[\]<&=\\•‣◦▪●○]|^[ \t]*[-+]|-{3}", re.MULTILINE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z]{2,31});")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+.!|~>-])")  # a mark that is meant as such
MEANT = re.compile("[\ue021-\ue07e]")  # the same, in characters that no text has (private use)


def without_markup(text: str) -> str:
    """`text` without marks; the text of links and code stays, their addresses and fences go.

    No rule looks past the end of a line.
    """
    text = MEANT.sub("", text)
    if not _MARKS.search(text):
        return text
    text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    text = _ESCAPED.sub(lambda match: chr(0xE000 + ord(match[1])), text)
    return MEANT.sub(lambda match: chr(ord(match.group()) - 0xE000), _rewrite(text))
