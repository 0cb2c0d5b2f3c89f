"""The library's files as parameters of text_frontend, as Triton's protobuf reads them."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from chattts_serving.errors import ConfigError
from chattts_serving.voice.speaker import encode_speaker
from chattts_serving.voice.voices import Voice, voice_path, voices_from_triton
from export.__main__ import DEMO
from export.checkpoint import Checkpoint
from export.repository import SOURCE_REPOSITORY
from export.voice_library import SOURCE_VOICES, VOICES_CONFIG, VOICES_FOLDER, voices_for, why_left_out, with_voices

CONFIG = (SOURCE_REPOSITORY / VOICES_CONFIG).read_text(encoding="utf-8")
SEVEN = Voice("seven", "Sampled by seed 7.", seed=7)
WRITTEN = Voice("written", "From a string.", speaker=encode_speaker(np.ones(64, np.float16)))

descriptions = st.text(min_size=1, max_size=50).filter(str.isprintable)
voices = st.lists(
    st.builds(Voice, st.from_regex("[a-z0-9_-]{1,64}", fullmatch=True), descriptions, seed=st.integers(0, 2**63 - 1)),
    max_size=5,
    unique_by=lambda voice: voice.name,
)


def as_triton_reads(config: str) -> tuple[Voice, ...]:
    """The voices that text_frontend is handed where this is its config.pbtxt."""
    parameters = text_format.Parse(config, model_config_pb2.ModelConfig()).parameters
    values = {key: {"string_value": parameters[key].string_value} for key in parameters}
    return voices_from_triton(json.dumps({"parameters": values}))


@settings(max_examples=200, deadline=None)
@given(voices=voices)
def test_voices_are_read_back_as_they_were_written(voices):
    assert as_triton_reads(with_voices(CONFIG, voices)) == tuple(sorted(voices, key=lambda voice: voice.name))


@pytest.mark.parametrize(
    "text", ["'", '"', "\\", "\\'", '\\"', "\\n", "# </voices>", "}", "% {0} $x", "声音 “好”", "🙂"]
)
def test_marks_that_mean_something_elsewhere_are_kept(text):
    voice = Voice("x", text, seed=1)
    assert as_triton_reads(with_voices(CONFIG, [voice])) == (voice,)


def test_a_speaker_string_is_kept():
    assert as_triton_reads(with_voices(CONFIG, [WRITTEN])) == (WRITTEN,)


def test_writing_voices_again_replaces_those_before():
    assert with_voices(with_voices(CONFIG, [WRITTEN]), [SEVEN]) == with_voices(CONFIG, [SEVEN])


def test_the_rest_of_the_configuration_stays():
    empty = text_format.Parse(with_voices(CONFIG, []), model_config_pb2.ModelConfig())
    filled = text_format.Parse(with_voices(CONFIG, [SEVEN, WRITTEN]), model_config_pb2.ModelConfig())
    filled.parameters.clear()
    assert filled == empty


@pytest.mark.parametrize("config", ["", "# <voices>\n", "# </voices>\n# <voices>\n", CONFIG + CONFIG])
def test_a_configuration_without_the_two_lines_is_refused(config):
    with pytest.raises(ConfigError, match="must have the lines"):
        with_voices(config, [SEVEN])


def test_the_committed_configuration_lists_the_voices_of_the_demo_checkpoint():
    """So `make demo` leaves it as it is; an export of another checkpoint changes the file, not what is committed."""
    path = f"HEAD:{SOURCE_REPOSITORY.name}/{VOICES_CONFIG}"
    shown = subprocess.run(["git", "show", path], check=False, cwd=SOURCE_REPOSITORY.parent, capture_output=True)
    if shown.returncode:
        pytest.skip(f"no git checkout: {shown.stderr.decode()}")
    committed = shown.stdout.decode()
    fitting, others = voices_for(DEMO / VOICES_FOLDER, Checkpoint.load(DEMO).sizes.gpt.hidden)
    assert with_voices(committed, fitting) == committed
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
