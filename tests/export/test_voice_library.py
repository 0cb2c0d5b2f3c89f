"""The library's files as parameters of text_frontend, as Triton's protobuf reads them."""

from __future__ import annotations

import numpy as np
import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.voice.speaker import encode_speaker
from chattts_serving.voice.voices import Voice, voice_path
from export.__main__ import DEMO
from export.checkpoint import Checkpoint
from export.voice_library import SOURCE_VOICES, VOICES_FOLDER, voices_for, why_left_out

SEVEN = Voice("seven", "Sampled by seed 7.", seed=7)
WRITTEN = Voice("written", "From a string.", speaker=encode_speaker(np.ones(64, np.float16)))


def test_every_voice_of_the_demo_checkpoint_fits_it():
    fitting, others = voices_for(DEMO / VOICES_FOLDER, Checkpoint.load(DEMO).sizes.gpt.hidden)
    assert len(fitting) == 5
    assert not others


@pytest.mark.parametrize("hidden_size", [64, 768])
def test_the_library_of_the_checkout_fits_every_checkpoint(hidden_size):
    fitting, others = voices_for(SOURCE_VOICES, hidden_size)
    assert "default" in [voice.name for voice in fitting]
    assert not others


@pytest.fixture
def folder(tmp_path):
    """A library of a voice for every checkpoint and one for hidden size 64."""
    voice_path(tmp_path, "default").write_text('{"description": "d", "seed": 0}')
    voice_path(tmp_path, "written").write_text(WRITTEN.to_json(), "utf-8")
    return tmp_path


def test_a_voice_that_fits_the_checkpoint_is_taken(folder):
    fitting, others = voices_for(folder, 64)
    assert ([voice.name for voice in fitting], others) == (["default", "written"], ())


def test_a_voice_of_another_hidden_size_is_left_out(folder):
    fitting, others = voices_for(folder, 768)
    assert [voice.name for voice in fitting] == ["default"]
    assert why_left_out(*others, 768) == "voice 'written' has 64 values; this checkpoint's voices have 768"


def test_the_default_voice_must_fit(folder):
    voice_path(folder, "written").rename(voice_path(folder, "default"))
    with pytest.raises(ConfigError, match="voice 'default' has 64 values"):
        voices_for(folder, 768)


def test_a_mixture_fits_where_its_voices_do(folder):
    mixture = Voice("mixture", "m", mixture="default:2+written")
    again = Voice("again", "a", mixture="mixture+default")
    for voice in (mixture, again):
        voice_path(folder, voice.name).write_text(voice.to_json(), "utf-8")
    fitting, others = voices_for(folder, 64)
    assert [voice.name for voice in fitting] == ["default", "mixture", "written"]
    assert others == (again,)
    assert "voice 'again' is a mixture (mixture+default) of one that was left out" in why_left_out(again, 64)
    assert [voice.name for voice in voices_for(folder, 768)[0]] == ["default"]


def test_a_mixture_of_nobody_is_refused(folder):
    voice_path(folder, "mixture").write_text(Voice("mixture", "m", mixture="default+nobody").to_json(), "utf-8")
    with pytest.raises(ConfigError, match="voice 'mixture' is a mixture of 'nobody', which is none"):
        voices_for(folder, 64)
