"""Values for every input of the contract, right and wrong, as Hypothesis strategies.

A value comes with what the contract says of it (`Expected`). Ranges are those of `chattts_serving.request`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from chattts_client.options import STREAM_DATATYPES
from hypothesis import strategies as st

from chattts_serving import request as limits
from chattts_serving.text.tags import CONTROL_TAGS
from chattts_serving.triton.config import MODES
from chattts_serving.voice.speaker import NUM_CODES, encode_sample, encode_speaker
from tests.fuzz.calls import Element, Expected, Tensor

TINY_HIDDEN_SIZE = 64  # of export.synthetic
FEW_TOKENS = 24  # of a sentence: thousands of requests are to take minutes
INT32_RANGE = (-(2**31), 2**31 - 1)
INT64_RANGE = (-(2**63), 2**63 - 1)
SHORT_DEADLINE_MS = 120_000  # below it, a busy machine decides
VOICES = ("default", "seed-1", "seed-2", "seed-3")  # of the committed library


class Value(NamedTuple):
    """One element, and what the contract says of it."""

    element: Element
    expected: Expected


Values = st.SearchStrategy[Value]


def often(many: st.SearchStrategy[Any], few: st.SearchStrategy[Any], share: int = 10) -> st.SearchStrategy[Any]:
    """`few` once in `share` times."""
    return st.integers(1, share).flatmap(lambda number: few if number == share else many)


def _said(strategy: st.SearchStrategy[Any], expected: Expected) -> Values:
    return strategy.map(lambda element: Value(element, expected))


def _float(least: float, most: float, *, above: bool = False) -> Values:
    border32 = [float(np.float32(border)) for border in (least, most)]
    beside = [float(np.nextafter(np.float32(one), np.float32(to))) for one in border32 for to in (-np.inf, np.inf)]
    odd = [0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, least / 2, -most]
    values = st.one_of(
        st.floats(border32[0], border32[1], width=32),
        st.sampled_from([*border32, *beside, *(float(np.float32(one)) for one in odd)]),
        st.floats(width=32),
    )

    def judge(value: float) -> Value:
        is_good = least <= value <= most and not (above and value == least)
        return Value(value, Expected.ANSWER if is_good else Expected.REFUSAL)

    return values.map(judge)


def _integer(least: int, most: int, whole: tuple[int, int], usual: tuple[int, int] | None = None) -> Values:
    """`whole`: of the datatype; `usual`: what is drawn of the range but for its borders, as large values cost time."""
    near = {border + step for border in (least, most) for step in (-1, 0, 1)} | {*whole}
    borders = st.sampled_from(sorted(one for one in near if whole[0] <= one <= whole[1]))
    outside = [st.integers(*ends) for ends in ((whole[0], least - 1), (most + 1, whole[1])) if ends[0] <= ends[1]]
    values = often(st.integers(*(usual or (least, most))), st.one_of(borders, *outside), share=4)
    return values.map(lambda value: Value(value, Expected.ANSWER if least <= value <= most else Expected.REFUSAL))


_BOOL = _said(st.booleans(), Expected.ANSWER)

# Bytes that are no text for this contract, whatever is around them.
_BROKEN = st.sampled_from(
    [
        *(b"\xff", b"\xfe\xff", b"\x80", b"\xc3", b"\xc0\xaf", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xf5\x80\x80\x80"),
        *(b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\xbd\xed\xb8\x80"),  # lone surrogates, and a pair of them
        *(b"\0", b"a\0b", b"\0" * 100),
    ]
)


def _broken_text() -> Values:
    pieces = st.tuples(st.text(max_size=5), _BROKEN, st.text(max_size=5))
    return _said(pieces.map(lambda parts: parts[0].encode() + parts[1] + parts[2].encode()), Expected.REFUSAL)


def _long(unit: str, length: int) -> bytes:
    return (unit * (length // len(unit) + 1))[:length].encode()


_PLAIN = st.sampled_from(
    [
        "Hi.",
        "Hello there.",
        "One. Two! Three?",
        "你好。",
        "今天天气不错，我们走吧。",
        "Paragraph one.\n\nParagraph two.",
    ]
)
_EMOJI = "🙂👩‍👩‍👧‍👦🏳️‍🌈🇨🇳👍🏽☺️é́́́ñ̃ẹ̀"
_RIGHT_TO_LEFT = "שלום עולם مرحبا بالعالم \u202eabc\u202c \u200f1,234\u200e \u2066x\u2069"
_CONTROL = "".join(map(chr, [*range(1, 32), 0x7F, 0x85, 0xA0, 0xAD, 0x200B, 0x2028, 0x2029, 0xFEFF, 0xFFFD, 0xFFFE]))
_PUNCTUATION = "。，！？…—?!.,;:-()[]{}<>'\"“”‘’《》/\\|@#$%^&*_+=~` \t\n\r"
_DIGITS = "0123456789０１２３①½Ⅳ〇零一二三百千万亿٣४٫．,，.:：/-+−±%％$€¥￥°℃'eEx_ "
_ALPHABETS = [*(_EMOJI, _RIGHT_TO_LEFT, _CONTROL, _PUNCTUATION, _DIGITS), "a你.。 ", "ab[]_0 "]


def _numbers() -> st.SearchStrategy[str]:
    integers, floats = st.integers(), st.floats()
    formats = ("{}", "{:,}", "-{}", "+{}", "${}", "{}%", "{}°C", "¥{}", "{}km/h", "{:e}", "{:x}", "№{}", "{}th", "第{}")
    plain = st.builds(
        lambda shape, value: shape.format(value),
        st.sampled_from([one for one in formats if "x}" not in one and "e}" not in one]),
        st.one_of(integers, floats),
    )
    odd = st.builds(lambda shape, value: shape.format(value), st.sampled_from(formats), integers)
    dates = st.builds(
        lambda shape, *values: shape.format(*values),
        st.sampled_from(["{}-{}-{}", "{}/{}/{}", "{}年{}月{}日", "{}:{}:{}", "{}.{}.{}", "{},{},{}", "({}) {}-{}"]),
        *[st.integers(-1, 10_000)] * 3,
    )
    return st.one_of(plain, odd, dates, st.text(_DIGITS, max_size=30))


def _tags() -> st.SearchStrategy[str]:
    known = st.sampled_from(sorted(CONTROL_TAGS))
    odd = [
        "[",
        "]",
        "[[",
        "[]",
        "[1]",
        "[Stts]",
        "[spk_emb]",
        "[Ebreak]",
        "[oral_",
        "[oral_10]",
        "[UV_BREAK]",
        "[uv_break",
    ]
    return st.lists(st.one_of(known, st.sampled_from(odd), st.text(max_size=4)), max_size=8).map("".join)


def _any_text() -> st.SearchStrategy[str]:
    alphabets = st.sampled_from(_ALPHABETS).flatmap(lambda alphabet: st.text(alphabet, min_size=1, max_size=30))
    pieces = st.one_of(_PLAIN, _numbers(), _tags(), alphabets, st.text(min_size=1, max_size=30))
    return st.lists(pieces, min_size=1, max_size=4).map("".join)


def _judged_text(text: bytes) -> Value:
    return Value(text, Expected.EITHER if len(text.decode()) > 0 and b"\0" not in text else Expected.REFUSAL)


def _text() -> Values:
    """What is to be said."""
    short = _any_text().map(str.encode).map(_judged_text)
    most = limits.MAX_TEXT_CHARACTERS
    units = st.sampled_from(["a", "好", "🙂", "1", "Go. ", "9,", "[uv_break]", "。", " ", "é\u0301", "word ", "走。\n"])
    too_long = st.builds(lambda unit, more: _long(unit, most + more), units, st.integers(1, 100_000))
    # The limit itself makes hundreds of sentences, so it comes once in a while.
    long = st.builds(_long, units, st.sampled_from([most, most - 1, most // 4, 500, 2_000]))
    rare = often(_said(too_long, Expected.REFUSAL), long.map(_judged_text), share=4)
    usual = st.one_of(_said(_PLAIN.map(str.encode), Expected.ANSWER), short, short, _broken_text())
    return often(usual, often(_said(st.just(b""), Expected.REFUSAL), rare, share=2), share=40)


def _sample_text() -> Values:
    most = limits.MAX_SAMPLE_TEXT_CHARACTERS
    return st.one_of(
        _said(st.just(b""), Expected.ANSWER),
        _any_text().filter(bool).map(str.encode).map(_judged_text),
        _said(st.integers(1, 5_000).map(lambda more: _long("word ", most + more)), Expected.REFUSAL),
        _broken_text(),
    )


def _tag_text(most: int) -> Values:
    """`prompt` and `refine_prompt`: nothing but tags."""
    good = st.lists(st.sampled_from(sorted(CONTROL_TAGS)), max_size=5)
    joined = st.builds(lambda tags, blank: blank.join(tags).encode(), good, st.sampled_from(["", " "]))
    return st.one_of(
        _said(joined, Expected.ANSWER),
        _said(st.integers(1, 5_000).map(lambda more: _long("[laugh_1]", most + more)), Expected.REFUSAL),
        _said(st.just(b"words, and no tag"), Expected.REFUSAL),
        _tags().map(str.encode).map(lambda text: Value(text, Expected.EITHER)),
        _broken_text(),
    )


def _turns() -> Values:
    """What several voices say; good ones say little."""
    keys = st.sampled_from(["text", "speaker", "name", "pause", "temperature", "seed", "prompt"])
    turns = st.dictionaries(keys, st.one_of(st.text(max_size=6), st.floats(), st.none(), st.integers(-1, 40)))
    good = ['[{"text": "Hi."}]', '[{"text": "Hi.", "name": "Zoë"}, {"text": "你好", "temperature": 0.5}]']
    odd = ["[]", "{}", "3", "null", "[", "[3]", "[{}]", '[{"text": ""}]', '[{"text": "Hi.", "seed": 3}]', "[" * 9_999]
    return st.one_of(
        _said(st.just(b""), Expected.ANSWER),
        _said(st.sampled_from(good).map(str.encode), Expected.ANSWER),
        st.lists(turns, max_size=3).map(lambda some: Value(json.dumps(some).encode(), Expected.EITHER)),
        _said(st.sampled_from(odd).map(str.encode), Expected.REFUSAL),
        _broken_text(),
    )


def _lexicon() -> Values:
    """Words and how to say them."""
    said = st.one_of(st.text(max_size=8), st.sampled_from(["[spell A1]", "[laugh_9]"]))
    entries = st.dictionaries(st.text(_DIGITS + "ab你 '-", max_size=6), said, max_size=4)
    odd = st.sampled_from(["[]", "3", "null", "{", '{"a": 3}', '{"a": {}}', "[" * 9_999])
    return st.one_of(
        _said(st.sampled_from(["{}", '{"hello": "goodbye"}', '{"你": "我"}']).map(str.encode), Expected.ANSWER),
        entries.map(lambda some: Value(json.dumps(some).encode(), Expected.EITHER)),
        _said(odd.map(str.encode), Expected.REFUSAL),
        _broken_text(),
    )


def _damaged(text: str, place: int, damage: str, character: str) -> bytes:
    place %= len(text)
    changed = {
        "cut": text[:place],
        "cut in front": text[place:],
        "replaced": text[:place] + character + text[place + 1 :],
        "inserted": text[:place] + character + text[place:],
        "flipped": text[:place] + chr(ord(text[place]) ^ 1 << (ord(character) % 14)) + text[place + 1 :],
        "doubled": text + text,
    }
    return changed[damage].encode("utf-8", "replace")


def _damage(good: st.SearchStrategy[str]) -> Values:
    damages = st.sampled_from(["cut", "cut in front", "replaced", "inserted", "flipped", "doubled"])
    characters = st.one_of(
        st.characters(exclude_categories=["Cs"]), st.characters(min_codepoint=0x4E00, max_codepoint=0x8E00)
    )
    return _said(st.builds(_damaged, good, st.integers(0, 10_000), damages, characters), Expected.EITHER)


def _vector(size: int, seed: int, scale: float) -> str:
    return encode_speaker((np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float16))


def _speaker() -> Values:
    good = st.builds(_vector, st.just(TINY_HIDDEN_SIZE), st.integers(0, 99), st.just(1.0))
    other = st.builds(_vector, st.sampled_from([1, 2, 63, 65, 768, 8_193]), st.integers(0, 99), st.just(1.0))
    odd = st.builds(_vector, st.just(TINY_HIDDEN_SIZE), st.integers(0, 99), st.sampled_from([0.0, 1e-7, 1e4, math.nan]))
    return st.one_of(
        _said(st.sampled_from(VOICES).map(str.encode), Expected.ANSWER),
        _said(good.map(str.encode), Expected.ANSWER),
        _said(other.map(str.encode), Expected.REFUSAL),
        _said(odd.map(str.encode), Expected.EITHER),
        _said(
            st.integers(1, 9_000).map(lambda more: _long("一", limits.MAX_SPEAKER_CHARACTERS + more)), Expected.REFUSAL
        ),
        _said(
            st.sampled_from(["Bob", "Default", "default-", "seed-99", "../default", "一"]).map(str.encode),
            Expected.REFUSAL,
        ),
        _damage(good),
        _said(st.text(min_size=1, max_size=50).map(str.encode), Expected.EITHER),
        _broken_text(),
    )


def _sample(num_tokens: int, seed: int, codes: int) -> str:
    return encode_sample(np.random.default_rng(seed).integers(0, codes, (num_tokens, 4)))


def _speaker_sample() -> Values:
    seeds = st.integers(0, 99)
    good = st.builds(_sample, st.integers(1, 40), seeds, st.just(NUM_CODES))
    return st.one_of(
        _said(good.map(str.encode), Expected.ANSWER),
        _said(
            st.builds(_sample, st.sampled_from([500, 2_048, 2_049]), seeds, st.just(NUM_CODES)).map(str.encode),
            Expected.EITHER,
        ),
        _said(st.builds(_sample, st.integers(1, 40), seeds, st.just(2**16)).map(str.encode), Expected.EITHER),
        _said(
            st.integers(1, 999).map(lambda more: _long("一", limits.MAX_SPEAKER_SAMPLE_CHARACTERS + more)),
            Expected.REFUSAL,
        ),
        _damage(good),
        _said(st.text(min_size=1, max_size=50).map(str.encode), Expected.EITHER),
        _broken_text(),
    )


def _choice(*good: str) -> Values:
    others = st.one_of(st.sampled_from([word.upper() for word in good]), st.text(max_size=12))
    strange = others.filter(lambda word: word not in (*good, "")).map(str.encode)
    return st.one_of(
        _said(st.sampled_from(good).map(str.encode), Expected.ANSWER),
        _said(strange, Expected.REFUSAL),
        _said(st.just(b""), Expected.EITHER),
        _broken_text(),
    )


def _deadline() -> Values:
    values = _integer(1, limits.MAX_DEADLINE_MS, INT32_RANGE)
    return values.map(
        lambda value: (
            Value(value.element, Expected.EITHER)
            if value.expected is Expected.ANSWER and value.element < SHORT_DEADLINE_MS
            else value
        )
    )


VALUES: dict[str, Values] = {
    "text": _text(),
    "turns": _turns(),
    "speaker": _speaker(),
    "speaker_sample": _speaker_sample(),
    "sample_text": _sample_text(),
    "seed": _integer(0, limits.INT63_MAX, INT64_RANGE),
    "temperature": _float(*limits.TEMPERATURE_RANGE),
    "top_p": _float(0, 1, above=True),
    "top_k": _integer(1, limits.NUM_AUDIO_TOKENS, INT32_RANGE),
    "repetition_penalty": _float(*limits.PENALTY_RANGE),
    "min_new_tokens": _integer(0, limits.MAX_NEW_TOKENS, INT32_RANGE, usual=(0, FEW_TOKENS)),
    "max_new_tokens": _integer(1, limits.MAX_NEW_TOKENS, INT32_RANGE, usual=(1, FEW_TOKENS)),
    "skip_refine": _BOOL,
    "refine_only": _BOOL,
    "normalize": _BOOL,
    "lexicon": _lexicon(),
    "ssml": often(_said(st.just(False), Expected.ANSWER), _BOOL, share=3),
    "strict_tags": _BOOL,
    "redraw_long": _BOOL,
    "word_times": _BOOL,
    "refine_temperature": _float(*limits.TEMPERATURE_RANGE),
    "refine_max_new_tokens": _integer(1, limits.MAX_REFINED_TOKENS, INT32_RANGE, usual=(1, FEW_TOKENS)),
    "refine_prompt": _tag_text(limits.MAX_PROMPT_CHARACTERS),
    "prompt": _tag_text(limits.MAX_PROMPT_CHARACTERS),
    "language": _choice(*limits.LANGUAGES),
    "deadline_ms": _deadline(),
    "priority": _choice(*limits.PRIORITIES),
    "mode": _choice(*MODES),
}

_KINDS: dict[str, Callable[[], st.SearchStrategy[Element]]] = {
    "BYTES": lambda: st.binary(max_size=8),
    "BOOL": st.booleans,
    "INT32": lambda: st.integers(*INT32_RANGE),
    "INT64": lambda: st.integers(*INT64_RANGE),
    "FP32": lambda: st.floats(width=32),
    "FP64": st.floats,
    "UINT8": lambda: st.integers(0, 255),
}
_UNKNOWN_KINDS = ("", "STRING", "TYPE_INT32", "int32", "FP8", "\0", "BYTES ", "INT32\n")
# Beyond this, Triton 2.51 takes memory for a shape that JSON claims before it looks at the data, and crashes.
MOST_CLAIMED = 1_000


@st.composite
def malformed(draw: st.DrawFn, name: str, *, claims: tuple[int, ...] = ()) -> Tensor:
    """The input `name` as no tensor of one element of its type; `claims` are huge lengths that a shape may have."""
    datatype = right = STREAM_DATATYPES.get(name, "FP32")
    shape: tuple[int, ...] = (1, 1)
    values: tuple[Element, ...] = (draw(_KINDS[right]()),)
    raw: bytes | None = None
    what = draw(st.sampled_from(["datatype", "no datatype", "no batch", "empty", "several", "claim", "bytes"]))
    if what == "datatype":
        datatype = draw(st.sampled_from([kind for kind in _KINDS if kind != right]))
        values = (draw(_KINDS[datatype]()),)
    elif what == "no datatype":
        datatype, raw = draw(st.sampled_from(_UNKNOWN_KINDS)), b"\0\0\0\0"
    elif what == "no batch":
        shape = draw(st.sampled_from([(), (1,)]))
    elif what == "empty":
        shape, values = draw(st.sampled_from([(1, 0), (0, 1), (0, 0), (0,), (1, 1, 0)])), ()
    elif what == "several":
        shape = draw(st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 1, 2), (1,) * 20 + (3,), (300, 1)]))
        values *= math.prod(shape)
    elif what == "claim":
        length = draw(st.sampled_from([2, MOST_CLAIMED, -1, -(2**63), *claims]))
        shape = draw(st.sampled_from([(1, length), (length, length)]))
    else:
        good = Tensor(name, right, shape, values).payload
        raw = draw(
            st.sampled_from([b"", good[:-1], good + b"\0", good * 2, b"\xff" * 4, b"\xff\xff\xff\x7f" + b"a" * 9])
        )
    return Tensor(name, datatype, shape, values, raw)
