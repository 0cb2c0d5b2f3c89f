"""Somebody listens: what the server makes of the demo checkpoint is understood, in every way of asking for it.

`pytest -rP` shows the figures; `python -m training listen --checkpoint demo --of "held out"` has flite's own beside
them.
"""

from __future__ import annotations

import numpy as np
import pytest
from chattts_client import TTSClient

from bench.repository import with_settings
from chattts_serving.launcher.running import running_server
from export.checkpoint import Checkpoint
from export.onnx_models import MODEL_FILE, export_onnx_models
from tests.oracle import NEAR_ZERO, Oracle
from training.listen import word_error_rate
from training.sentences import held_out
from training.served import heard, rates, spoken, told_apart
from training.utterances import VOICES

SENTENCES = range(0, len(held_out()), 2)  # listening to one takes half a second
EVERYTHING = [(voice, number) for voice in VOICES for number in SENTENCES]
BEST, EACH = 0.25, 0.35  # of the words may be heard wrong
INT8_POINTS = 0.04
LOW_LATENCY_POINTS = 0.02


@pytest.fixture(scope="module")
def together(demo):
    """The sentences in all voices, 16 at once."""
    return spoken(demo.server, EVERYTHING, "16 at once")


@pytest.fixture(scope="module")
def understood(together):
    return heard(together)


def test_every_voice_is_understood(understood):
    found = rates(understood, VOICES)
    print(f"MEASURED: words heard wrong, fp32: {found}")
    assert min(found.values()) <= BEST
    assert max(found.values()) <= EACH


def test_noise_is_not_understood(together):
    """The listener hears no words because it expects them."""
    rng = np.random.default_rng(0)
    some = {said: rng.permutation(audio) for said, audio in list(together.items())[:5]}
    assert word_error_rate(heard(some).values()) > 0.9


@pytest.mark.parametrize("way", ["one at a time", "streamed"])
def test_speech_is_the_same_in_every_way(demo, together, way):
    for said, audio in spoken(demo.server, EVERYTHING[::10], way).items():
        np.testing.assert_allclose(audio, together[said], atol=1e-4, rtol=0)


def test_int8_throughout_is_understood_as_well(demo, understood, tmp_path):
    """Language model, decoder and vocoder."""
    repository = with_settings(demo.repository, tmp_path / "repository", precision="int8")
    for linked in repository.glob(f"*/{MODEL_FILE}"):
        linked.unlink()
    export_onnx_models(Checkpoint.load(demo.checkpoint), repository, "int8")
    with running_server(repository, log_path=tmp_path / "server.log") as server:
        found = heard(spoken(server, EVERYTHING, "16 at once"))
    print(f"MEASURED: words heard wrong, int8: {rates(found, VOICES)}")
    assert word_error_rate(found.values()) <= word_error_rate(understood.values()) + INT8_POINTS


def test_low_latency_is_understood_as_well(demo, understood):
    some = EVERYTHING[::2]
    found = word_error_rate(heard(spoken(demo.server, some, "low latency")).values())
    exact = word_error_rate(understood[said] for said in some)
    print(f"MEASURED: words heard wrong, low latency: {found:.3f}, exact: {exact:.3f}")
    assert found <= exact + LOW_LATENCY_POINTS


def test_voices_are_told_apart(together):
    share = told_apart(together)
    print(f"MEASURED: nearest to their own voice: {share:.3f}")
    assert share >= 0.9


def test_one_voice_under_four_names_is_not_told_apart(together):
    """The measure hears voices, not sentences."""
    one_voice = [audio for (voice, _), audio in together.items() if voice == "slt"]
    mixed = {(VOICES[number % 4], number): audio for number, audio in enumerate(one_voice)}
    assert told_apart(mixed) < 0.6


@pytest.mark.parametrize("number", [0, 20])
@pytest.mark.parametrize("voice", VOICES)
def test_chattts_itself_says_the_same(demo, chattts, voice, number):
    options = {"temperature": NEAR_ZERO, "max_new_tokens": 300}
    with TTSClient(demo.server.grpc_url) as client:
        ours = client.synthesize(held_out()[number], speaker=voice, skip_refine=True, **options)
    limits = {"min_new_tokens": 0, "max_new_tokens": 300, "refine_max_new_tokens": 1}
    expected = chattts.speak(held_out()[number], ours.speaker, refine=False, **limits)
    assert ours.num_tokens == len(expected.codes)
    np.testing.assert_allclose(ours.audio, expected.audio, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def chattts(demo):
    return Oracle(demo.checkpoint)


def test_refining_keeps_the_words(demo):
    text = "Good morning. My name is John, and the train to London leaves at half past seven."
    with TTSClient(demo.server.grpc_url) as client:
        refined = client.synthesize(text, speaker="default", seed=1, refine_only=True).refined_text
    kept = refined.replace("[uv_break]", "").replace("[lbreak]", "").split()
    assert kept == text.lower().replace(",", "").split()
