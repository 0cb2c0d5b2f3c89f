"""The gateway in front of the real models: the same samples, and slots of the engine that leave with their listeners.

`pytest -rP` shows what was measured.
"""

from __future__ import annotations

import shutil

import numpy as np
import openai
import pytest
import requests
import soxr
from chattts_client import TTSClient
from playwright.sync_api import sync_playwright

from chattts_serving.audio import SAMPLE_RATE
from gateway.process import running_gateway
from gateway.voices import clone_id
from tests.gateway.test_page import FLAGS, PATIENCE_MS
from tests.gateway.test_speech import decoded
from tests.metrics import time_to_rest, wait_until
from training.listen import Listener, word_error_rate
from training.sentences import held_out

TEXT = "The library opens at nine."
LONG = "This sentence takes very long to say. " * 20
# Random weights seldom end a sentence by themselves, so this one has an end, and nobody waits for the other one's.
SHORT = {"model": "chattts", "input": TEXT, "response_format": "pcm", "seed": 7, "refine": False, "max_new_tokens": 64}
ENDLESS = {"model": "chattts", "input": LONG, "response_format": "pcm", "seed": 7, "refine": False}
DROPPED_WITHIN_S = 2.0  # far above what it takes, so that a busy machine does not decide
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def live(tiny, tmp_path_factory):
    log = tmp_path_factory.mktemp("live") / "gateway.log"
    with running_gateway(tiny.server.grpc_url, log) as gateway:
        yield gateway


@pytest.mark.parametrize("voice", ["default", "seed-1", "alloy"])
@pytest.mark.parametrize("mode", ["exact", "low_latency"])
def test_the_gateway_gives_the_samples_of_the_models(live, tiny, voice, mode):
    answer = requests.post(live.url + "/v1/audio/speech", json=SHORT | {"voice": voice, "mode": mode}, timeout=120)
    speaker = "default" if voice == "alloy" else voice
    options = {"seed": 7, "skip_refine": True, "max_new_tokens": 64, "speaker": speaker}
    with TTSClient(tiny.server.grpc_url) as client:
        chunks = list(client.stream(TEXT, mode=mode, **options))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    heard = np.frombuffer(answer.content, "<i2") / 32767
    assert len(heard) == len(audio)
    errors = np.abs(heard - np.clip(audio, -1, 1))
    if mode == "exact":
        assert errors.max() < 1e-4
    else:  # where chunks meet depends on when tokens came
        assert np.sqrt((errors**2).mean() / (audio**2).mean()) < 0.01


def test_a_cloned_voice_is_that_of_its_recording(live, tiny):
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(48_000)).astype(np.float32)
    with TTSClient(tiny.server.grpc_url) as client:
        sample = client.clone(audio, 24_000)
        options = {"seed": 7, "skip_refine": True, "max_new_tokens": 64}
        speech = client.synthesize(TEXT, speaker_sample=sample, sample_text="Hello there.", **options)
    body = SHORT | {"voice": {"id": clone_id(sample, "Hello there.")}}
    answer = requests.post(live.url + "/v1/audio/speech", json=body, timeout=120)
    assert len(answer.content) == 2 * len(speech.audio)


def test_who_leaves_frees_the_slot(live, tiny):
    with requests.post(live.url + "/v1/audio/speech", json=ENDLESS, stream=True, timeout=120) as answer:
        assert answer.raw.read(1_000)
    waited_s = time_to_rest(tiny.server, DROPPED_WITHIN_S)
    print(f"MEASURED: a client that leaves amid speech has its slot freed after {1e3 * waited_s:.0f} ms")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_tab_that_is_closed_frees_the_slot(live, tiny):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(live.url)
        page.wait_for_selector("#voice option:nth-child(2)", state="attached")  # the server's voices have come
        page.uncheck("#refine")
        page.fill("#input", LONG)
        page.click("#speak")
        page.wait_for_function("() => document.querySelector('#first').textContent.includes('ms')")
        wait_until(tiny.server, lambda engine: engine.requests_open == 1, 60.0)
        page.close()
        waited_s = time_to_rest(tiny.server, DROPPED_WITHIN_S)
        print(f"MEASURED: a closed tab has its slot freed after {1e3 * waited_s:.0f} ms")
        browser.close()


def test_every_format_is_understood(demo, tmp_path):
    """As OpenAI's clients ask for it, in front of the checkpoint that speaks English."""
    listener, understood = Listener(), []
    with running_gateway(demo.server.grpc_url, tmp_path / "gateway.log") as gateway:
        sdk = openai.OpenAI(base_url=gateway.url + "/v1", api_key="none")
        for number, name in enumerate(("mp3", "opus", "aac", "flac", "wav", "pcm")):
            said = held_out()[number]
            own = {"seed": number, "refine": False}
            answer = sdk.audio.speech.create(
                model="tts-1", voice="alloy", input=said, response_format=name, extra_body=own
            )
            audio, rate = decoded(answer.content, name)
            understood.append(listener.listen(soxr.resample(audio, rate, SAMPLE_RATE), said))
    assert word_error_rate(understood) <= 0.35, understood
