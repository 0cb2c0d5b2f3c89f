"""Documents of SSML: what is said of good ones, and by which line and column bad ones are refused."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_TEXT_CHARACTERS, GenerationRequest, SynthesisRequest
from chattts_serving.text.frontend import TextFrontend
from chattts_serving.text.script import PAUSES
from chattts_serving.text.sentences import End
from chattts_serving.voice.voices import Voice
from tests.frontend_assets import make_frontend_assets

SENTENCE, PARAGRAPH = PAUSES[End.SENTENCE], PAUSES[End.PARAGRAPH]


@pytest.fixture(scope="module")
def frontend(tmp_path_factory) -> TextFrontend:
    voices = [Voice(name, name, seed=seed) for seed, name in enumerate(("anna", "bert", "carl"))]
    return TextFrontend(make_frontend_assets(tmp_path_factory.mktemp("assets")), voices)


def prepare(frontend: TextFrontend, text: str, **values) -> GenerationRequest:
    return frontend.prepare(SynthesisRequest(text=text, ssml=True, **values)).generation


HEADER = '<?xml version="1.0" encoding="UTF-8"?>\n<speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" '
HEADER += 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:schemaLocation="a b" xml:lang="en-US">\n'
GOOD = {
    "a text": ("<speak>Hello there, my friend.</speak>", ["Hello there, my friend."], [0, 0]),
    "a header": (f"{HEADER}  Hello\n  there, my friend.\n</speak>\n", ["Hello there, my friend."], [0, 0]),
    "another encoding": (
        '<?xml version="1.0" encoding="UTF-16"?><speak>你好，世界。</speak>',
        ["你好，世界。"],
        [0, 0],
    ),
    "paragraphs and sentences": (
        "<speak><p><s>The first sentence</s><s>The second one here!</s></p>\n<p>A new paragraph</p></speak>",
        ["The first sentence.", "The second one here.", "A new paragraph."],
        [0, SENTENCE, PARAGRAPH, 0],
    ),
    "Chinese": (
        "<speak><s>今天天气很好</s><s>我们去公园吧</s></speak>",
        ["今天天气很好。", "我们去公园吧。"],
        [0, SENTENCE, 0],
    ),
    "breaks": (
        '<speak><break time="250ms"/>One is here.<break time="1.5s"/> Two <break/> three.'
        '<break strength="none"/>Four is here.<break time="+2s" strength="weak"/></speak>',
        ["One is here.", "Two", "three.", "Four is here."],
        [6_000, 36_000, 12_000, 0, 48_000],
    ),
    "breaks between sentences": (
        "<speak><s>The first one is here</s><break time='1s'/><s>The second one is here</s></speak>",
        ["The first one is here.", "The second one is here."],
        [0, 24_000, 0],
    ),
    "sub": (
        '<speak>The <sub alias="World Wide Web Consortium">W3C</sub> is here.</speak>',
        ["The World Wide Web Consortium is here."],
        [0, 0],
    ),
    "say-as": (
        '<speak><say-as interpret-as="characters">A1 b-2</say-as> or <say-as interpret-as="digits">42</say-as></speak>',
        ["A one, B dash two or four two"],
        [0, 0],
    ),
    "entities and sections": (
        "<speak>Fish &amp; chips<!-- no --> &#65;&#x42;C <![CDATA[& peas]]></speak>",
        ["Fish and chips ABC and peas"],
        [0, 0],
    ),
    "numbers": ("<speak>It costs $5 in 2023.</speak>", ["It costs five dollars in twenty twenty three."], [0, 0]),
    "tags": (
        "<speak>Good [laugh] day. [pause 1s] Bye [spell X1].</speak>",
        ["Good[laugh]day.", "Bye X one."],
        [0, 24_000, 0],
    ),
    "a language": (
        '<speak>12 <p xml:lang="zh-CN">12</p> 12</speak>',
        ["twelve", "十二。", "twelve"],
        [0, PARAGRAPH, PARAGRAPH, 0],
    ),
    "an empty element": (
        "<speak><p/><s></s>Hello there.<voice name='anna'> </voice></speak>",
        ["Hello there."],
        [0, 0],
    ),
}


@pytest.mark.parametrize(("text", "texts", "pauses"), GOOD.values(), ids=GOOD.keys())
def test_what_is_said_of_a_good_document(frontend, text, texts, pauses):
    generation = prepare(frontend, text)
    assert list(generation.texts) == texts
    assert list(generation.pauses) == pauses


def test_voices_are_turns_of_the_request(frontend):
    generation = prepare(
        frontend,
        """<speak>
          <voice name="anna">Who is there, please?</voice><break time="300ms"/>
          <voice name="bert:2+carl">It is only me. <voice name="anna">No!</voice></voice>
          And so it ended.
        </speak>""",
        speaker="carl",
    )
    assert generation.texts == ("Who is there, please", "It is only me.", "No.", "And so it ended.")
    names = [generation.manner_of(place).name for place in range(4)]
    assert names == ["anna", "bert:2+carl", "anna", "carl"]
    assert generation.pauses == (0, 7_200, SENTENCE, SENTENCE, 0)
    assert generation.num_voices == 3


@pytest.mark.parametrize(
    ("rate", "tag"),
    [
        ("x-slow", 1),
        ("slow", 3),
        ("medium", 5),
        ("default", 5),
        ("fast", 7),
        ("x-fast", 9),
        ("100%", 5),
        ("+0%", 5),
        ("50%", 0),
        ("200%", 9),
        ("+50%", 8),
        ("-50%", 0),
        ("1.2", 6),
        ("0.8", 3),
    ],
)
def test_a_rate_is_the_speed_tag_that_is_nearest(frontend, rate, tag):
    text = f'<speak>This is usual, <prosody rate="{rate}">and this is not.</prosody></speak>'
    generation = prepare(frontend, text, prompt="[speed_5][oral_2]" if tag == 7 else "[speed_5]", skip_refine=True)
    kept = "[oral_2]" if tag == 7 else ""
    prompts = [generation.manner_of(place).prompt for place in range(len(generation.texts))]
    assert prompts == [f"[speed_5]{kept}", f"{kept}[speed_{tag}]"]
    assert generation.texts == ("This is usual,", "and this is not.")


LAUGHS = '<!DOCTYPE speak [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD = {
    "no XML": ("Hello", r"'Hello'; allowed is well-formed XML; syntax error at line 1, column 1"),
    "cut": ("<speak>Hello", "well-formed XML; no element found at line 1, column 13"),
    "crossed": (
        "<speak>\n<p>a<s>b</p></s></speak>",
        r"'<p>a<s>b</p></s></speak>'; .* mismatched tag at line 2, column 11",
    ),
    "two": ("<speak>a</speak>\n<speak>b</speak>", "junk after document element at line 2, column 1"),
    "ampersand": ("<speak>a & b</speak>", "well-formed XML; .*at line 1, column 1[0-9]"),
    "unknown entity": ("<speak>&nbsp;</speak>", "undefined entity at line 1, column 8"),
    "NUL": ("<speak>&#0;</speak>", "reference to invalid character number at line 1, column 8"),
    "billion laughs": (
        f"{LAUGHS}]><speak>&i;</speak>",
        r"'<!DOCTYPE'; allowed is at line 1, .* a document without DTD",
    ),
    "quadratic": (
        '<!DOCTYPE x [<!ENTITY a "' + "a" * 9_000 + '">]><speak>' + "&a;" * 3_000 + "</speak>",
        "without DTD",
    ),
    "a file": ('<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><speak>&x;</speak>', "without DTD"),
    "an address": ('<!DOCTYPE speak SYSTEM "http://127.0.0.1:1/a.dtd"><speak>a</speak>', "without DTD"),
    "parameter entity": ('<!DOCTYPE s [<!ENTITY % x SYSTEM "http://a/b"> %x;]><speak>a</speak>', "without DTD"),
    "instruction": ("<speak>a<?xml-stylesheet href='b'?></speak>", r"line 1, column 9: a document without processing"),
    "another root": ("<p>a</p>", r"'<p>'; allowed is at line 1, column 1: one <speak> around all"),
    "speak in speak": ("<speak>a<speak>b</speak></speak>", r"'<speak>'; .* line 1, column 9: one <speak> around all"),
    "unknown element": (
        "<speak>\n\n  <emphasis>a</emphasis></speak>",
        r"'<emphasis>'; allowed is at line 3, column 3: one of",
    ),
    "audio": ('<speak><audio src="file:///etc/passwd"/></speak>', r"'<audio>'; allowed is at line 1, column 8: one of"),
    "another's element": ("<speak xmlns:m='x'><m:express-as>a</m:express-as></speak>", "'<m:express-as>'"),
    "unknown attribute": ('<speak><prosody pitch="high">a</prosody></speak>', r"<prosody> with rate"),
    "no attribute": ('<speak><s id="1">a</s></speak>', r"""'<s id="1">'; .* <s> with xml:lang"""),
    "language": ('<speak xml:lang="fr-FR">a</speak>', "line 1, column 1: languages zh, en"),
    "voice without name": (
        "<speak>你好<voice>a</voice></speak>",
        r"'<voice>'; .* line 1, column 10: a voice with a name",
    ),
    "unknown voice": (
        '<speak>\n<voice name="zoe">a b</voice></speak>',
        r"\{'speaker': 'zoe'\}; .* line 2, column 1: a voice of",
    ),
    "time": (
        '<speak>a<break time="1"/></speak>',
        r"""'<break time="1">'; .* a time such as 500ms or 1.5s, from 0s to 30s""",
    ),
    "long break": ('<speak>a<break time="31s"/></speak>', "from 0s to 30s"),
    "long breaks": ('<speak>a<break time="20s"/><break time="20s"/>b</speak>', "'pauses of 40 s in one place'"),
    "strength": ('<speak>a<break strength="huge"/></speak>', "a strength of none, x-weak"),
    "text in break": (
        "<speak>a<break>b</break></speak>",
        "'b'; allowed is at line 1, column 17: a <break> with nothing in it",
    ),
    "element in sub": ('<speak><sub alias="a">b<break/></sub></speak>', "no element in <sub>"),
    "sub without alias": ("<speak><sub>b</sub></speak>", "a sub with an alias"),
    "say-as": (
        '<speak><say-as interpret-as="date">1/2</say-as></speak>',
        "interpret-as characters, spell-out, verbatim",
    ),
    "say-as of words": (
        '<speak>a <say-as interpret-as="characters">5€</say-as></speak>',
        "'5€'; .* line 1, column 10: in",
    ),
    "rate": ('<speak><prosody rate="quick">a</prosody></speak>', "a rate of x-slow, slow"),
    "rate of nothing": ('<speak><prosody rate="0%">a</prosody></speak>', "a rate of x-slow, slow"),
    "rate below nothing": ('<speak><prosody rate="-100%">a</prosody></speak>', "a rate of x-slow, slow"),
    "deep": (
        "<speak>" + "<p>" * 15 + "\n<p>",
        r"'<p>'; allowed is at line 2, column 1: at most 16 elements in one another",
    ),
    "very deep": ("<speak>" + "<p>" * 6_000, "at most 16 elements in one another"),
    "nothing": ("<speak/>", "allowed is text with at least one word"),
    "silence": ('<speak><break time="1s"/></speak>', "allowed is text with at least one word"),
    "a wrong tag": (
        "<speak>a [laugh_9]</speak>",
        r"'\[laugh_9\]'; allowed is at line 1, column 1: text with control tags",
    ),
    "another script": ("<speak>Привет, мир</speak>", "text in Chinese or English"),
    "many sentences": (
        f"<speak>{'a<break/>' * 1_050}<voice name='anna'>{'a<break/>' * 1_050}</voice></speak>",
        "'2100 sentences'; allowed is at most 2000",
    ),
}


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD.keys())
def test_a_bad_document_is_refused_by_its_place(frontend, text, said):
    started = time.process_time()
    with pytest.raises(InvalidInputError, match=said) as error:
        prepare(frontend, text[:MAX_TEXT_CHARACTERS] if "<!" not in text else text)
    assert error.value.name == "text"
    assert time.process_time() - started < 30


def test_what_is_no_document_is_not_taken_for_one(frontend):
    generation = frontend.prepare(SynthesisRequest(text="<speak>Hello <break/> there.</speak>")).generation
    assert "break" not in " ".join(generation.texts)
    assert generation.pauses == (0, 0)


def test_a_document_is_no_turn(frontend):
    with pytest.raises(InvalidInputError, match="input 'ssml' is True; allowed is false together with 'turns'"):
        SynthesisRequest(turns='[{"text": "a"}]', ssml=True)


PIECES = st.sampled_from(
    [
        *("<speak>", "</speak>", "<p>", "</p>", "<s>", "</s>", "<break/>", "<break time='1s'/>", "<voice name='anna'>"),
        *(
            "</voice>",
            "<prosody rate='fast'>",
            "</prosody>",
            "<sub alias='a'>",
            "</sub>",
            "&amp;",
            "&#x41;",
            "&b;",
            "<!--",
        ),
        *(
            "-->",
            "<![CDATA[",
            "]]>",
            "<!DOCTYPE a>",
            "<?x?>",
            "Hello there. ",
            "你好。",
            "5",
            " ",
            "\n",
            "[laugh]",
            "[pause 1s]",
        ),
        *("<say-as interpret-as='characters'>", "</say-as>", "<", ">", "é", "\u2028"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=12), wrapped=st.booleans())
def test_any_document_is_prepared_or_refused(frontend, pieces, wrapped):
    text = "".join(pieces) or " "
    try:
        generation = prepare(frontend, f"<speak>{text}</speak>" if wrapped else text)
    except InvalidInputError:
        return
    assert GenerationRequest.from_json(generation.to_json()) == generation
    assert sum(generation.pauses) <= 600 * SAMPLE_RATE
