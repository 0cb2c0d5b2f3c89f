"""What English text has in digits and symbols, rewritten to what wetext's grammar reads as people say it.

Numbers stay digits where the grammar reads them well; each rule is a pattern and what takes its place, in order.
"""

from __future__ import annotations

import re

from chattts_serving.text.rules import NUMBER, Rule, Rules
from chattts_serving.text.units import CURRENCIES, CURRENCY, UNIT, UNITS

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TENS = (
    "hundreds",
    "tens",
    "twenties",
    "thirties",
    "forties",
    "fifties",
    "sixties",
    "seventies",
    "eighties",
    "nineties",
)
_CENTURIES = {"17": "seventeen", "18": "eighteen", "19": "nineteen", "20": "twenty"}
_SCALES = {
    **dict.fromkeys(("k", "K", "thousand"), "thousand"),
    **dict.fromkeys(("m", "M", "mn", "million"), "million"),
    **dict.fromkeys(("b", "B", "bn", "billion"), "billion"),
    **dict.fromkeys(("T", "tn", "trillion"), "trillion"),
}

_LONG_DASH = "[\u2012-\u2015~～]"
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.?"
_BEHIND = "(?:st|nd|rd|th|[ap]m|[AP]M|%|°[CF]?|s)?"  # what may stand between a number and "to"
_TELEPHONE = "|".join(
    (
        r"\+\d{1,3}[\s.-]?(?:\(?\d{1,4}\)?[\s.-]?){1,4}\d{2,11}\b",
        r"(?<![\w.])\(\d{3}\)\s?\d{3}[\s.-]\d{4}\b",
        r"(?<![\w.-])(?:1[-.\s])?\d{3}[-.\s]\d{3}[-.\s]\d{4}\b",
        r"(?<![\w.-])\d{3}-\d{4}(?![\d-])",
        r"(?<![\w.-])0\d{2,3}-\d{7,8}(?![\d-])",
        r"(?<![\w.,-])1[3-9]\d-?\d{4}-?\d{4}(?![.,-]?\d)",
        r"(?<![\w.,-])\d{13,}(?![.,]?\d)",
    )
)
_CODE = (
    r"(?P<name>\b(?i:phone|call|dial|fax|tel|account|card|order|tracking|pin|code|zip|id|extension|ext|passcode|isbn)\b"
    r"(?:\s+(?:number|code|no\.?|is|was|at|on|me|us)\b)*[\s:#]*)(?P<number>\d{4,12})\b(?![.,]\d|\s*%)"
)
_SOFTWARE = (
    "(?:[Vv]ersion|[Rr]elease|[Pp]ython|Ubuntu|Debian|macOS|iOS|Android|Java|PHP|Ruby|Rust|Node|CUDA|PyTorch|Go)"
)


def _spell(digits: str) -> str:
    """ "two zero" for "20"."""
    return " ".join(_DIGITS[int(digit)] for digit in digits)


def _telephone(match: re.Match[str]) -> str:
    """Digit by digit, with a comma where something parts them."""
    plus = "plus " if match.group().startswith("+") else ""
    return plus + ", ".join(map(_spell, re.findall(r"\d+", match.group())))


def _decade(match: re.Match[str]) -> str:
    if match["century"] == "20" and match["ten"] == "0":
        return "two thousands"
    return f"{_CENTURIES[match['century']]} {_TENS[int(match['ten'])]}"


def _money(match: re.Match[str]) -> str:
    scale = match["scale"] and _SCALES[match["scale"]]
    one, more, _ = CURRENCIES[match["sign"]]
    number = re.sub(r"\.(\d*?)0+$", r".\1", match["number"]).removesuffix(".")  # "$12.50"
    return f"{number} {scale} {more}" if scale else f"{number} {one if number == '1' else more}"


def _unit(match: re.Match[str]) -> str:
    one, more, _ = UNITS[match["unit"]]
    name = one if match["number"] == "1" or match["gap"] == "-" else more
    if match["power"]:
        name = f"{'square' if match['power'] == '²' else 'cubic'} {name}"
    if match["per"]:
        square = "square " if match["per_power"] else ""
        name += f" per {square}{UNITS[match['per']][0]}"
    return f"{match['number']} {name}"


def _points(match: re.Match[str]) -> str:
    return f"{match['name']}{match['number'].replace('.', ' point ')}"


_RULES: tuple[Rule, ...] = (
    # Digits that are no amounts.
    (_TELEPHONE, _telephone),
    (_CODE, lambda match: match["name"] + _spell(match["number"])),
    (rf"(?<![\w.])(?P<name>[vV]|{_SOFTWARE} v?)(?P<number>\d+(?:\.\d+)+)(?![\d.]*\d)", _points),
    (r"(?<![\w.])(?P<name>)(?P<number>\d+(?:\.\d+){2}|\d+(?:\.\d+){4,})(?!\.?\w)", _points),
    (r"(?<=[A-Za-z])(?=\d+\.\d)|(?<=\.\d)(?=[A-Za-z]\b)", " "),  # "PM2.5", "1.5M"
    # Decades, feet and inches.
    (r"(?<![\w.,])(?P<century>1[789]|20)(?P<ten>\d)0['’]?s\b", _decade),
    (r"(?<![\w.,])['’‘]?([2-9])0['’]?s\b", lambda match: _TENS[int(match[1])]),
    (r"(?<![\w.])(\d{1,2})\s?['’′]\s?(\d{1,2})(?:\"|”|″|''|’’)?(?!\w)", r"\1 foot \2"),
    (r"(?<=\d)\s?′(?!\w)", " feet"),
    (r"(?<=\d)\s?″", " inches"),
    # Ranges.
    (rf"\b({_DAY})\s?(?:-|{_LONG_DASH})\s?(?={_DAY})", r"\1 to "),
    (rf"(?<=\d)({_BEHIND})\s?{_LONG_DASH}\s?(?=(?:{CURRENCY})?\d)", r"\1 to "),
    (rf"(?<=[a-z](?:ies|ens|eds))\s?(?:-|{_LONG_DASH})\s?(?=[a-z]+ ?[a-z]*(?:ies|ens|eds|nds)\b)", " to "),
    (
        rf"(?<![\w./:-])(?P<sign>(?:{CURRENCY})?)({NUMBER}{_BEHIND})-(?:(?P=sign))?({NUMBER})(?![\d/:-])",
        r"\2 to \g<sign>\3",
    ),
    # Money, counts, units.
    (
        rf"(?<![A-Za-z])(?P<sign>{CURRENCY})\s?(?P<number>{NUMBER})"
        rf"(?:\s?(?P<scale>[kKmMbBT]|mn|bn|tn|thousand|million|billion|trillion)\b)?",
        _money,
    ),
    (rf"(?P<number>{NUMBER})(?P<scale>)\s?(?P<sign>{CURRENCY})", _money),
    (r"(?<=\d)\s?(?:[mM](?= (?!is\b|was\b|has\b)[a-z]+s\b)|M(?= [a-z])|mn\b)", " million"),
    (r"(?<=\d)(?:B(?= [a-z])|bn\b)", " billion"),
    (
        rf"(?<![\w.])(?P<number>{NUMBER})(?P<gap>[ -]?)(?P<unit>{UNIT})(?P<power>[²³]?)"
        rf"(?:/(?P<per>{UNIT})(?P<per_power>²?))?(?![\w²³/'’°])",
        _unit,
    ),
    (r"(?<![\w/])(24|50|9)/(7|50|11)(?![\w/])", r"\1 \2"),  # no fractions
    (r"(?<=\d)-(?=[a-z])|(?<=[A-Za-z])-(?=\d)", " "),  # "5-year-old", "F-16"
    # Signs.
    (r"(?<=\d)\s?%", " percent"),
    (r"(?<=\d)\s?x\s?(?=\d)|(?<=\d\d\d)\s?×\s?(?=\d\d\d)", " by "),
    (r"(?<=\d)[x×](?=\s|[,.;:!?]|$)", " times"),
    (r"\s?×\s?", " times "),
    (r"\s?÷\s?", " divided by "),
    (r"\s?±\s?", " plus or minus "),
    (r"\s?(?:≥|>=)\s?(?=\d)", " greater than or equal to "),
    (r"\s?(?:≤|<=)\s?(?=\d)", " less than or equal to "),
    (r"(?<=[\w)])\s?=\s?(?=[\w(])", " equals "),
    (r"\s?≠\s?", " is not equal to "),
    (r"\s?≈\s?|(?<!\S)~(?=\d)", " about "),
    (r"(?<![\w<>])<(?=\d)|(?<=\w) < (?=\w)", " less than "),
    (r"(?<![\w<>])>(?=\d)|(?<=\w) > (?=\w)", " greater than "),
    (r"\s?[→⇒]\s?", " to "),
    (r"√\s?(?=\w)", "square root of "),
    (r"∞", " infinity "),
    (r"(?<=\d)\s?‰", " per mille"),
    (r"(?<=\w)²", " squared"),
    (r"(?<=\w)³", " cubed"),
    # Abbreviations: those of titles before a name, of others before a number.
    (r"\bMr\.(?= [A-Z])", "Mister"),
    (r"\bMrs\.(?= [A-Z])", "Missus"),
    (r"\bDr\.? (?=[A-Z])", "doctor "),
    (r"\bProf\.(?= [A-Z])", "professor"),
    (r"\bSt\.(?= [A-Z])", "Saint"),
    (r"\b(?:No|no|NO)\.? ?(?=\d)", "number "),
    (r"\b(?:Fig|fig)\.? ?(?=\d)", "figure "),
    (r"\b(?:vol|Vol)\. ?(?=\d)", "volume "),
    (r"\b(?:ch|Ch)\. ?(?=\d)", "chapter "),
    (r"\bpp?\. ?(?=\d+ to )", "pages "),
    (r"\bp\. ?(?=\d)", "page "),
    (r"\bvs\.?(?=\s)", "versus"),
    (r"\b(?:[A-Z]\.){2,}", lambda match: match.group().replace(".", "")),
)

rewrite = Rules(_RULES)  # a piece of a sentence without tags
