"""Mixtures of voices: what lies between two vectors, and which mixtures are none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.voice.mixture import MAX_PARTS, is_mixture, mixed, parse_mixture
from chattts_serving.voice.speaker import SpeakerStatistics, encode_speaker
from chattts_serving.voice.voices import Voice, VoiceLibrary

HIDDEN = 64
RNG = np.random.default_rng(0)
STATISTICS = SpeakerStatistics(np.ones(HIDDEN, np.float16), np.zeros(HIDDEN, np.float16))
SLT, RMS, AWB = (RNG.standard_normal(HIDDEN).astype(np.float16) * scale for scale in (1, 3, 1))
VOICES = [
    Voice("slt", "s", speaker=encode_speaker(SLT)),
    Voice("rms", "r", speaker=encode_speaker(RMS)),
    Voice("awb", "a", speaker=encode_speaker(AWB)),
]
LIBRARY = VoiceLibrary([*VOICES, Voice("both", "b", mixture="slt:2 + rms")], STATISTICS)


def angle(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(np.arccos(np.clip(one @ other / np.linalg.norm(one) / np.linalg.norm(other), -1, 1)))


@pytest.mark.parametrize(("weights", "share"), [((1, 1), 0.5), ((2, 1), 1 / 3), ((1, 3), 0.75), ((1, 1000), 0.999)])
def test_a_mixture_of_two_lies_on_the_arc_between_them(weights, share):
    mixture = mixed([SLT, RMS], list(weights))
    whole = angle(SLT, RMS)
    assert angle(SLT, mixture) == pytest.approx(share * whole, abs=2e-3)
    assert angle(mixture, RMS) == pytest.approx((1 - share) * whole, abs=2e-3)
    lengths = [np.linalg.norm(vector.astype(np.float64)) for vector in (SLT, mixture, RMS)]
    assert lengths[1] == pytest.approx((1 - share) * lengths[0] + share * lengths[2], rel=1e-3)


def test_the_last_of_three_joins_what_the_others_are_together():
    two = mixed([SLT, RMS], [1, 2])
    three = mixed([SLT, RMS, AWB], [1, 2, 3])
    assert angle(two, three) == pytest.approx(0.5 * angle(two, AWB), abs=2e-3)


@given(seed=st.integers(0, 1_000), weight=st.floats(0.01, 100))
def test_a_voice_mixed_with_itself_stays_itself(seed, weight):
    vector = STATISTICS.sample(seed)
    np.testing.assert_allclose(mixed([vector, vector], [1.0, weight]), vector, rtol=2e-3, atol=1e-6)


def test_opposite_voices_and_such_as_are_none_have_nothing_between_them():
    for other in (-SLT, np.zeros_like(SLT), np.full_like(SLT, np.inf)):
        with pytest.raises(ValueError, match=r"opposite|0 or not finite"):
            mixed([SLT, other], [1, 1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("slt:2+rms:1", [("slt", 2), ("rms", 1)]),
        (" slt + rms:0.5 \n", [("slt", 1), ("rms", 0.5)]),
        ("slt:1", [("slt", 1)]),
        ("+".join(["a"] * MAX_PARTS), [("a", 1)] * MAX_PARTS),
    ],
)
def test_parts_have_weights_and_without_one_count_once(text, parts):
    assert is_mixture(text)
    assert [(part.voice, part.weight) for part in parse_mixture(text)] == parts


@pytest.mark.parametrize(
    "text", ["slt+", "+slt", "slt:", "slt:0+rms", "slt:-1", "slt:x", "slt:1:2", "a:1001", ":2", "+"]
)
def test_what_is_no_mixture_is_refused_by_its_part(text):
    with pytest.raises(InvalidInputError, match=r"input 'speaker' is .*no VOICE:WEIGHT with a weight above 0 to 1000"):
        LIBRARY.find(text)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("+".join(["slt"] * (MAX_PARTS + 1)), "it mixes 9 voices; 8 are the most"),
        ("slt+nobody", "a mixture such as NAME:2"),
        (f"slt+{encode_speaker(-SLT)}", "opposite"),
        (f"slt+{encode_speaker(np.ones(4, np.float16))}", "it has 4 values"),
    ],
)
def test_a_mixture_of_what_cannot_be_mixed_is_refused(text, named):
    with pytest.raises(InvalidInputError, match=named):
        LIBRARY.find(text)


def test_names_strings_and_mixtures_of_the_library_are_mixed():
    by_name = LIBRARY.find("slt:2+rms")
    assert np.array_equal(LIBRARY.find(f"{encode_speaker(SLT)}:2+rms").vector, by_name.vector)
    assert np.array_equal(LIBRARY.find("both").vector, by_name.vector)
    assert np.array_equal(LIBRARY.find("slt:5").vector, SLT)
    assert np.isclose(np.linalg.norm(by_name.embedding), 1, atol=1e-2)
    assert angle(LIBRARY.find("both+rms").vector, RMS) < angle(by_name.vector, RMS)
    assert LIBRARY.find(by_name.text).embedding.tobytes() == by_name.embedding.tobytes()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mixture": "slt:0+rms"}, "mixture of voice 'x' is 'slt:0"),
        ({"mixture": "slt+rms", "seed": 3}, "must have one of 'speaker', 'seed' and 'mixture'"),
        ({}, "must have one of 'speaker', 'seed' and 'mixture'"),
        ({"mixture": 3}, "mixture of voice 'x' is 3"),
    ],
)
def test_a_wrong_mixture_of_the_library_is_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        Voice("x", "d", **values)


def test_a_mixture_of_a_mixture_does_not_start_a_server():
    voices = [*VOICES, Voice("both", "b", mixture="slt+rms"), Voice("all", "a", mixture="both+awb")]
    with pytest.raises(ConfigError, match="voice 'all' does not fit this checkpoint"):
        VoiceLibrary(voices[::-1], STATISTICS)


def test_a_mixture_survives_json():
    voice = Voice("both", "b", mixture="slt:2+rms")
    assert Voice.from_json("both", voice.to_json()) == voice
