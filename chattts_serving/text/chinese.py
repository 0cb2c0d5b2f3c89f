"""What Chinese text has in digits and symbols, rewritten to what wetext's grammar reads as people say it.

Numbers stay digits where the grammar reads them well; each rule is a pattern and what takes its place, in order.
"""

from __future__ import annotations

import re

from chattts_serving.text.rules import NUMBER, Rule, Rules
from chattts_serving.text.units import CURRENCIES, CURRENCY, UNIT, UNITS

_DIGITS = "零一二三四五六七八九"
_IN_ADDRESSES = str.maketrans({".": "点", "/": "斜杠", "@": " at ", ":": "冒号"})
_SCALE = "(?:万亿|百万|千万|[十百千万亿])"
_DASH = "[-\u2010-\u2015~～]+"
_MOMENT = "(?:上午|下午|早上|早晨|中午|晚上|凌晨|傍晚|次日|第二天|周|星期|礼拜|今|明|前|公元)"
_CODE = (
    "(?P<name>(?:电话|手机|座机|固话|热线|传真|拨打|致电|联系方式|卡号|账号|帐号|编号|学号|工号|单号|订单|证号|邮编|验证码|密码|尾号|号码|QQ|微信)"
    r"[^\d，。！？；\n]{0,4})(?P<number>\d(?:[\d -]{2,}\d))(?![\d.%])"
)
_TELEPHONE = "|".join(
    (
        r"\+\d{1,3}[ -]?\d[\d -]{5,}\d",
        r"(?<![\d.-])0\d{2,3}-\d{7,8}(?:-\d{1,6})?(?![\d-])",
        r"(?<![\d.-])[48]00-?\d{3}-?\d{4}(?![\d-])",
        r"(?<![\d.-])1[3-9]\d[ -]\d{4}[ -]\d{4}(?![\d-])",
        r"(?<=\d\d\d[或、/])\d{7,8}(?![\d.-])",  # another one
        r"(?<![\d.,])\d{14,}(?![.,]?\d)",
    )
)


def _spell(digits: str, one: str = "一") -> str:
    """ "二零二三" for "2023"; on the telephone `one` is "幺"."""
    return "".join(one if digit == "1" else _DIGITS[int(digit)] for digit in digits)


def _telephone(match: re.Match[str]) -> str:
    """Digit by digit, with a comma where something parts them."""
    return ("加" if match.group().startswith("+") else "") + _dialled(match.group())


def _code(match: re.Match[str]) -> str:
    return match["name"] + _dialled(match["number"])


def _dialled(number: str) -> str:
    return "，".join(_spell(group, "幺") for group in re.findall(r"\d+", number))


def _below_thousand(digits: str) -> str:
    """ "一百二十" for "120", which the grammar takes for a telephone number."""
    hundreds, tens, ones = (int(digit) for digit in digits.zfill(3))
    number = _DIGITS[hundreds] + "百" if hundreds else ""
    if tens:
        number += (_DIGITS[tens] if tens > 1 or hundreds else "") + "十"
    elif ones and hundreds:
        number += "零"
    return number + (_DIGITS[ones] if ones or not number else "")


def _money(match: re.Match[str]) -> str:
    return f"{match['number']}{match['scale'] or ''}{CURRENCIES[match['sign']][2]}"


def _unit(match: re.Match[str]) -> str:
    name = UNITS[match["unit"]][2]
    if match["power"]:
        name = f"{'平方' if match['power'] == '²' else '立方'}{name}"
    if match["per"]:
        power = "平方" if match["per_power"] else ""
        return f"每{power}{UNITS[match['per']][2]}{match['number']}{name}"
    return f"{match['number']}{name}"


def _points(match: re.Match[str]) -> str:
    """ "二点四点一" for "2.4.1"."""
    return "点".join(_below_thousand(part) if len(part) < 4 else _spell(part) for part in match.group().split("."))


def _address(match: re.Match[str]) -> str:
    """A mail address, or one of the web, without its scheme."""
    return match["rest"].translate(_IN_ADDRESSES)


_RULES: tuple[Rule, ...] = (
    (r"(?:[a-z]+://)?(?P<rest>(?:[A-Za-z0-9_-]+\.)+[A-Za-z]{2,}(?::\d+)?(?:/[\w./-]*\w)?/?)(?![\w.])", _address),
    (r"(?P<rest>[A-Za-z0-9_.+-]+@[A-Za-z0-9-]+(?:点[A-Za-z0-9]+)+)", _address),
    # Digits that are no amounts.
    (_TELEPHONE, _telephone),
    (_CODE, _code),
    (
        r"(?<![\d.])(?!(?:\d{1,3}\.){3}\d{1,3}(?![\d.]))(?!(?:19|20)\d\d\.\d{1,2}\.\d{1,2})\d+(?:\.\d+){2,}(?![\d.])",
        _points,
    ),
    (r"(?<=[A-Za-z])-(?=\d)|(?<=\d)-(?=\d+[A-Za-z])", " "),  # "T-72", "2.5-7B"
    (r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])", ""),
    # Years.
    (rf"(?<!\d)([12]\d{{3}})年?{_DASH}([12]\d{{3}})(?=年)", lambda match: f"{_spell(match[1])}至{_spell(match[2])}"),
    (r"(?<!\d)((?:1[89]|20)\d0)s(?![A-Za-z])", lambda match: f"{_spell(match[1])}年代"),
    (
        r"(?<![\d.])(1[12]\d)(?=[年个人天岁元位名次万亿块米斤克分小周月只条张件页])",
        lambda match: _below_thousand(match[1]),
    ),
    # Ranges and scores.
    (rf"(比分[^\d，。]{{0,4}}\d+){_DASH}(?=\d)", r"\1比"),
    (rf"(?<=[\d日月年号点时分周一二三四五六日天十%％万亿元]){_DASH}(?={_MOMENT}|周)", "至"),
    (rf"(?<![\d:])(\d{{1,2}}[:：]\d{{2}}){_DASH}(?=\d{{1,2}}[:：]\d)", r"\1到"),
    (rf"(?<=[年月日号点时分])\s?{_DASH}\s?(?=\d)", "到"),
    (rf"(?<![\d.:/-])({NUMBER}(?:%|‰|°C?|℃|{_SCALE}|{UNIT}(?![A-Za-z]))?){_DASH}(?={NUMBER}(?![\d:/-]))", r"\1到"),
    # Money, units.
    (rf"(?P<sign>{CURRENCY})\s?(?P<number>{NUMBER})(?P<scale>{_SCALE}?)", _money),
    (rf"(?P<number>{NUMBER})(?P<scale>{_SCALE}?)\s?(?P<sign>{CURRENCY})", _money),
    (r"(?<!\d)(\d{1,2})['′’](\d{1,2})(?:\"|″|”|''|’’)", r"\1分\2秒"),
    (
        rf"(?<![A-Za-z\d.])(?P<number>{NUMBER})\s?(?P<unit>{UNIT})(?P<power>[²³]?)(?:/(?P<per>{UNIT})(?P<per_power>²?))?(?![A-Za-z²³/])",
        _unit,
    ),
    (r"(?<=\d)\s+(?=%)", ""),
    (rf"({NUMBER})\s?‰", r"千分之\1"),
    # A decimal that the grammar takes for a date.
    (
        r"(?<![\d.])(1[0-2])\.(\d{1,2})(?![\d.%‰日号前后当])",
        lambda match: f"{_below_thousand(match[1])}点{_spell(match[2])}",
    ),
    # Signs.
    (r"(?<=\d)\s?[x×*]\s?(?=\d)", "乘"),
    (r"\s?×\s?", "乘"),
    (r"\s?÷\s?", "除以"),
    (r"±", "正负"),
    (r"≥|>=|＞=", "大于等于"),
    (r"≤|<=|＜=", "小于等于"),
    (r"≠", "不等于"),
    (r"≈", "约等于"),
    (r"[<＜](?=\s?\d)", "小于"),
    (r"[>＞](?=\s?\d)", "大于"),
    (r"(?<=\w)\s?[→⇒]\s?(?=\w)", "到"),
    (r"√", "根号"),
    (r"∞", "无穷"),
    (r"(?<![A-Za-z])N[oO]\.\s?(?=\d)", "编号"),
    (r"(?<=[\dA-Za-z])²", "平方"),
    (r"(?<=[\dA-Za-z])³", "立方"),
    (r"(?<=平方)\+|(?<=立方)\+", "加"),
)

rewrite = Rules(_RULES)  # a piece of a sentence without tags
