"""The gateway in front of the real models: the same samples, and slots of the engine that leave with their listeners.

`pytest -rP` shows what was measured.
"""

from __future__ import annotations

import json

import numpy as np
import openai
import pytest
import requests
import soxr
from chattts_client import TTSClient
from playwright.sync_api import expect

from chattts_serving.audio import SAMPLE_RATE
from gateway.process import running_gateway
from gateway.voices import clone_id
from tests.gateway.browsing import opened
from tests.gateway.test_speech import decoded, events
from tests.integration.test_streaming import ALLOWED_ERROR
from tests.metrics import time_to_rest, wait_until
from training.listen import Listener, word_error_rate
from training.sentences import held_out

TEXT = "The library opens at nine."
SPEECH = "/v1/audio/speech"
LONG = "This sentence takes very long to say. " * 20
BODY = {"model": "chattts", "response_format": "pcm", "seed": 7, "refine": False}
SHORT = BODY | {"input": TEXT, "max_new_tokens": 64}
ENDLESS = BODY | {"input": LONG, "min_new_tokens": 2_048}  # left alone, random weights would say it in a second
SPOKEN = "Good morning, my friend. The train leaves at ten past 9."
MARKED_BEHIND_S = 0.5  # a mark may stay so long behind its word, and come a picture late
# Each word that is marked from now on, by its place, and the place in the speech then: `window.marks`.
WATCH_MARKS = """
() => {
  const [box, seek] = [document.querySelector("#transcript"), document.querySelector("#seek")];
  window.marks = [];
  new MutationObserver(() => {
    const place = [...box.querySelectorAll("span")].findIndex((one) => one.classList.contains("now"));
    if (place >= 0 && place !== marks.at(-1)?.[0]) marks.push([place, Number(seek.value)]);
  }).observe(box, { subtree: true, attributeFilter: ["class"] });
}
"""
DROPPED_WITHIN_S = 2.0  # far above what it takes, so that a busy machine does not decide


@pytest.fixture(scope="module")
def live(tiny, tmp_path_factory):
    log = tmp_path_factory.mktemp("live") / "gateway.log"
    with running_gateway(tiny.server.grpc_url, log, "--voice-alias", "nova=seed-1") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def english(demo, tmp_path_factory):
    with running_gateway(demo.server.grpc_url, tmp_path_factory.mktemp("english") / "gateway.log") as gateway:
        yield gateway


@pytest.mark.parametrize("voice", ["default", "seed-1", "alloy", "nova", "", None])
@pytest.mark.parametrize("mode", ["exact", "low_latency"])
def test_the_gateway_gives_the_samples_of_the_models(live, tiny, voice, mode):
    answer = requests.post(live.url + SPEECH, json=SHORT | {"voice": voice, "mode": mode}, timeout=120)
    speaker = {"alloy": "default", "nova": "seed-1", "": "default", None: "default"}.get(voice, voice)
    options = {"seed": 7, "skip_refine": True, "max_new_tokens": 64, "speaker": speaker}
    with TTSClient(tiny.server.grpc_url) as client:
        chunks = list(client.stream(TEXT, mode=mode, **options))
    audio = np.concatenate([chunk.audio for chunk in chunks])
    heard = np.frombuffer(answer.content, "<i2") / 32767
    assert len(heard) == len(audio)
    errors = np.abs(heard - np.clip(audio, -1, 1))
    if mode == "exact":
        assert errors.max() < 1e-4
    else:  # where chunks meet depends on when tokens came, and each of both may be that far from the exact sound
        assert np.sqrt((errors**2).mean() / (audio**2).mean()) < 2 * ALLOWED_ERROR


def test_a_speaker_string_is_taken_as_it_was_pasted(live, tiny):
    with TTSClient(tiny.server.grpc_url) as client:
        used = client.synthesize(TEXT, seed=7, skip_refine=True, max_new_tokens=8, speaker="seed-1").speaker
    heard = [
        requests.post(live.url + SPEECH, json=SHORT | {"voice": voice}, timeout=120)
        for voice in ("seed-1", used, f"\ufeff{used}\r\n", {"id": f" {used}\t"})
    ]
    assert [answer.content for answer in heard] == [heard[0].content] * 4


@pytest.mark.parametrize("text", ["😀", "...", "🎉🎉 !?", "[laugh]", "😀" * 20_000])
def test_a_text_with_nothing_to_say_is_refused_or_a_silence(live, text):
    refused = requests.post(live.url + SPEECH, json=BODY | {"input": text}, timeout=120)
    print(f"MEASURED: {len(text)} of {text[:1]} are refused after {refused.elapsed.total_seconds():.3f} s")
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "input")
    assert error["message"].startswith(f"'input' is {text[:60]!r}")
    silence = requests.post(live.url + SPEECH, json=BODY | {"input": text, "allow_silence": True}, timeout=120)
    assert silence.status_code == 200
    assert not any(silence.content)


def test_an_unknown_voice_is_shown_as_it_was_written(live):
    error = requests.post(live.url + SPEECH, json=SHORT | {"voice": "默认 é"}, timeout=120).json()["error"]
    assert error["message"].startswith("'voice' is '默认 é'; allowed is a voice of this server (")


def test_a_cloned_voice_is_that_of_its_recording(live, tiny):
    rng = np.random.default_rng(0)
    audio = (0.1 * rng.standard_normal(48_000)).astype(np.float32)
    with TTSClient(tiny.server.grpc_url) as client:
        sample = client.clone(audio, 24_000)
        options = {"seed": 7, "skip_refine": True, "max_new_tokens": 64}
        speech = client.synthesize(TEXT, speaker_sample=sample, sample_text="Hello there.", **options)
    body = SHORT | {"voice": {"id": clone_id(sample, "Hello there.")}}
    answer = requests.post(live.url + SPEECH, json=body, timeout=120)
    assert len(answer.content) == 2 * len(speech.audio)


def test_turns_are_spoken_by_their_voices(live, tiny):
    turns = [
        {"text": "The library opens.", "speaker": "seed-1", "name": "Anna", "pause": 0.5},
        {"text": "At nine?", "speaker": "seed-2:2+seed-3", "temperature": 0.2},
        {"text": "At nine.", "speaker": "default"},
    ]
    options = {"seed": 7, "skip_refine": True, "max_new_tokens": 64}
    with TTSClient(tiny.server.grpc_url) as client:
        audio = client.synthesize(turns=turns, **options).audio
    said = [
        {"text": "The library opens.", "voice": "nova", "name": "Anna", "pause": 0.5},
        {"text": "At nine?", "voice": {"id": "seed-2:2+seed-3"}, "temperature": 0.2},
        {"text": "At nine."},
    ]
    answer = requests.post(live.url + SPEECH, json=SHORT | {"input": said, "voice": "alloy"}, timeout=120)
    heard = np.frombuffer(answer.content, "<i2") / 32767
    assert len(heard) == len(audio)
    np.testing.assert_allclose(heard, np.clip(audio, -1, 1), atol=1e-4)


def test_pauses_spellings_and_words_of_a_lexicon_are_spoken_as_by_the_models(live, tiny):
    text, lexicon = "We run nginx. [pause 1.5s] Its code is [spell A1].", {"nginx": "engine x"}
    with TTSClient(tiny.server.grpc_url) as client:
        speech = client.synthesize(
            text, speaker="default", lexicon=lexicon, seed=7, skip_refine=True, max_new_tokens=64
        )
    assert [sentence.text for sentence in speech.sentences] == ["We run engine x.", "Its code is A one."]
    answer = requests.post(live.url + SPEECH, json=SHORT | {"input": text, "lexicon": lexicon}, timeout=120)
    heard = np.frombuffer(answer.content, "<i2") / 32767
    assert len(heard) == len(speech.audio)
    np.testing.assert_allclose(heard, np.clip(speech.audio, -1, 1), atol=1e-4)
    assert (heard == 0).sum() >= 36_000


def test_ssml_is_spoken_where_it_is_called_so(live, tiny):
    text = (
        "<speak>We are <sub alias='all'>A.</sub> here.<break time='1s'/><voice name='seed-1'>So am I.</voice></speak>"
    )
    with TTSClient(tiny.server.grpc_url) as client:
        audio = client.synthesize(text, speaker="default", ssml=True, seed=7, skip_refine=True, max_new_tokens=64).audio
    answer = requests.post(live.url + SPEECH, json=SHORT | {"input": text, "ssml": True}, timeout=120)
    heard = np.frombuffer(answer.content, "<i2") / 32767
    assert len(heard) == len(audio)
    np.testing.assert_allclose(heard, np.clip(audio, -1, 1), atol=1e-4)
    plain = requests.post(live.url + SPEECH, json=SHORT | {"input": text}, timeout=120)
    assert plain.ok
    assert plain.content != answer.content
    wrong = requests.post(
        live.url + SPEECH, json=SHORT | {"input": "<speak><audio/></speak>", "ssml": True}, timeout=120
    )
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input")
    assert "line 1, column 8" in wrong.json()["error"]["message"]


def test_who_leaves_frees_the_slot(live, tiny):
    with requests.post(live.url + SPEECH, json=ENDLESS, stream=True, timeout=120) as answer:
        assert answer.raw.read(1_000)
    waited_s = time_to_rest(tiny.server, DROPPED_WITHIN_S)
    print(f"MEASURED: a client that leaves amid speech has its slot freed after {1e3 * waited_s:.0f} ms")


def test_a_tab_that_is_closed_frees_the_slot(live, tiny, browser):
    with opened(browser, live.url) as page:
        # The voices of the server move what lies below them when they come.
        expect(page.locator(".voice")).not_to_have_count(1)
        page.route("**" + SPEECH, lambda route: speak_as(route, ENDLESS))
        page.fill("#input", LONG)
        page.click("#speak")
        page.wait_for_function("() => document.querySelector('#first').textContent.includes('ms')")
        wait_until(tiny.server, lambda engine: engine.sequences_running > 0, 60.0)
        page.close()
        waited_s = time_to_rest(tiny.server, DROPPED_WITHIN_S)
        print(f"MEASURED: a closed tab has its slot freed after {1e3 * waited_s:.0f} ms")


def speak_as(route, asked):
    """What the page asks for, and what only programs can ask for."""
    route.continue_(post_data=json.dumps(asked | route.request.post_data_json))


def test_the_page_marks_each_word_while_it_is_heard(english, browser):
    """Whichever words the pace of the machine lets it show: each at its time; a click goes to any of them."""
    body = BODY | {"input": SPOKEN, "stream_format": "sse", "word_times": True}
    answer = requests.post(english.url + SPEECH, json=body, timeout=120)
    words = [word for event in events(answer) for word in event.get("words", ())]
    assert [word["text"] for word in words] == [*SPOKEN.replace(",", "").replace(".", "").split()[:-1], "nine"]
    with opened(browser, english.url) as page:
        page.fill("#seed", str(BODY["seed"]))
        page.uncheck("#refine")
        page.fill("#input", SPOKEN)
        page.evaluate(WATCH_MARKS)
        page.click("#speak")
        expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
        spans = page.locator("#transcript span")
        assert spans.all_inner_texts() == [word["text"] for word in words[:-1]] + ["9"]
        marks = page.evaluate("() => marks")
        assert marks
        assert [place for place, _ in marks] == sorted(place for place, _ in marks)
        for place, heard_s in marks:
            assert words[place]["start"] - 0.02 < heard_s < words[place]["end"] + MARKED_BEHIND_S
        for place in (len(words) - 1, 0, 4):
            spans.nth(place).click()
            expect(spans.nth(place)).to_have_class("now")
            sought = page.evaluate("() => document.querySelector('#audio').currentTime")
            assert sought == pytest.approx(words[place]["start"], abs=2e-3)


def test_where_words_have_no_times_the_page_marks_sentences(live, browser):
    sentences = ["The library opens at nine", "The train leaves at ten"]
    with opened(browser, live.url) as page:
        page.route("**" + SPEECH, lambda route: speak_as(route, SHORT | {"min_new_tokens": 8}))
        page.fill("#input", ". ".join(sentences) + ".")
        page.click("#speak")
        expect(page.locator("#status")).to_contain_text("Done", timeout=120_000)
        assert page.locator("#transcript span").all_inner_texts() == sentences
        page.locator("#transcript span").last.click()
        expect(page.locator("#transcript .now")).to_have_text(sentences[-1])
        expect(page.locator("#warning")).to_be_hidden()


def test_the_page_tells_what_the_models_leave_out(live, browser):
    with opened(browser, live.url) as page:
        page.route("**" + SPEECH, lambda route: speak_as(route, SHORT | {"min_new_tokens": 8}))
        page.get_by_role("radio", name="Dialogue").check(force=True)
        page.get_by_role("textbox", name="Line 1").fill("Hello there, привет.")
        page.get_by_role("textbox", name="Line 2").fill("Good day, سلام.")
        page.click("#speak")
        expect(page.locator("#warning")).to_contain_text("Letters of other scripts were not spoken (10)")
        expect(page.locator("#warning [lang=en]")).to_contain_text("(Cyrillic)")
        page.click("#switch-language")
        expect(page.locator("#warning")).to_contain_text("有 10 个其他文字的字母未朗读")


def test_every_format_is_understood(english):
    """As OpenAI's clients ask for it, in front of the checkpoint that speaks English."""
    listener, understood = Listener(), []
    sdk = openai.OpenAI(base_url=english.url + "/v1", api_key="none")
    for number, name in enumerate(("mp3", "opus", "aac", "flac", "wav", "pcm")):
        said = held_out()[number]
        own = {"seed": number, "refine": False}
        answer = sdk.audio.speech.create(model="tts-1", voice="alloy", input=said, response_format=name, extra_body=own)
        audio, rate = decoded(answer.content, name)
        understood.append(listener.listen(soxr.resample(audio, rate, SAMPLE_RATE), said))
    assert word_error_rate(understood) <= 0.35, understood
