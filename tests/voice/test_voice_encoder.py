"""Reference recordings: which are refused and why, how they are resampled, and the string that is made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.errors import InvalidInputError
from chattts_serving.voice.speaker import decode_sample
from chattts_serving.voice.voice_encoder import MAX_PEAK, MIN_RMS, check_recording, resample, speaker_sample

RATES = (16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)


def tone(frequency: float, sample_rate: int, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(num_samples: int, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(num_samples)).astype(np.float32)


# What is refused


@pytest.mark.parametrize("sample_rate", [-1, 0, 8_000, 11_025, 15_999, 192_001, 2**31 - 1])
def test_a_sample_rate_outside_its_range_is_refused(sample_rate):
    with pytest.raises(
        InvalidInputError, match=rf"input 'sample_rate' is {sample_rate}; allowed is 16000 to 192000 Hz"
    ):
        check_recording(noise(24_000), sample_rate)


def test_telephone_audio_is_refused_with_the_reason():
    with pytest.raises(InvalidInputError, match="less holds too little of the 12 kHz that the encoder hears"):
        check_recording(noise(24_000), 8_000)


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("seconds", [1, 30])
def test_the_shortest_and_the_longest_recording_are_taken(sample_rate, seconds):
    check_recording(noise(seconds * sample_rate), sample_rate)


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize(("seconds", "more"), [(0, 0), (0, 1), (1, -1), (30, 1), (61, 0)])
def test_a_recording_too_short_or_too_long_is_refused(sample_rate, seconds, more):
    with pytest.raises(
        InvalidInputError, match=r"input 'audio' is '\d+ samples, .* s at \d+ Hz'; allowed is 1 to 30 s"
    ):
        check_recording(noise(seconds * sample_rate + more), sample_rate)


def test_an_hour_is_refused_before_its_samples_are_looked_at():
    hour = np.broadcast_to(np.float32(np.nan), 3_600 * 24_000)  # of no memory
    with pytest.raises(InvalidInputError, match=r"3600\.00 s"):
        check_recording(hour, 24_000)


@pytest.mark.parametrize("shape", [(2, 24_000), (24_000, 2), (1, 24_000), ()])
def test_several_channels_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"input 'audio' is 'of shape .*allowed is one channel"):
        check_recording(np.ones(shape, np.float32), 24_000)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 5_000, 23_999])
def test_a_sample_that_is_not_finite_is_refused_with_its_place(value, place):
    audio = noise(24_000)
    audio[place] = value
    with pytest.raises(InvalidInputError, match=f"input 'audio' is 'not finite from sample {place} on'"):
        check_recording(audio, 24_000)


@pytest.mark.parametrize("peak", [MAX_PEAK * 1.001, 32_767, 1e38])
@pytest.mark.parametrize("sign", [1, -1])
def test_samples_beyond_full_scale_are_refused(peak, sign):
    audio = noise(24_000)
    audio[7] = sign * peak
    with pytest.raises(InvalidInputError, match=r"input 'audio' is 'up to .*divide 16-bit integers by 32768"):
        check_recording(audio, 24_000)


def test_a_little_beyond_full_scale_is_taken():
    check_recording(noise(24_000, level=0.1).clip(-1, 1) + np.float32(0.3), 24_000)
    check_recording(tone(100, 24_000, level=1.2), 24_000)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 1e-6])
def test_constant_audio_is_refused_as_silent(level):
    with pytest.raises(InvalidInputError, match=r"input 'audio' is 'silent: .* RMS about its mean'"):
        check_recording(np.full(24_000, level, np.float32), 24_000)


def test_silence_ends_at_its_threshold():
    check_recording(tone(100, 24_000, level=MIN_RMS * 1.01 * 2**0.5), 24_000)
    with pytest.raises(InvalidInputError, match="silent"):
        check_recording(tone(100, 24_000, level=MIN_RMS * 0.99 * 2**0.5), 24_000)


def test_a_constant_beside_faint_noise_is_silent():
    with pytest.raises(InvalidInputError, match="silent"):
        check_recording(noise(24_000, level=1e-4) + np.float32(0.9), 24_000)


# Resampling


def test_audio_at_24_khz_is_not_touched():
    audio = noise(24_000)
    assert resample(audio, 24_000) is audio


@pytest.mark.parametrize("sample_rate", RATES)
@pytest.mark.parametrize("frequency", [100, 1_000, 7_000])
def test_a_tone_is_the_same_tone_at_24_khz(sample_rate, frequency):
    found = resample(tone(frequency, sample_rate, 2), sample_rate)
    expected = tone(frequency, 24_000, 2)
    assert found.dtype == np.float32
    assert abs(len(found) - len(expected)) <= 1
    middle = slice(1_000, -1_000)  # the ends ring, since the tone starts and stops at once
    np.testing.assert_allclose(found[: len(expected)][middle], expected[: len(found)][middle], rtol=0, atol=1e-3)


@pytest.mark.parametrize("frequency", [13_000, 16_000, 20_000])
@pytest.mark.parametrize("sample_rate", [44_100, 48_000, 96_000])
def test_what_24_khz_cannot_hold_is_taken_out(sample_rate, frequency):
    """Without a filter it would come back as another tone."""
    found = resample(tone(frequency, sample_rate, 2), sample_rate)
    assert np.abs(found[1_000:-1_000]).max() < 1e-3


# The string


def test_the_string_holds_the_codes_of_the_recording_at_24_khz():
    codes = np.random.default_rng(0).integers(0, 625, (47, 4)).astype(np.int32)
    seen = []
    audio = tone(440, 48_000)
    text, num_tokens = speaker_sample(audio, 48_000, lambda samples: seen.append(samples) or codes)
    assert (np.array(decode_sample(text)) == codes).all()
    assert num_tokens == 47
    assert np.array_equal(seen[0], resample(audio, 48_000))


def test_a_bad_recording_does_not_reach_the_encoder():
    with pytest.raises(InvalidInputError):
        speaker_sample(np.zeros(24_000, np.float32), 24_000, lambda _: pytest.fail("it was encoded"))


@settings(max_examples=200, deadline=None)
@given(
    num_samples=st.integers(0, 200_000),
    sample_rate=st.integers(-(2**31), 2**31 - 1) | st.sampled_from(RATES),
    value=st.floats(width=32),
    level=st.sampled_from([0.0, 0.1]),
)
def test_any_recording_is_refused_or_resampled_to_its_duration(num_samples, sample_rate, value, level):
    audio = noise(num_samples, level)
    audio[:1] = value
    try:
        check_recording(audio, sample_rate)
    except InvalidInputError:
        return
    found = resample(audio, sample_rate)
    assert np.isfinite(found).all()
    assert abs(len(found) - num_samples * 24_000 / sample_rate) <= 1
