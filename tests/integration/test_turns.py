"""Several voices in one request to the demo checkpoint: who speaks is heard, and pauses between them are exact."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from chattts_client import TTSClient

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.voice.speaker import decode_speaker, normalize
from tests.oracle import NEAR_ZERO
from tests.streams import joined, read_stream, speak
from training.sentences import held_out
from training.served import timbre, told_apart
from training.utterances import VOICES

PAUSE = 7_200  # samples
TURNS: list[dict[str, Any]] = [
    {"speaker": voice, "name": voice.upper(), "text": held_out()[number], "pause": PAUSE / SAMPLE_RATE}
    for number, voice in itertools.product(range(5), VOICES)
]
OPTIONS: dict[str, Any] = {"seed": 3, "skip_refine": True, "max_new_tokens": 400}


@pytest.fixture(scope="module")
def whole(demo):
    return speak(demo.server.grpc_url, turns=json.dumps(TURNS), **OPTIONS)


def places(answer):
    return [(round(one["start"] * SAMPLE_RATE), round(one["end"] * SAMPLE_RATE)) for one in answer["sentences"]]


def test_the_voices_of_turns_are_told_apart(whole):
    audio = {
        (VOICES[one["turn"] % 4], number): whole["audio"][start:end].copy()
        for number, (one, (start, end)) in enumerate(zip(whole["sentences"], places(whole), strict=True))
    }
    share = told_apart(audio)
    print(f"MEASURED: sentences of turns that are nearest to their own voice: {share:.3f}")
    assert share >= 0.9


def test_sentences_say_who_speaks(whole):
    assert [(one["turn"], one["name"]) for one in whole["sentences"]] == [
        (number, turn["name"]) for number, turn in enumerate(TURNS)
    ]
    assert len(whole["used_speaker"].split("\n")) == len(VOICES)


def test_pauses_between_turns_are_exact_to_a_sample(whole):
    for (_, end), (start, _) in itertools.pairwise(places(whole)):
        assert start - end == PAUSE
        assert not whole["audio"][end:start].any()
    assert len(whole["audio"]) == places(whole)[-1][1] + PAUSE


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_stream_of_turns_equals_the_whole(demo, protocol):
    some = {**OPTIONS, "temperature": NEAR_ZERO, "turns": json.dumps(TURNS[:4])}
    answer = speak(demo.server.grpc_url, **some)
    found = joined(read_stream(demo.server, protocol, **some))
    np.testing.assert_allclose(found.pop("audio"), answer.pop("audio"), atol=1e-4, rtol=0)
    assert found == answer


def test_each_turn_sounds_as_its_voice_does_alone(demo):
    """At near-zero temperature, where the draws of another place decide nothing."""
    options = OPTIONS | {"temperature": NEAR_ZERO}
    with TTSClient(demo.server.grpc_url) as client:
        speech = client.synthesize(turns=TURNS[:4], **options)
        for sentence, turn in zip(speech.sentences, TURNS, strict=False):
            alone = client.synthesize(turn["text"], speaker=turn["speaker"], **options)
            heard = speech.audio[round(sentence.start * SAMPLE_RATE) : round(sentence.end * SAMPLE_RATE)]
            np.testing.assert_allclose(heard, alone.audio, atol=1e-4, rtol=0)


MIXTURES = ("slt", "slt:2+rms:1", "slt:1+rms:1", "slt:1+rms:2", "rms")


def test_mixtures_lie_between_their_parents_in_the_order_of_their_weights(demo):
    with TTSClient(demo.server.grpc_url) as client:
        spoken = [client.synthesize(held_out()[0], speaker=voice, **OPTIONS) for voice in MIXTURES]
    first, *_, last = vectors = [normalize(decode_speaker(speech.speaker)) for speech in spoken]
    to_first, to_last = ([float(vector @ parent) for vector in vectors] for parent in (first, last))
    assert to_first == sorted(to_first, reverse=True)
    assert to_last == sorted(to_last)
    assert len(set(to_first)) == len(MIXTURES)
    assert len({speech.audio.tobytes() for speech in spoken}) == len(MIXTURES)


def test_an_even_mixture_sounds_nearer_to_either_parent_than_they_to_each_other(demo):
    turns = [
        {"speaker": voice, "text": held_out()[number]}
        for voice, number in itertools.product(("slt", "slt+rms", "rms"), range(8))
    ]
    answer = speak(demo.server.grpc_url, turns=json.dumps(turns), **OPTIONS)
    timbres = np.array([timbre(answer["audio"][start:end].copy()) for start, end in places(answer)])
    slt, mixture, rms = (timbres[8 * number : 8 * number + 8].mean(axis=0) for number in range(3))
    spread = timbres.std(axis=0)
    distances = [
        float(np.linalg.norm((one - other) / spread)) for one, other in ((slt, mixture), (mixture, rms), (slt, rms))
    ]
    print(f"MEASURED: distances of timbre, slt to mixture, mixture to rms, slt to rms: {distances}")
    assert max(distances[:2]) < distances[2]
