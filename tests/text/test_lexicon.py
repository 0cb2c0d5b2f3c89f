"""Words that are said as entries say: which places of a text they hold for, and which entries are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.request import MAX_TEXT_CHARACTERS, SynthesisRequest
from chattts_serving.text.frontend import Prepared, TextFrontend
from chattts_serving.text.lexicon import MAX_ENTRIES, MAX_FILE_ENTRIES, Lexicon, load_lexicon, parse_lexicon
from tests.frontend_assets import make_frontend_assets

OF_SERVER = {"nginx": "engine x", "重庆": "虫庆", "SQL": "sequel"}


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return make_frontend_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def frontend(assets) -> TextFrontend:
    return TextFrontend(assets, lexicon=OF_SERVER)


def prepare(frontend: TextFrontend, text: str, lexicon: dict[str, str] | None = None, **values) -> Prepared:
    return frontend.prepare(SynthesisRequest(text=text, lexicon=json.dumps(lexicon or {}), **values))


def spoken(frontend: TextFrontend, text: str, lexicon: dict[str, str] | None = None, **values) -> str:
    return " ".join(prepare(frontend, text, lexicon, **values).generation.texts)


@pytest.mark.parametrize(
    ("entries", "text", "said"),
    [
        ({"cat": "dog"}, "cat, cat. (cat) cat-like, a 'cat'", "dog, dog. (dog) dog-like, a 'dog'"),
        ({"cat": "dog"}, "cats, tomcat, cat5, 5cat, Cat, CAT", "cats, tomcat, cat5, 5cat, Cat, CAT"),
        ({"cat": "dog"}, "the cat's tail; the cat'll", "the dog's tail; the cat'll"),
        ({"New York": "the city"}, "In New York, not New Yorker", "In the city, not New Yorker"),
        ({"a": "b", "a b": "c", "b": "a"}, "a b a b a", "c c b"),
        ({"重庆": "虫庆"}, "我在重庆市。重 庆", "我在虫庆市。重 庆"),
        ({"AI": "人工智能"}, "用AI写AIs", "用人工智能写AIs"),
        ({"AI技术": "技术"}, "新AI技术好, HAI技术", "新技术好, HAI技术"),
        ({"C++": "see plus plus", "C": "see"}, "C++ and C", "see plus plus and see"),
        ({"e": "x", "laugh": "x", "spell": "x", "break": "x"}, "[laugh] [spell e] e", "[laugh] [spell e] x"),
        ({"😀": "smile"}, "a😀b", "asmileb"),
        ({}, "as it is", "as it is"),
    ],
)
def test_whole_words_are_replaced_and_the_longest_goes_first(entries, text, said):
    assert Lexicon(entries)(text) == said


def test_entries_of_a_request_go_before_those_of_the_server(frontend):
    assert spoken(frontend, "nginx and SQL") == "engine x and sequel"
    assert spoken(frontend, "nginx and SQL", {"SQL": "[spell SQL]"}) == "engine x and S Q L"
    assert spoken(frontend, "nginx and SQL") == "engine x and sequel"


@pytest.mark.parametrize(
    ("entries", "text", "said"),
    [
        ({"café": "ka fay"}, "Our cafe\u0301 and Cafe", "Our ka fay and Cafe"),
        ({"COVID-19": "the virus of 2019"}, "COVID-19 came.", "the virus of twenty nineteen came."),
        ({"Москва": "Moscow"}, "In Москва now", "In Moscow now"),
        ({"nginx": "N 1"}, "**nginx** and [nginx](http://nginx.org)", "N one and N one"),
        ({"end": "end. [pause 1s] New start"}, "The end", "The end. New start"),
    ],
)
def test_they_hold_before_what_is_written_is_read(frontend, entries, text, said):
    prepared = prepare(frontend, text, entries)
    assert " ".join(prepared.generation.texts) == said
    assert prepared.warning == ""


def test_they_hold_without_normalising_too(frontend):
    assert spoken(frontend, "nginx 5", normalize=False) == "engine x 5"


WRONG = [
    ('{"a": 3}', r"\{'a': 3\}; allowed is 1 to 200 printable characters in one line to say for a word"),
    ('{"a": ""}', r"\{'a': ''\}; allowed is 1 to 200"),
    ('{"a": "b\\n"}', r"\{'a': 'b\\n'\}; allowed is 1 to 200"),
    ('{"a": "\\ud800"}', r"\{'a': '\\ud800'\}; allowed is 1 to 200"),
    (json.dumps({"a": "b" * 201}), r"\{'a': 'bbb.*; allowed is 1 to 200"),
    ('{"": "b"}', r"\{'': 'b'\}; allowed is a word of 1 to 64 characters"),
    ('{" ": "b"}', r"\{' ': 'b'\}; allowed is a word of 1 to 64 characters"),
    (json.dumps({"w" * 65: "b"}), "allowed is a word of 1 to 64 characters"),
    ('{"[laugh]": "b"}', r"\{'\[laugh\]': 'b'\}; allowed is a word of 1 to 64 characters"),
    ('{"a": "[giggle]"}', r"\{'a': '\[giggle\]'\}; allowed is an entry without faults in its tags"),
    ('{"a": "[pause 99s]"}', r"\{'a': '\[pause 99s\]'\}; allowed is an entry without faults in its tags"),
    ('["a"]', "allowed is a JSON object of at most 500 words"),
    ("a: b", "allowed is a JSON object of words"),
    ("[" * 20_000, "allowed is a JSON object of words"),
    (
        json.dumps({str(n): "b" for n in range(MAX_ENTRIES + 1)}),
        "'501 entries'; allowed is a JSON object of at most 500",
    ),
]


@pytest.mark.parametrize(("lexicon", "named"), WRONG, ids=map(str, range(len(WRONG))))
def test_an_entry_that_is_none_is_refused_by_name(lexicon, named):
    with pytest.raises(InvalidInputError, match=f"input 'lexicon' is .*{named}"):
        parse_lexicon(lexicon)


def test_a_text_that_entries_make_too_long_is_refused(frontend):
    text = "a " * (MAX_TEXT_CHARACTERS // 2)
    with pytest.raises(InvalidInputError, match="input 'lexicon' is '4 entries'; allowed is entries with which"):
        prepare(frontend, text, {"a": "b" * 200})


def test_as_many_words_as_may_be_are_looked_up_in_a_long_text(frontend):
    entries = {"一" * (1 + n % 60) + chr(0x4E10 + n): "二" for n in range(MAX_ENTRIES)}
    assert len(spoken(frontend, "一" * MAX_TEXT_CHARACTERS, entries)) > MAX_TEXT_CHARACTERS


def test_a_file_is_read_as_people_write_it(tmp_path):
    (tmp_path / "lexicon.json").write_text('\ufeff{"Zoë": "zo e", "重庆": "虫庆"}', encoding="utf-8")
    assert load_lexicon(tmp_path / "lexicon.json") == {"Zoe": "zo e", "重庆": "虫庆"}


FILES = {
    "missing": (None, "cannot read the lexicon"),
    "cut": ("{", "cannot read the lexicon"),
    "a list": ("[]", "allowed is a JSON object of at most 20,000 words"),
    "an entry": ('{"a": []}', r"is wrong: input 'lexicon' is \{'a': \[\]\}"),
    "many": (json.dumps(dict.fromkeys(map(str, range(MAX_FILE_ENTRIES + 1)), "b")), "object of at most 20,000"),
    "large": (json.dumps({"a": "b" * 4_000_000}), "has more than 4,000,000 bytes"),
}


@pytest.mark.parametrize(("content", "named"), FILES.values(), ids=FILES.keys())
def test_a_broken_file_is_refused_by_its_path(tmp_path, content, named):
    path = tmp_path / "lexicon.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=named) as error:
        load_lexicon(path)
    assert str(path) in str(error.value)
