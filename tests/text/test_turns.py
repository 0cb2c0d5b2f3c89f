"""Turns of several voices: who says what, in which manner, and what is refused by the number of its turn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from chattts_serving.errors import InvalidInputError
from chattts_serving.request import GenerationRequest, SynthesisRequest, request_from_inputs
from chattts_serving.text.frontend import Prepared, TextFrontend
from chattts_serving.text.script import PAUSES
from chattts_serving.text.sentences import End
from chattts_serving.voice.voices import Voice
from tests.frontend_assets import make_frontend_assets
from tests.voices import encode_sample

SAMPLE = encode_sample(np.arange(40).reshape(4, 10))
BETWEEN = PAUSES[End.PARAGRAPH]


@pytest.fixture(scope="module")
def frontend(tmp_path_factory) -> TextFrontend:
    voices = [Voice(name, name, seed=seed) for seed, name in enumerate(("anna", "bert", "carl"))]
    return TextFrontend(make_frontend_assets(tmp_path_factory.mktemp("assets")), voices)


def prepare(frontend: TextFrontend, *turns: Any, **values: Any) -> Prepared:
    return frontend.prepare(SynthesisRequest(turns=json.dumps(turns), **values))


def turn(text: str, speaker: str = "anna", **values: Any) -> dict[str, Any]:
    return {"text": text, "speaker": speaker, **values}


def test_every_turn_has_its_own_voice(frontend):
    prepared = prepare(frontend, turn("Who is there, please?"), turn("It is only me.", "bert"), turn("Come in, then."))
    generation = prepared.generation
    assert generation.texts == ("Who is there, please", "It is only me.", "Come in, then.")
    assert generation.turns == (0, 1, 2)
    voices = prepared.speaker_embedding.reshape(generation.num_voices, -1)
    assert [generation.manner_of(place).voice for place in range(3)] == [0, 1, 0]
    for voice, name in zip(voices, ("anna", "bert"), strict=True):
        alone = frontend.prepare(SynthesisRequest(text="Hello", speaker=name))
        assert np.array_equal(voice, alone.speaker_embedding)
        assert alone.used_speaker in prepared.used_speaker.split("\n")
    assert GenerationRequest.from_json(generation.to_json()) == generation


def test_a_turn_of_several_sentences_stays_one_turn(frontend):
    generation = prepare(
        frontend, turn("The first of two. The second of two."), turn("The third one.", "bert")
    ).generation
    assert generation.turns == (0, 0, 1)
    assert generation.pauses == (0, PAUSES[End.SENTENCE], BETWEEN, 0)


def test_a_turn_may_have_a_pause_behind_it(frontend):
    generation = prepare(
        frontend,
        turn("[pause 1s] The first one.", pause=0.25),
        turn("The second one. [pause 1s]", "bert"),
        turn("The third one.", pause=0),
        turn("The last one.", pause=2),
    ).generation
    assert generation.pauses == (24_000, 6_000, 24_000, 0, 48_000)


def test_a_turn_goes_before_the_request_in_what_it_says_of_itself(frontend):
    generation = prepare(
        frontend,
        turn("The first one.", temperature=0.9, prompt="[speed_7]"),
        turn("12", "bert", language="zh"),
        turn("12", "bert"),
        temperature=0.5,
        top_k=7,
        skip_refine=True,
        language="en",
    ).generation
    assert [manner.sampling.temperature for manner in generation.manners] == [0.9, 0.5]
    assert [manner.sampling.top_k for manner in generation.manners] == [7, 7]
    assert [manner.prompt for manner in generation.manners] == ["[speed_7]", "[speed_5]"]
    assert generation.texts == ("The first one.", "十二", "twelve")
    assert generation.prompts[0] != prepare(frontend, turn("The first one."), skip_refine=True).generation.prompts[0]


def test_a_turn_without_a_voice_has_that_of_the_request(frontend):
    generation = prepare(frontend, {"text": "Hello."}, turn("Hello."), {"text": "Bye."}, speaker="bert").generation
    assert [generation.manner_of(place).name for place in range(3)] == ["bert", "anna", "bert"]
    sampled = prepare(frontend, {"text": "Hello."}, {"text": "Bye."}, seed=5)
    alone = frontend.prepare(SynthesisRequest(text="Hello", seed=5))
    assert np.array_equal(sampled.speaker_embedding, alone.speaker_embedding)


def test_a_turn_may_be_of_a_cloned_voice_or_a_mixture(frontend):
    prepared = prepare(
        frontend,
        {"text": "This is a clone.", "speaker_sample": SAMPLE, "sample_text": "as I said", "name": "Zoë"},
        turn("And this a mixture.", "anna:2+bert"),
        speaker="carl",
        skip_refine=True,
    )
    clone, mixture = prepared.generation.manners
    assert (clone.has_speaker, clone.sample_text, len(clone.sample_codes), clone.name) == (
        False,
        "as I said",
        10,
        "Zoë",
    )
    assert (mixture.has_speaker, mixture.sample_codes, mixture.name) == (True, (), "anna:2+bert")
    assert prepared.used_speaker.startswith("\n")


def test_a_lexicon_and_a_warning_hold_for_turns(frontend):
    prepared = prepare(
        frontend, turn("We run nginx."), turn("The word Привет is Russian.", "bert"), lexicon='{"nginx": "engine x"}'
    )
    assert prepared.generation.texts[0] == "We run engine x."
    assert prepared.warning == "for turn 2: not spoken, as the model speaks Chinese and English: 6 letters (Cyrillic)"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": ""}, "{'text': ''}; allowed is for turn 2: 1 to 20,000 characters, got 0"),
        ({"text": "..."}, "{'text': '...'}; allowed is for turn 2: text with at least one word"),
        ({"text": 3}, "{'text': 3}; allowed is for turn 2: a UTF-8 string"),
        ({"text": "a", "temperature": -1}, "{'temperature': -1}; allowed is for turn 2: a number from 1e-07 to 1e+06"),
        (
            {"text": "a", "speaker": "nobody"},
            "{'speaker': 'nobody'}; allowed is for turn 2: a voice of this server (anna",
        ),
        ({"text": "a [laugh_9]"}, "{'text': '[laugh_9]'}; allowed is for turn 2: text with control tags"),
        ({"text": "a [pause 99s]"}, "{'text': '[pause 99s]'}; allowed is for turn 2: [pause 500ms]"),
        ({"text": "a", "prompt": "slowly"}, "{'prompt': 'slowly'}; allowed is for turn 2: nothing but control tags"),
        ({"text": "a", "pause": 31}, "{'pause': 31}; allowed is for turn 2: a pause of 0 to 30 seconds"),
        ({"text": "a", "pause": True}, "{'pause': True}; allowed is for turn 2"),
        ({"text": "a", "name": "b\n"}, "{'name': 'b\\n'}; allowed is for turn 2: a name of at most 64"),
        ({"text": "a", "seed": 3}, "allowed is for turn 2: an object with 'text' and any of language, name"),
        ({"speaker": "anna"}, "allowed is for turn 2: an object with 'text'"),
        ("a", "'a'; allowed is for turn 2: an object with 'text'"),
        ({"text": "a", "sample_text": "b", "speaker": "anna"}, "{'sample_text': 'b'}; allowed is for turn 2"),
        ({"text": "a", "speaker_sample": "一"}, "{'speaker_sample': '一'}; allowed is for turn 2"),
    ],
)
def test_what_is_wrong_in_a_turn_is_said_with_its_number(frontend, wrong, said):
    with pytest.raises(InvalidInputError) as error:
        prepare(frontend, turn("Hello there."), wrong)
    assert error.value.name == "turns"
    assert said in str(error.value)


MANY = [turn("Hi", f"anna:1+bert:{number}") for number in range(1, 18)]
WRONG = {
    "no list": ("{}", "a JSON list of 1 to 200 objects"),
    "no JSON": ("hello", "a JSON list of objects"),
    "nested": ("[" * 9_999, "a JSON list of objects"),
    "none": ("[]", "'0 turns'; allowed is a JSON list of 1 to 200 objects"),
    "many": (json.dumps([turn("a")] * 201), "'201 turns'; allowed is a JSON list of 1 to 200 objects"),
    "long": (json.dumps([turn("a" * 10_001)] * 2), "'texts of 20,002 characters'; allowed is texts of at most 20,000"),
    "voices": (json.dumps(MANY), "for turn 17: one of at most 16 voices in one request"),
    "sentences": (json.dumps([turn("一二三四。" * 200)] * 20), "sentences'; allowed is at most 2000 of them"),
    "pauses": (
        json.dumps([turn("Hello.", pause=30)] * 21),
        "'pauses of 630 s in one request'; allowed is at most 600 s",
    ),
}


@pytest.mark.parametrize(("turns", "said"), WRONG.values(), ids=WRONG.keys())
def test_turns_that_are_none_or_too_many_are_refused(frontend, turns, said):
    with pytest.raises(InvalidInputError) as error:
        frontend.prepare(SynthesisRequest(turns=turns))
    assert str(error.value).startswith("input 'turns' is ")
    assert said in str(error.value)


def test_there_is_a_text_or_there_are_turns(frontend):
    with pytest.raises(InvalidInputError, match=r"input 'turns' is .*allowed is none beside 'text'"):
        prepare(frontend, turn("Hello."), text="Hello.")
    with pytest.raises(InvalidInputError, match="input 'text' is None"):
        request_from_inputs({"turns": ""})
