"""Files that the page gives and takes."""

from __future__ import annotations

import io
import wave

import numpy as np
import pytest

from tests.client.fake_synthesis import DEFAULT_SEED, SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.browsing import (
    TEXT,
    TONE_HZ,
    decoded,
    downloaded,
    is_speech,
    pitch,
    seconds,
    sent,
    speak,
)


def test_the_wav_file_has_every_sample(page):
    speak(page)
    name, data = downloaded(page)
    assert name == f"chattts-{DEFAULT_SEED}.wav"
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:4] == (1, 2, SAMPLE_RATE, len(TEXT) * SAMPLES_PER_CHARACTER)
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert pitch(audio, SAMPLE_RATE) == pytest.approx(TONE_HZ, abs=2)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
def test_other_formats_are_asked_for_with_the_same_seed(page, name):
    with page.expect_request(is_speech) as first:
        speak(page)
    page.fill("#input", "Something else, which was not spoken.")
    page.select_option("#format", name)
    with page.expect_request(is_speech) as again:
        file, data = downloaded(page)
    asked = {"seed": DEFAULT_SEED, "response_format": name, "stream": False}
    assert sent(again.value) == sent(first.value) | asked
    assert file == f"chattts-{DEFAULT_SEED}.{name}"
    audio, rate = decoded(data)
    assert len(audio) / rate == pytest.approx(seconds(TEXT), abs=0.06)
    assert pitch(audio, rate) == pytest.approx(TONE_HZ, abs=3)
