"""Normalised text against ChatTTS's own normaliser with the same number grammars, and the cases where ours differs."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import wetext
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.errors import ConfigError
from chattts_serving.text.characters import to_known_characters
from chattts_serving.text.normalizer import Normalizer, detect_language, load_homophones
from chattts_serving.text.tags import split_tags
from chattts_serving.text.verbalizer import Verbalizer
from export.chattts_package import homophones, import_chattts

AS_CHATTTS = [
    "Hello world.",
    "你好，世界。",
    " leading and trailing ",
    "chat T T S is a text to speech model designed for dialogue applications.",
    "四川美食确实以辣闻名，但也有不辣的选择。",
    # Numbers, money, units, dates, times.
    "I paid $12.50 for 3 apples.",
    "我今天买了3个苹果，花了12.5元。",
    "The meeting is at 3:30 PM on Jan 5, 2023.",
    "会议在2023年1月5日下午3:30开始。",
    "50% of 200 is 100.",
    "今年增长了12.5%，去年只有3%。",
    "He ran 5 km in 20 min.",
    "这条路长5km，限速60km/h。",
    "The temperature is -5°C.",
    "气温零下5℃，湿度80%。",
    "请拨打13812345678。",
    "It costs £20 or €25.",
    "价格￥100，约合$14。",
    "1/2 cup of sugar.",
    "3/4的人同意，比分是3:2。",
    "The 1st, 2nd and 3rd.",
    "第1名和第3名。",
    "In 1999 and 2008.",
    "1990年代的音乐。",
    "100,000 people",
    "1,234,567元",
    "0.001",
    "007",
    "圆周率约等于3.1415926",
    "2+2=4",
    "5>3",
    "100米跑了9.58秒",
    "身高1.75m",
    "面积是5m²",
    "2023-01-05",
    "12:30:45",
    "10:00am",
    "5-10岁",
    "3-5天",
    # Words with digits, addresses, symbols, abbreviations.
    "MP3 and H2O",
    "我用Python写代码",
    "AI很好",
    "iPhone 15 Pro卖8999元",
    "www.example.com",
    "email me at foo@bar.com",
    "C++ and C#",
    "#hashtag @user",
    "A*B",
    "x_y",
    "|pipe|",
    "{curly}",
    "Dr. Smith and Mr. Jones",
    "U.S.A.",
    "e.g. this",
    # Punctuation that the model does not know.
    "don't stop",
    "It's a well-known fact: really!",
    "你好！真的吗？是的；好。",
    "他说：“你好”。",
    "《红楼梦》是一本书",
    "（括号）【方括号】『引号』「引号」",
    "wait... what?",
    "(parenthetical) remark",
    "a:b;c<d>e",
    "你好:世界;早!晚",
    "\"quoted\" and 'single'",
    # Full-width punctuation for Chinese, homophones.
    "你好,世界.",
    "粡為瀹",
    "於是後來會個時",
    "喔噢，這個",
    "第一章 总则",
    # Characters that nobody can say.
    "hello 😀 world",
    "𠀀你好",
    "[",
    "]",
    # Control tags.
    "hello [uv_break] world",
    "你好[uv_break]世界[laugh]。",
    "[laugh]哈哈[laugh]",
    "I have 3 [uv_break] apples and 4 [laugh] pears.",
    "我有3个[uv_break]苹果，4个[lbreak]梨。",
    "[oral_2][laugh_0][break_6]",
    "[laugh][uv_break]真的！",
]

# (text, what ChatTTS makes of it, or the error it raises; what we make of it; why)
FIXED = [
    ("好[你", "好", "好你", "an unclosed bracket swallows the rest of the text"),
    ("a [b [laugh] c", "a[laugh]c", "a b[laugh]c", "an unclosed bracket swallows the text up to the next tag"),
    ("a] b [laugh] c", "a bc", "a b[laugh]c", "a closing bracket alone counts as a tag: a real tag is lost or moved"),
    ("看[1]文", "看[1]文", "看一文", "brackets around anything count as a tag: a footnote is neither read nor dropped"),
    ("[粡]", "[同]", "同", "the same; and homophones are replaced inside of it"),
    ("好[laugh][laugh]12", "好[laugh][laugh]twelve", "好[laugh][laugh]十二", "tags count as English words"),
    ("", "IndexError", "", "empty text crashes"),
    ("他说\ud83d好", "UnicodeEncodeError", "他说好", "half a surrogate pair crashes"),
    ("#1", "AssertionError", "number one", "wetext cannot read a digit that touches some symbols"),
    (
        "I am #1 on 5 lists",
        "AssertionError",
        "I am number one on five lists",
        "the same, and the rest of the sentence with it",
    ),
    ('I have 5<">', "", "I have five,,", "wetext makes nothing of a sentence that has some runs of symbols"),
    ("a  b 5", "AssertionError", "a  b five", "wetext cannot read two blanks in a row"),
    (
        "Call me at 555-1234.",
        "Call me at five hundred and fifty five to one thousand two hundred and thirty four.",
        "Call me at five five five, one two three four.",
        "wetext takes a telephone number for a range",
    ),
    (
        "version 2.0.1",
        "version two.zero point one",
        "version two point zero point one",
        "wetext reads one point of two",
    ),
    (
        "I saw 5年 and 7 cats",
        "AssertionError",
        "I saw five 年 and seven cats",
        "wetext cannot read a digit beside a character that it does not know",
    ),
    (
        "人口1,000。",
        "人口一，零零零。",
        "人口一千。",
        "wetext reads the groups of a Chinese number as numbers of their own",
    ),
    ("Hello １２３", "Hello ", "Hello one hundred and twenty three", "full-width digits are deleted in English"),
    ("Ｈｅｌｌｏ", "", "Hello", "full-width letters are deleted"),
    ("增长５０％", "增长五十", "增长百分之五十", "a full-width percent sign is deleted"),
    ("−5度", "五度", "负五度", "the minus sign proper is deleted"),
    ("二〇二三年", "二二三年", "二零二三年", "the Chinese zero is deleted"),
    ("①苹果", "苹果", "一苹果", "digits in circles are deleted"),
    ("½杯水", "杯水", "二分之一杯水", "fractions of one character are deleted in Chinese"),
    ("第Ⅳ章", "第章", "第IV章", "Roman numerals of one character are deleted"),
    ("café", "caf", "cafe", "letters with accents are deleted"),
    ("你好\u3000世界", "你好世界", "你好 世界", "white space other than a blank is deleted"),
    ("yes—no", "yesno", "yes no", "two words run into one where what parts them is deleted"),
    ("AC/DC", "ACDC", "AC DC", "the same"),
    ("hello😀world", "helloworld", "hello world", "the same"),
]

# (text, what ChatTTS makes of it without a number grammar; what we make of it; why)
FIXED_WITHOUT_VERBALIZING = [
    ("我有3个", "我有个", "我有3个", "digits are deleted"),
    ("In 2023.", "In .", "In 2023.", "digits are deleted"),
    ("hello\tworld", "helloworld", "hello world", "white space other than a blank is deleted"),
]


@pytest.fixture(scope="module")
def ours() -> Callable[..., str]:
    """Our normaliser with a verbalizer of its own for each text, as for each request."""
    normalizer = Normalizer(homophones())

    def normalize(text: str, language: str, *, verbalize: bool = True) -> str:
        return normalizer(to_known_characters(text), language, Verbalizer() if verbalize else None)

    return normalize


def chattts_normalizer(*languages: str) -> Callable[..., str]:
    """ChatTTS's normaliser with wetext for `languages`."""
    package = import_chattts()
    reference_class = importlib.import_module("ChatTTS.norm").Normalizer

    logger = logging.getLogger("silent")
    logger.setLevel(logging.CRITICAL)
    reference = reference_class(str(Path(package.__file__).parent / "res" / "homophones_map.json"), logger)
    for language in languages:
        assert reference.register(language, wetext.Normalizer(lang=language, operator="tn").normalize)
    return reference


@pytest.fixture(scope="module")
def chattts() -> Callable[..., str]:
    return chattts_normalizer("zh", "en")


@pytest.fixture(scope="module")
def bare_chattts() -> Callable[..., str]:
    return chattts_normalizer()


def outcome(normalizer: Callable[..., str], text: str) -> str:
    try:
        return normalizer(text)
    except Exception as error:
        return type(error).__name__


@pytest.mark.parametrize("text", AS_CHATTTS)
def test_normalised_text_is_that_of_chattts(ours, chattts, text):
    assert ours(text, detect_language(text)) == chattts(text).strip()


@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("text", ["Hello, world! (yes)", "你好, 世界! (是的)", "I have 3 apples.", "12.5%"])
def test_given_language_is_obeyed_as_by_chattts(ours, chattts, text, language):
    assert ours(text, language) == chattts(text, lang=language).strip()


@pytest.mark.parametrize(("text", "theirs", "fixed", "why"), FIXED)
def test_quirk_of_chattts_is_fixed(ours, chattts, text, theirs, fixed, why):
    assert outcome(chattts, text) == theirs, "the quirk is not there any more"
    assert ours(text, detect_language(text)) == fixed, why


@pytest.mark.parametrize(("text", "theirs", "fixed", "why"), FIXED_WITHOUT_VERBALIZING)
def test_quirk_of_chattts_without_number_grammar_is_fixed(ours, bare_chattts, text, theirs, fixed, why):
    assert outcome(bare_chattts, text) == theirs, "the quirk is not there any more"
    assert ours(text, detect_language(text), verbalize=False) == fixed, why


CHINESE = st.text(
    st.sampled_from("我你他今天很好苹果在了於粡為喔後，。、！？；：“”（）《》【】 ,.!?;:()<>-"), max_size=30
)
ENGLISH = st.lists(
    st.sampled_from(["hello", "World", "don't", "well-known", "the", "a", ",", ".", "!", "?", ";", "(", ")"])
)
TAGS = st.sampled_from(["[uv_break]", "[laugh_0]", "[speed_5]"])
PIECES = st.lists(st.one_of(CHINESE, ENGLISH.map(" ".join), TAGS), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES, language=st.sampled_from(["zh", "en"]))
def test_any_text_of_known_characters_is_normalised_as_by_bare_chattts(ours, bare_chattts, pieces, language):
    text = " ".join(pieces)  # so that no two words touch where a mark between them is deleted
    assert ours(text, language, verbalize=False) == bare_chattts(text, do_text_normalization=False).strip()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=80), language=st.sampled_from(["zh", "en"]), verbalize=st.booleans())
def test_any_text_at_all_becomes_known_characters(ours, text, language, verbalize):
    for piece in split_tags(ours(text, language, verbalize=verbalize))[::2]:
        assert all("\u4e00" <= c <= "\u9fff" or c in "，。、,. " or (c.isascii() and c.isalnum()) for c in piece)


HARD_FOR_GRAMMARS = "0123456789 .,:/-%$\"\\{}'()#&@_*+=<>?!~^|ABs年月日点元€£¥￥℃°²½①Ⅳ１％é\u200b\u0301😀 "


@settings(max_examples=500, deadline=None)
@given(text=st.text(st.sampled_from(HARD_FOR_GRAMMARS), max_size=60), language=st.sampled_from(["zh", "en"]))
def test_no_number_is_lost(ours, text, language):
    """Where the grammars have no reading, something is said all the same."""
    if any(character in "0123456789" for character in text):
        assert any(map(str.isalnum, ours(text, language)))


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES)
def test_tags_stay_in_their_order(ours, pieces):
    text = "".join(pieces)
    assert split_tags(ours(text, "zh"))[1::2] == split_tags(text)[1::2]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("你好", "zh"),
        ("hello", "en"),
        ("我用 Python 写代码", "zh"),
        ("the word 好 is Chinese", "en"),
        ("[laugh][music]好", "zh"),
    ],
)
def test_language_is_that_of_most_words(text, language):
    assert detect_language(text) == language


@pytest.mark.parametrize("otherwise", ["zh", "en"])
@pytest.mark.parametrize("text", ["", "12.5", "……", "[laugh]"])
def test_language_of_text_without_words_is_the_one_given(text, otherwise):
    assert detect_language(text, otherwise) == otherwise


@pytest.mark.parametrize("content", ["", "[]", '{"ab": "c"}', '{"a": "bc"}', '{"a": 1}', '{"a": "b"'])
def test_broken_homophones_are_refused(tmp_path, content):
    path = tmp_path / "homophones.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"homophones\.json"):
        load_homophones(path)


def test_missing_homophones_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="run python -m export"):
        load_homophones(tmp_path / "homophones.json")
