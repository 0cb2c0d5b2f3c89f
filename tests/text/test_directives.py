"""Pauses of a given length and words that are spelled out: what becomes of them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from chattts_serving.errors import InvalidInputError
from chattts_serving.request import GenerationRequest, SynthesisRequest
from chattts_serving.text.directives import pause_samples
from chattts_serving.text.frontend import TextFrontend
from chattts_serving.text.script import PAUSES
from chattts_serving.text.sentences import MAX_PIECE_WIDTH, End
from tests.frontend_assets import make_frontend_assets
from tests.text.test_sentences import width
from tests.voices import encode_sample

SENTENCE, PARAGRAPH = PAUSES[End.SENTENCE], PAUSES[End.PARAGRAPH]


@pytest.fixture(scope="module")
def frontend(tmp_path_factory) -> TextFrontend:
    return TextFrontend(make_frontend_assets(tmp_path_factory.mktemp("assets")))


def prepare(frontend: TextFrontend, text: str, **values) -> GenerationRequest:
    return frontend.prepare(SynthesisRequest(text=text, **values)).generation


@pytest.mark.parametrize(
    ("pause", "samples"),
    [("0s", 0), ("1ms", 24), ("20ms", 480), ("1.5s", 36_000), ("0.0001s", 2), ("0.3s", 7_200), ("30s", 720_000)],
)
def test_a_pause_has_the_samples_of_its_length(pause, samples):
    assert pause_samples(f"[pause {pause}]") == samples


@pytest.mark.parametrize(
    ("text", "texts", "pauses"),
    [
        ("Hello there. [pause 1.5s] How are you?", ("Hello there.", "How are you"), (0, 36_000, 0)),
        ("Hello[pause 500ms]there.", ("Hello", "there."), (0, 12_000, 0)),
        ("你好[pause 500ms]世界。", ("你好", "世界。"), (0, 12_000, 0)),
        ("[pause 1s] Hello there. [pause 2s]", ("Hello there.",), (24_000, 48_000)),
        ("The first one.\n[pause 0s]\nThe second one.", ("The first one.", "The second one."), (0, 0, 0)),
        ("One here. [pause 1s][pause 1ms] Two here.", ("One here.", "Two here."), (0, 24_024, 0)),
        ("One here. [pause 1s] ... [pause 1s]\nTwo here.", ("One here.", "Two here."), (0, 48_000, 0)),
        ("... [pause 1s] Hello there.", ("Hello there.",), (24_000, 0)),
        (
            "The first one. The second one. [pause 1s] The third one.\nThe fourth one.",
            ("The first one.", "The second one.", "The third one.", "The fourth one."),
            (0, SENTENCE, 24_000, PARAGRAPH, 0),
        ),
        ("**Hello [pause 1s] there**, [a [pause 1s] link](x).", ("Hello", "there, a", "link."), (0, 24_000, 24_000, 0)),
    ],
)
def test_a_pause_stands_in_place_of_the_usual_one(frontend, text, texts, pauses):
    generation = prepare(frontend, text)
    assert (generation.texts, generation.pauses) == (texts, pauses)


def test_short_pieces_on_both_sides_of_a_pause_stay_apart(frontend):
    assert prepare(frontend, "A. [pause 1s] B. C. [pause 1s] D.").texts == ("A.", "B. C.", "D.")


@pytest.mark.parametrize(
    "pause", ["31s", "30.001s", "30001ms", "5", "2 min", "1,5s", "-1s", ".5s", "1.5 s", "1S", "1sec"]
)
def test_a_pause_that_is_none_is_refused_by_name(frontend, pause):
    with pytest.raises(InvalidInputError) as error:
        prepare(frontend, f"Hello [pause {pause}] there.")
    said = f"input 'text' is '[pause {pause}]'; allowed is [pause 500ms] or [pause 1.5s], from 0s to 30s"
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            "a" + "[pause 16s]" * 2 + "b",
            r"'pauses of 32 s in one place'; allowed is at most 30 s of pauses in one place",
        ),
        (
            "[pause 16s] . [pause 16s] b",
            r"'pauses of 32 s in one place'; allowed is at most 30 s of pauses in one place",
        ),
        ("a[pause 30s]" * 21, r"'pauses of 630 s in one request'; allowed is at most 600 s of pauses in one request"),
    ],
)
def test_pauses_that_are_too_long_together_are_refused(frontend, text, wrong):
    with pytest.raises(InvalidInputError, match=wrong):
        prepare(frontend, text)


@pytest.mark.parametrize("text", ["[pause 1s]", "[pause 1s] ... [pause 1s]"])
def test_silence_alone_is_nothing_to_say(frontend, text):
    with pytest.raises(InvalidInputError, match="allowed is text with at least one word"):
        prepare(frontend, text)


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("The code is [spell A1-b2].", "The code is A one dash B two."),
        ("Say [spell nasa], not nasa.", "Say N A S A, not nasa."),
        ("[spell K9][spell K9] [spell K9]", "K nine K nine K nine"),
        ("Mail [spell a.b_c@d+e/f#1] now", "Mail A dot B underscore C at D plus E slash F hash one now"),
        ("密码是[spell A1-b2]。", "密码是 A 一杠 B 二。".replace("一杠", "一 杠")),
        ("It is [spell Zo\u00eb], right", "It is Z O E, right"),
        ("[spell 1999]", "one nine nine nine"),
    ],
)
def test_what_is_spelled_is_said_sign_by_sign(frontend, text, spoken):
    for normalize in (True, False):
        assert " ".join(prepare(frontend, text, normalize=normalize).texts) == spoken


def test_what_is_spelled_does_not_decide_the_language(frontend):
    assert prepare(frontend, "号码 [spell ABCDEFG].").texts == ("号码 A B C D E F G。",)
    assert prepare(frontend, "[spell 12]", language="zh").texts == ("一 二",)


def test_what_is_spelled_is_never_cut_and_counts_as_long_as_it_takes(frontend):
    tag = f"[spell {'A1' * 32}]"
    pieces = prepare(frontend, f"{tag} " * 8).texts
    assert len(pieces) == 8
    assert {width(piece) for piece in pieces} <= set(range(MAX_PIECE_WIDTH + 1))


@pytest.mark.parametrize("spelled", ["", "A" * 65, "5€", "你好", "don't", "a,b"])
def test_what_cannot_be_spelled_is_refused_by_name(frontend, spelled):
    with pytest.raises(
        InvalidInputError, match=r"input 'text' is .\[spell .*; allowed is \[spell \.\.\.\] with 1 to 64"
    ):
        prepare(frontend, f"Hello [spell {spelled}] there.")


@pytest.mark.parametrize(
    "text", ["[pause]", "[Pause 1s]", "[pause for effect]", "[pauses 3]", "[spell it out]", "[spelling]", "[spell]"]
)
def test_other_brackets_are_punctuation(frontend, text):
    generation = prepare(frontend, f"Hello {text} there.")
    assert len(generation.texts) == 1
    assert "[" not in generation.texts[0]


def test_they_are_tags_where_tags_are_strict(frontend):
    assert len(prepare(frontend, "Say [spell A1] [pause 1s] there.", strict_tags=True).texts) == 2


@pytest.mark.parametrize("directive", ["[pause 1s]", "[spell A1]", "[pause 99s]"])
@pytest.mark.parametrize("name", ["prompt", "refine_prompt", "sample_text"])
def test_they_stand_in_the_text_alone(frontend, name, directive):
    sample = encode_sample(np.arange(4).reshape(4, 1)) if name == "sample_text" else ""
    with pytest.raises(InvalidInputError, match=f"input '{name}' is "):
        prepare(frontend, "Hello there.", speaker_sample=sample, **{name: directive})
