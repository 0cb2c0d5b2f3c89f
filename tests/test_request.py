import json
import math
from dataclasses import replace

import pytest

from chattts_serving.errors import InvalidInputError, shown
from chattts_serving.request import GenerationRequest, Manner, SamplingOptions, SynthesisRequest, request_from_inputs

HUGE = 2**70


def test_only_text_is_required():
    assert request_from_inputs({"text": "hi"}) == SynthesisRequest(text="hi")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text", ""),
        ("text", "x" * 20_001),
        ("text", "a\0b"),
        ("text", b"bytes"),
        ("text", None),
        ("speaker", "x" * 8_193),
        ("speaker_sample", "x" * 32_769),
        ("sample_text", "x" * 1_001),
        ("refine_prompt", "[oral_1]" * 126),
        ("prompt", "\0"),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", True),
        ("temperature", 0.0),
        ("temperature", -0.3),
        ("text", "lone \ud800 surrogate"),
        ("prompt", "\udfff"),
        ("temperature", 1e-8),
        ("temperature", 10**400),
        ("repetition_penalty", 0.05),
        ("repetition_penalty", 11),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("refine_temperature", 0),
        ("top_p", 0.0),
        ("top_p", 1.0001),
        ("top_p", math.nan),
        ("top_k", 0),
        ("top_k", 627),
        ("top_k", 20.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -math.inf),
        ("min_new_tokens", -1),
        ("min_new_tokens", 2_049),
        ("max_new_tokens", 0),
        ("max_new_tokens", 2_049),
        ("max_new_tokens", HUGE),
        ("refine_max_new_tokens", 385),
        ("skip_refine", 1),
        ("normalize", "yes"),
        ("strict_tags", 1),
        ("redraw_long", 1),
        ("word_times", 1),
        ("language", "fr"),
        ("language", "ZH"),
        ("deadline_ms", 0),
        ("deadline_ms", HUGE),
        ("unknown", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InvalidInputError) as caught:
        request_from_inputs({"text": "hi", name: value})
    assert f"'{name}'" in str(caught.value)
    assert "allowed is" in str(caught.value)
    assert caught.value.name == name


def test_min_new_tokens_must_not_exceed_max_new_tokens():
    with pytest.raises(InvalidInputError, match="'min_new_tokens' is 11; allowed is an integer from 0 to 10"):
        request_from_inputs({"text": "hi", "min_new_tokens": 11, "max_new_tokens": 10})


def test_refined_text_alone_needs_refining():
    assert request_from_inputs({"text": "hi", "refine_only": True}).refine_only
    with pytest.raises(InvalidInputError, match="'refine_only' is True; allowed is false together with 'skip_refine'"):
        request_from_inputs({"text": "hi", "refine_only": True, "skip_refine": True})


def test_text_is_required():
    with pytest.raises(InvalidInputError, match="'text'"):
        request_from_inputs({"seed": 1})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("你好 😀", "'你好 😀'"),
        ("\ud800\x07\u202e", r"'\ud800\x07\u202e'"),
        ("默" * 61, f"'{'默' * 60}'... (61 characters)"),
        (["默"] * 20, f"{repr(['默'] * 20)[:60]}... (100 characters)"),
    ],
)
def test_a_message_shows_the_characters_of_a_value_and_counts_them(value, text):
    assert shown(value) == text


GENERATION = GenerationRequest(
    prompts=((1, 2, 3), (4,)),
    texts=("你好", 'say "hi"'),
    pauses=(0, 6_400, 720_000),
    fewest_tokens=(8, 0),
    most_tokens=(2048, 1),
    redraw_long=True,
    word_times=True,
    refine=True,
    refine_only=False,
    prompt="[speed_5]",
    sample_text="",
    sample_codes=((1, 2, 3, 4),),
    has_speaker=True,
    seed=2**63 - 1,
    deadline_ns=None,
    priority="batch",
    sampling=SamplingOptions(temperature=1e-5),
)


TURNS = replace(
    GENERATION,
    manners=(
        Manner("[speed_5]", "", (), True, SamplingOptions()),
        Manner("", "so", ((1, 2, 3, 4),), False, SamplingOptions(), 1, "Zoë"),
    ),
    turn_manners=(1, 0),
    turns=(0, 1),
)


@pytest.mark.parametrize("generation", [GENERATION, TURNS])
def test_a_generation_request_survives_json(generation):
    assert GenerationRequest.from_json(generation.to_json()) == generation


@pytest.mark.parametrize(
    "change",
    [
        {"turns": []},
        {"turns": [0]},
        {"turns": [0, 2]},
        {"turns": [0, -1]},
        {"turns": [0, 0.5]},
        {"turn_manners": [0, 2]},
        {"turn_manners": []},
        {"manners": []},
        {"manners": [{}]},
        {"manners": None},
    ],
)
def test_turns_that_do_not_fit_their_texts_are_refused(change):
    with pytest.raises(InvalidInputError, match="input 'generation' is"):
        GenerationRequest.from_json(json.dumps({**json.loads(TURNS.to_json()), **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"voice": 16},
        {"voice": -1},
        {"name": 3},
        {"name": "a" * 65},
        {"prompt": 3},
        {"has_speaker": 1},
        {"sampling": {}, "x": 1},
    ],
)
def test_a_manner_that_is_none_is_refused(change):
    values = json.loads(TURNS.to_json())
    values["manners"][0] |= change
    with pytest.raises(InvalidInputError):
        GenerationRequest.from_json(json.dumps(values))


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": []},
        {"prompts": [[1]]},
        {"prompts": [[1], []]},
        {"prompts": [[1], [2.5]]},
        {"prompts": [[1], [True]]},
        {"prompts": None},
        {"texts": 3},
        {"refine": 1},
        {"refine_only": None},
        {"pauses": [1, 1]},
        {"pauses": [0, 1, -1]},
        {"pauses": [0, 1, 720_001]},
        {"pauses": [0, 1, 0.5]},
        {"fewest_tokens": [1]},
        {"fewest_tokens": [1, -1]},
        {"fewest_tokens": [1, 2049]},
        {"fewest_tokens": [1, 0.5]},
        {"most_tokens": [1]},
        {"most_tokens": [0, 1]},
        {"most_tokens": [1, 2049]},
        {"most_tokens": [1, 0.5]},
        {"redraw_long": 1},
        {"word_times": 1},
        {"has_speaker": None},
        {"prompt": 3},
        {"seed": -1},
        {"deadline_ns": "soon"},
        {"priority": "high"},
        {"priority": None},
        {"sample_codes": [["a"]]},
        {"prompts": [[1]] * 2_001, "texts": ["a"] * 2_001},
        {"texts": ["\ud800", "b"]},
        {"prompt": "\ud800"},
        {"sampling": {"temperature": -1}},
        {"sampling": {"temperature": 10**400}},
        {"sampling": {"unknown": 1}},
        {"extra": 1},
    ],
)
def test_a_generation_that_text_frontend_never_writes_is_refused(change):
    with pytest.raises(InvalidInputError):
        GenerationRequest.from_json(json.dumps(json.loads(GENERATION.to_json()) | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"seed": 1}', "[" * 100_000])
def test_what_is_no_generation_at_all_is_refused(text):
    with pytest.raises(InvalidInputError, match="generation"):
        GenerationRequest.from_json(text)
