"""The web page in a real browser, in front of a real gateway whose models answer a tone."""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import av
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from gateway.app import PAGE
from gateway.process import RunningGateway, running_gateway
from gateway.voices import spoken_by
from tests.client.conftest import content
from tests.client.fake_synthesis import CHARACTERS_PER_CHUNK, DEFAULT_SEED, SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.conftest import PATIENCE_MS

TEXT = "Good morning."
TONE_HZ = 440
KEY = "a-key-of-sixteen-characters"
LARGE_SEED = 2**53 + 1  # no number of JavaScript

# What a listener of the element would hear, gathered in `window.heard` as it plays.
LISTEN = """
() => {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 4096 });
  context.createMediaStreamSource(document.querySelector("#audio").srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize), pitches = new Float32Array(analyser.frequencyBinCount);
  window.heard = { loudest: 0, pitch: 0 };
  setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    analyser.getFloatFrequencyData(pitches);
    heard.loudest = Math.max(...samples.map(Math.abs));
    heard.pitch = pitches.indexOf(Math.max(...pitches)) * context.sampleRate / analyser.fftSize;
  }, 50);
}
"""

# A connection that is lost behind the headers of the answer.
BREAK_OFF = """
() => {
  const body = () => new ReadableStream({ start: (stream) => stream.error(new TypeError("network error")) });
  window.fetch = async () => new Response(body());
}
"""

# A storage with room for so many texts of the history.
FULL_STORAGE = """
allowed => {
  const set = Storage.prototype.setItem;
  Storage.prototype.setItem = function (name, value) {
    if (name === "chattts.history" && JSON.parse(value).length > allowed) {
      throw new DOMException("full", "QuotaExceededError");
    }
    set.call(this, name, value);
  };
}
"""

# Pictures in about two seconds, by where the line in them is, and how many seconds it were.
COUNT_PICTURES = """
() => new Promise((resolve) => {
  let moved = 0;
  const began = performance.now();
  const observer = new MutationObserver(() => (moved += 1));
  observer.observe(document.querySelector("#playhead"), { attributeFilter: ["style"] });
  setTimeout(() => resolve([moved, (performance.now() - began) / 1000]), 2000);
})
"""


@contextmanager
def opened(browser: Browser, url: str, **settings) -> Iterator[Page]:
    """The page in a fresh profile; in the end, whatever it did was in order."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | settings)
    context.set_default_timeout(PATIENCE_MS)
    wrong = watched(context, url)
    page = context.new_page()
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert not wrong


def watched(context: BrowserContext, url: str) -> list[str]:
    """Filled with what a page must never do; answers that say no are the business of each test."""
    wrong: list[str] = []
    context.on("weberror", lambda found: wrong.append(str(found.error)))
    context.on("console", lambda found: found.type in ("error", "warning") and wrong.append(found.text))
    context.on("request", lambda request: is_elsewhere(request, url) and wrong.append(request.url))
    refused = "Failed to load resource:"
    context.on("console", lambda found: found.text.startswith(refused) and wrong.remove(found.text))
    return wrong


def is_elsewhere(request: Request, url: str) -> bool:
    found = urlsplit(request.url)
    return found.scheme not in ("blob", "data") and found.netloc != urlsplit(url).netloc


@pytest.fixture
def page(browser: Browser, gateway: RunningGateway) -> Iterator[Page]:
    with opened(browser, gateway.url) as page:
        expect(page.locator("#voice option")).to_have_count(2)
        yield page


@pytest.fixture(scope="module")
def locked(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that asks for a key."""
    log = tmp_path_factory.mktemp("locked") / "gateway.log"
    with running_gateway(server.grpc_url, log, keys=KEY) as running:
        yield running


def speak(page: Page, text: str = TEXT) -> None:
    """From the click to the file in the player."""
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(text):.1f} s of speech.")


def start_speaking(page: Page, text: str) -> None:
    """Until something is heard."""
    page.fill("#input", text)
    page.click("#speak")
    wait_until_heard(page)


def wait_until_heard(page: Page) -> None:
    page.wait_for_function("() => !document.querySelector('#audio').paused")
    page.evaluate(LISTEN)
    page.wait_for_function("() => heard.loudest > 0.4")


def seconds(text: str) -> float:
    return len(text) * SAMPLES_PER_CHARACTER / SAMPLE_RATE


def sent(request: Request) -> dict:
    return json.loads(request.post_data)


def is_speech(request: Request) -> bool:
    return request.url.endswith("/v1/audio/speech")


def downloaded(page: Page) -> tuple[str, bytes]:
    """Name and content of the file that the button gives."""
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, download.value.path().read_bytes()


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler("flt", "mono", container.streams.audio[0].rate)
        frames = [part for frame in [*container.decode(audio=0), None] for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


def pitch(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio, 2**18)).argmax() * rate / 2**18)


def recording(length_s: float = 2.0, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes((9000 * np.sin(np.arange(int(length_s * rate)) / 20)).astype("<i2").tobytes())
    return file.getvalue()


def clone(page: Page, name: str) -> dict:
    """Clone a voice from a file; the answer of the server."""
    page.click("#cloning > summary")
    page.set_input_files("#clone-file", {"name": "voice.wav", "mimeType": "audio/wav", "buffer": recording()})
    page.fill("#clone-name", name)
    page.fill("#clone-transcript", "What is said.")
    page.check("#consent")
    with page.expect_response("**/v1/audio/voices") as answer:
        page.click("#clone")
    expect(page.locator("#clone-status")).to_have_text(f"“{name}” is ready, and chosen above.")
    return answer.value.json()


def kept(page: Page) -> str:
    return page.evaluate("() => JSON.stringify(localStorage)")


# Speaking


def test_speech_is_heard_while_it_still_comes(page, tmp_path):
    """The text never ends, so what is heard cannot have waited for its end."""
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    before = page.evaluate("() => document.querySelector('#audio').currentTime")
    page.wait_for_function("before => document.querySelector('#audio').currentTime > before + 0.5", arg=before)
    assert page.evaluate("() => heard.pitch") == pytest.approx(TONE_HZ, abs=30)
    assert not page.evaluate("() => document.querySelector('#audio').paused")
    expect(page.locator("#speak")).to_have_text("Stop")


def test_stop_cancels_on_the_server(page, tmp_path):
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    page.click("#speak")
    expect(page.locator("#status")).to_have_text("Stopped.")
    expect(page.locator("#speak")).to_have_text("Speak")
    assert content(tmp_path / "ended") == "cancelled"
    page.wait_for_function("() => heard.loudest === 0")


def test_closing_the_tab_cancels_on_the_server(page, tmp_path):
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    page.close()
    assert content(tmp_path / "ended") == "cancelled"


def test_what_came_until_a_stop_can_be_played_again(page, tmp_path):
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    page.click("#speak")
    page.wait_for_function("() => document.querySelector('#audio').duration > 0.1")
    page.evaluate("() => document.querySelector('#audio').play()")
    page.wait_for_function("() => document.querySelector('#audio').currentTime > 0.05")


def test_pausing_the_player_holds_the_speech(page, tmp_path):
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    page.evaluate("() => document.querySelector('#audio').pause()")
    page.wait_for_function("() => heard.loudest === 0")
    held = page.evaluate("() => document.querySelector('#playhead').style.transform")
    length = float(page.inner_text("#length").split()[0])
    page.wait_for_function("length => parseFloat(document.querySelector('#length').innerText) > length + 1", arg=length)
    if length < 4:  # while the axis is as long as before
        assert page.evaluate("() => document.querySelector('#playhead').style.transform") == held
    page.evaluate("() => document.querySelector('#audio').play()")
    page.wait_for_function("() => heard.loudest > 0.4")


def test_a_server_that_is_too_slow_is_told_and_waited_for(page, tmp_path):
    text = f"hold {tmp_path / 'end'}"
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#status")).to_have_text("The server is slower than speech; collecting some more …")
    assert not page.evaluate("() => document.querySelector('#audio').paused")
    (tmp_path / "end").touch()
    expect(page.locator("#status")).to_have_text(re.compile(r"Done: \d+\.\d s of speech\."))


def test_who_wants_less_motion_gets_two_pictures_a_second(browser, gateway, tmp_path):
    with opened(browser, gateway.url, reduced_motion="reduce") as page:
        start_speaking(page, f"endless {tmp_path / 'ended'}")
        moved, seconds = page.evaluate(COUNT_PICTURES)
        assert 1 <= moved <= 2 * seconds + 1


def test_speech_that_has_ended_can_be_sought_and_played_again(page):
    speak(page)
    length = page.wait_for_function("() => document.querySelector('#audio').duration").json_value()
    assert length == pytest.approx(seconds(TEXT), abs=1e-3)
    page.evaluate("() => { const audio = document.querySelector('#audio'); audio.currentTime = 0.1; audio.play(); }")
    page.wait_for_function("() => document.querySelector('#audio').ended")


def test_a_second_text_takes_the_place_of_the_first(page, tmp_path):
    start_speaking(page, f"endless {tmp_path / 'ended'}")
    page.fill("#input", TEXT)
    page.press("#input", "Control+Enter")
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(TEXT):.1f} s of speech.")
    assert content(tmp_path / "ended") == "cancelled"
    assert len(decoded(downloaded(page)[1])[0]) == len(TEXT) * SAMPLES_PER_CHARACTER


def test_samples_may_be_cut_anywhere(page):
    """Bytes 0 to 255 in parts of 1, 2, 3, ... bytes."""
    samples = page.evaluate("""async () => {
        const { samplesOf } = await import("/samples.js");
        const bytes = Uint8Array.from({ length: 256 }, (_, i) => i);
        const cut = new ReadableStream({ start(controller) {
            for (let at = 0, size = 1; at < 256; at += size++) controller.enqueue(bytes.slice(at, at + size));
            controller.close();
        } });
        const samples = [];
        for await (const part of samplesOf(cut)) samples.push(...part);
        return samples;
    }""")
    assert samples == np.arange(256, dtype=np.uint8).view("<i2").tolist()


def test_numbers_about_the_speech_are_shown(page):
    speak(page)
    assert re.fullmatch(r"\d+ ms", page.inner_text("#first"))
    assert page.inner_text("#length") == f"{seconds(TEXT):.1f} s"
    assert float(page.inner_text("#factor")) > 0
    assert page.inner_text("#used-seed") == str(DEFAULT_SEED)


def test_what_is_left_as_it_was_is_not_sent(page):
    with page.expect_request(is_speech) as request:
        speak(page)
    assert sent(request.value) == {"model": "chattts", "input": TEXT, "voice": "default", "response_format": "pcm"}


def test_what_is_set_is_sent(page):
    page.click("#advanced > summary")
    page.fill("#speed", "1")
    page.fill("#seed", "7")
    page.uncheck("#refine")
    page.fill("#temperature", "0.55")
    page.select_option("#language", "zh")
    page.select_option("#mode", "low_latency")
    page.select_option("#voice", "warm_2")
    page.fill("#input", TEXT)
    with page.expect_request(is_speech) as request:
        page.click("#speak")
    expected = {"input": TEXT, "voice": "warm_2", "speed": 2, "seed": 7, "refine": False, "temperature": 0.55}
    expected |= {"language": "zh", "mode": "low_latency", "model": "chattts", "response_format": "pcm"}
    assert sent(request.value) == expected
    expect(page.locator("#status")).to_have_text(re.compile("Done: 0.[12] s of speech."))  # at twice the speed


def test_a_large_seed_arrives_as_it_was_typed(page):
    page.fill("#seed", str(LARGE_SEED))
    speak(page)
    assert page.inner_text("#used-seed") == str(LARGE_SEED)


def test_the_last_seed_can_be_kept(page):
    expect(page.locator("#keep-seed")).to_be_disabled()
    speak(page)
    page.click("#keep-seed")
    expect(page.locator("#seed")).to_have_value(str(DEFAULT_SEED))


def test_keys_speak_and_stop(page, tmp_path):
    page.fill("#input", f"endless {tmp_path / 'ended'}")
    page.press("#input", "Control+Enter")
    wait_until_heard(page)
    page.keyboard.press("Escape")
    expect(page.locator("#status")).to_have_text("Stopped.")
    assert content(tmp_path / "ended") == "cancelled"


def test_tags_go_in_at_the_cursor(page):
    page.fill("#input", "Hello world")
    page.evaluate("() => document.querySelector('#input').setSelectionRange(5, 5)")
    for tag in ("[laugh]", "[uv_break]", "[lbreak]"):
        page.click(f"[data-tag='{tag}']")
    page.keyboard.type("!")
    expect(page.locator("#input")).to_have_value("Hello[laugh][uv_break][lbreak]! world")
    expect(page.locator("#count")).to_have_text("37 of 20,000 characters")


# Pictures


def test_pitches_are_found(page):
    bands = page.evaluate(
        """async hertz => {
        const { spectrumOf } = await import("/spectrum.js");
        const tone = Float32Array.from({ length: 1024 }, (_, i) => 0.5 * Math.sin((2 * Math.PI * hertz * i) / 24000));
        return [...spectrumOf(1024, 80, 24000)(tone)];
    }""",
        TONE_HZ,
    )
    mel = [2595 * np.log10(1 + hertz / 700) for hertz in (TONE_HZ, SAMPLE_RATE / 2)]
    assert np.argmax(bands) == int(80 * mel[0] / mel[1])
    assert bands[70] == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_sound_is_drawn_while_it_comes(browser, gateway, tmp_path, scheme):
    with opened(browser, gateway.url, color_scheme=scheme) as page:
        start_speaking(page, f"hold {tmp_path / 'end'}".ljust(150))
        page.wait_for_function("() => parseFloat(document.querySelector('#length').innerText) > 3")
        first_second = slice(None, contrast(page, "#wave").shape[1] // 6)  # of an axis of 6 s
        pitches = np.median(contrast(page, "#spectrum")[:, first_second], axis=1)
        mel = [2595 * np.log10(1 + hertz / 700) for hertz in (TONE_HZ, SAMPLE_RATE / 2)]
        assert pitches.argmax() / len(pitches) == pytest.approx(1 - mel[0] / mel[1], abs=0.03)
        assert pitches[: len(pitches) // 2].max() < 0.8 * pitches.max()
        bars = (contrast(page, "#wave")[:, first_second] > 40).mean(axis=0)  # with gaps between them
        assert np.quantile(bars, 0.7) == pytest.approx(0.5, abs=0.1)  # as loud as the tone


def contrast(page: Page, canvas: str) -> np.ndarray:
    """How far the dots [height, width] are from the colour of the card, 0 to 255."""
    with av.open(io.BytesIO(page.locator(canvas).screenshot())) as shot:
        image = next(shot.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    colour = page.evaluate("() => getComputedStyle(document.querySelector('section.card')).backgroundColor")
    card = [int(part) for part in re.findall(r"\d+", colour)]
    return np.abs(image - card).max(axis=2)


# Files


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


# Languages


def test_the_language_is_switched_and_remembered(page):
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("textbox", name="What to say")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.get_by_role("textbox", name="要朗读的文本")).to_be_visible()
    expect(page.locator("#speak")).to_have_text("朗读")
    page.get_by_role("button", name="English").click()
    expect(page.locator("#speak")).to_have_text("Speak")


def test_the_language_is_the_browsers_own_at_first(browser, gateway):
    with opened(browser, gateway.url, locale="zh-CN") as page:
        expect(page.locator("html")).to_have_attribute("lang", "zh-CN")


def test_what_is_already_said_changes_its_language(page):
    speak(page)
    page.click("#switch-language")
    expect(page.locator("#status")).to_have_text(f"完成：{seconds(TEXT):.1f} 秒语音。")


def test_both_languages_have_all_words_of_the_page():
    words = (PAGE / "words.js").read_text(encoding="utf-8")
    english, chinese = words.split("\n  zh: {")
    keys = [set(re.findall(r"^    (\w+): ", part, re.MULTILINE)) for part in (english, chinese)]
    assert keys[0] == keys[1]
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-(?:word|label|placeholder)="(\w+)"', html)) <= keys[0]


# History


def test_a_text_comes_back_with_its_settings_and_seed(page):
    page.click("#advanced > summary")
    page.fill("#speed", "0.5")
    page.uncheck("#refine")
    page.fill("#temperature", "0.7")
    page.select_option("#voice", "warm_2")
    page.fill("#input", TEXT)
    page.click("#speak")
    expect(page.locator("#history li")).to_have_count(1)
    page.reload()
    expect(page.locator("#voice option")).to_have_count(2)
    expect(page.locator("#input")).to_have_value("")
    page.click("#history .entry")
    expect(page.locator("#input")).to_have_value(TEXT)
    values = {name: page.input_value(f"#{name}") for name in ("voice", "speed", "temperature", "seed")}
    assert values == {"voice": "warm_2", "speed": "0.5", "temperature": "0.7", "seed": str(DEFAULT_SEED)}
    assert not page.is_checked("#refine")


@pytest.mark.parametrize("allowed", [0, 2])
def test_a_browser_that_keeps_nothing_more_forgets_the_oldest_and_breaks_nothing(page, allowed):
    page.evaluate(FULL_STORAGE, allowed)
    for number in range(3):
        speak(page, f"Text {number}")
    newest_first = [f"Text {number}" for number in (2, 1, 0)]
    expect(page.locator("#history .text")).to_have_text(newest_first[:allowed])


def test_texts_of_the_history_can_be_deleted(page):
    for text in ("One.", "Two.", "Three."):
        speak(page, text)
    lines = page.locator("#history .text")
    expect(lines).to_have_text(["Three.", "Two.", "One."])
    page.get_by_role("button", name="Delete Two.").click()
    expect(lines).to_have_text(["Three.", "One."])
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#history-clear")
    expect(lines).to_have_count(0)
    page.reload()
    expect(lines).to_have_count(0)
    assert "Three." not in kept(page)


def test_the_history_has_the_last_20_texts(page):
    page.evaluate("""() => {
        const held = { voice: "default", speed: "0", seed: "1", refine: true, temperature: "", language: "", mode: "" };
        const old = Array.from({ length: 20 }, (_, i) => ({ ...held, input: `Old ${i}` }));
        localStorage.setItem("chattts.history", JSON.stringify(old));
    }""")
    page.reload()
    speak(page)
    expect(page.locator("#history .text")).to_have_text([TEXT, *(f"Old {i}" for i in range(19))])


# Voices


def test_the_picker_has_the_voices_of_the_server(page):
    assert sorted(page.locator("#voice option").all_inner_texts()) == ["default", "warm_2"]
    expect(page.locator("#voice")).to_have_value("default")
    page.select_option("#voice", "warm_2")
    expect(page.locator("#voice-help")).to_have_text("warm, 低沉")


def test_a_sample_speaks_in_the_chosen_voice(page):
    page.select_option("#voice", "warm_2")
    with page.expect_request(is_speech) as request:
        page.click("#sample")
    assert sent(request.value)["voice"] == "warm_2"
    said = sent(request.value)["input"]
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(said):.1f} s of speech.")
    expect(page.locator("#history li")).to_have_count(0)


def test_a_voice_is_cloned_from_a_file_and_speaks(page):
    made = clone(page, "Anna")
    expect(page.locator("#voice option:checked")).to_have_text("Anna")
    groups = page.locator("#voice optgroup")
    assert [group.get_attribute("label") for group in groups.all()] == ["Voices of this server", "Your cloned voices"]
    voice = spoken_by(made["id"])
    assert voice["sample_text"] == "What is said."
    assert json.loads(voice["speaker_sample"])["shapes"][0][-1] == pytest.approx(2 * SAMPLE_RATE, abs=50)
    with page.expect_request(is_speech) as request:
        speak(page)
    assert sent(request.value)["voice"] == {"id": made["id"]}
    page.reload()
    expect(page.locator("#voice option")).to_have_text(["default", "warm_2", "Anna"], use_inner_text=True)


def test_a_cloned_voice_can_be_deleted(page):
    made = clone(page, "Anna")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Anna").click()
    expect(page.locator("#voice option")).to_have_count(2)
    assert made["id"] not in kept(page)


def test_a_voice_is_cloned_from_the_microphone(page):
    page.click("#cloning > summary")
    page.click("#record")
    expect(page.locator("#countdown")).to_have_text(re.compile("2[0-8] s left"))
    page.click("#record")
    recorded_s = float(re.search(r"Recorded ([\d.]+) s", page.inner_text("#countdown"))[1])
    page.wait_for_function("() => document.querySelector('#clone-preview').duration > 1")
    page.fill("#clone-name", "Me")
    page.check("#consent")
    with page.expect_response("**/v1/audio/voices") as answer:
        page.click("#clone")
    expect(page.locator("#voice option:checked")).to_have_text("Me")
    seen = json.loads(spoken_by(answer.value.json()["id"])["speaker_sample"])
    assert seen["shapes"][0][-1] / SAMPLE_RATE == pytest.approx(recorded_s, abs=0.1)
    assert seen["sum"] != 0  # of silence it is


def test_nothing_is_cloned_without_consent(page):
    requests = []
    page.on("request", lambda request: request.method == "POST" and requests.append(request.url))
    page.click("#cloning > summary")
    page.set_input_files("#clone-file", {"name": "voice.wav", "mimeType": "audio/wav", "buffer": recording()})
    page.fill("#clone-name", "Anna")
    page.click("#clone")
    expect(page.locator("#consent-error")).to_have_text("Please confirm this first.")
    expect(page.locator("#consent")).to_be_focused()
    assert requests == []


def test_what_is_wrong_with_a_recording_is_said_beside_it(page):
    page.click("#cloning > summary")
    page.set_input_files("#clone-file", {"name": "voice.wav", "mimeType": "audio/wav", "buffer": b"no sound"})
    page.fill("#clone-name", "Anna")
    page.check("#consent")
    page.click("#clone")
    expect(page.locator("#clone-file-error")).to_contain_text("no recording that FFmpeg can read")
    assert page.inner_text("#clone-error") == ""


# Errors and keys


@pytest.mark.parametrize(("blamed", "shown"), [("temperature", "temperature"), ("text", "input"), ("speaker", "voice")])
def test_an_error_is_shown_at_its_field(page, blamed, shown):
    page.fill("#input", f"fail INVALID_ARG input '{blamed}' is bad; allowed is good")
    page.click("#speak")
    expect(page.locator(f"#{shown}-error")).to_contain_text("is bad; allowed is good")
    expect(page.locator(f"#{shown}")).to_be_visible()
    expect(page.locator(f"#{shown}")).to_be_focused()
    expect(page.locator(f"#{shown}")).to_have_attribute("aria-invalid", "true")
    assert [text for text in page.locator(".error").all_inner_texts() if text] == [page.inner_text(f"#{shown}-error")]
    expect(page.locator("#speak")).to_have_text("Speak")
    page.locator(f"#{shown}").dispatch_event("input", {"bubbles": True})
    expect(page.locator(f"#{shown}-error")).to_be_empty()


def test_an_error_without_a_field_is_shown_at_the_button(page):
    page.fill("#input", "fail INTERNAL the decoder fell over")
    page.click("#speak")
    expect(page.locator("#general-error")).to_contain_text("the decoder fell over")


def test_what_came_before_an_error_is_kept(page, tmp_path):
    text = f"hold {tmp_path / 'end'}"
    spoken = (len(text) - 1) // CHARACTERS_PER_CHUNK * CHARACTERS_PER_CHUNK  # all but the last chunk
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#length")).to_have_text(f"{seconds(spoken * 'x'):.1f} s")
    (tmp_path / "end").touch()
    expect(page.locator("#general-error")).to_contain_text("The server broke off")
    expect(page.locator("#speak")).to_have_text("Speak")
    assert len(decoded(downloaded(page)[1])[0]) == spoken * SAMPLES_PER_CHARACTER


def test_an_answer_that_breaks_off_at_once_is_told(page):
    """Browsers forget samples that no script has read when the connection is lost."""
    page.evaluate(BREAK_OFF)
    page.fill("#input", TEXT)
    page.click("#speak")
    expect(page.locator("#general-error")).to_contain_text("The server cannot be reached")
    expect(page.locator("#speak")).to_have_text("Speak")


@pytest.mark.parametrize("text", ["", " ", "x" * 20_001])
def test_a_text_that_cannot_be_spoken_is_not_sent(page, text):
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(request))
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#input-error")).not_to_be_empty()
    assert requests == []


def test_silence_is_told(page):
    page.fill("#input", "silence")
    page.click("#speak")
    expect(page.locator("#status")).to_have_text("The server answered without a sound.")


def test_a_server_with_keys_is_given_one(browser, locked):
    with opened(browser, locked.url) as page:
        page.fill("#key", "no-key-of-this-server")
        page.press("#key", "Enter")
        expect(page.locator("#key-error")).to_have_text("unknown API key")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator("#voice option")).to_have_count(2)
        expect(page.locator("#key-form")).to_be_hidden()
        speak(page)
        assert KEY not in kept(page)
        page.reload()
        expect(page.locator("#voice option")).to_have_count(2)


def test_speech_that_waited_for_a_key_goes_on(browser, locked):
    with opened(browser, locked.url) as page:
        expect(page.locator("#key")).to_be_focused()
        page.fill("#input", TEXT)
        page.click("#speak")
        expect(page.locator("#speak")).to_have_text("Speak")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator("#status")).to_have_text(f"Done: {seconds(TEXT):.1f} s of speech.")


# For everybody


def everything(page: Page) -> None:
    """Show all that the page has: both folds, a cloned voice, a history, a speech, errors."""
    clone(page, "A voice with a rather long name")
    page.fill("#seed", str(2**63 - 1))
    speak(page, "A text that is long enough to have several lines on the screen of a small telephone.")
    page.click("#advanced > summary")
    page.fill("#input", "")
    page.click("#speak")
    page.click("#clone")
    expect(page.locator("#input-error")).not_to_be_empty()
    expect(page.locator("#clone-file-error")).to_be_visible()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_narrow_screen_is_enough(browser, gateway, language):
    with opened(browser, gateway.url, viewport={"width": 360, "height": 740}) as page:
        expect(page.locator("#voice option")).to_have_count(2)
        everything(page)
        if language == "zh":
            page.click("#switch-language")
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        assert small_targets(page) == []


def small_targets(page: Page) -> list[str]:
    """What a finger might miss: visible controls of less than 44 by 44 pixels."""
    return page.evaluate("""() => {
        const controls = "button, select, summary, textarea, label.check, label.button, footer a, audio,"
            + "input:not([type=checkbox], [type=file])";
        const found = [...document.querySelectorAll(controls)].filter((one) => one.checkVisibility());
        if (found.length < 25) throw new Error(`only ${found.length} controls`);
        const size = (one) => one.getBoundingClientRect();
        return found.filter((one) => size(one).height < 44 || size(one).width < 44).map((one) => one.outerHTML);
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_nothing_serious(browser, gateway, language, scheme):
    with opened(browser, gateway.url, color_scheme=scheme) as page:
        expect(page.locator("#voice option")).to_have_count(2)
        everything(page)
        page.evaluate("() => { document.querySelector('#key-form').hidden = false; }")
        if language == "zh":
            page.click("#switch-language")
        expect(page.locator("html")).to_have_attribute("lang", {"en": "en", "zh": "zh-CN"}[language])
        found = Axe().run(page).response
        assert {"color-contrast", "label"} <= {rule["id"] for rule in found["passes"]}
        serious = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
        assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in serious] == []


def test_every_control_is_reached_by_the_keyboard_in_the_order_of_the_page(page):
    page.click("#cloning > summary")
    page.click("#advanced > summary")
    focusable = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, summary, a")]
        .filter((one) => one.checkVisibility() && !one.disabled)
        .map((one, i) => (one.id ||= `control-${i}`))""")
    page.evaluate("() => document.activeElement.blur()")
    page.focus(f"#{focusable[0]}")
    reached = [focusable[0]]
    while reached[-1] != focusable[-1] and len(reached) < 2 * len(focusable):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id"))
    assert [name for name in reached if name in focusable] == focusable


def test_whatever_the_page_does_stays_with_its_server_and_in_order(browser, gateway):
    """`opened` fails for another host, an error or a warning; here the browser refuses nothing of the whole page."""
    with opened(browser, gateway.url) as page:
        answers = {}
        page.on("response", lambda answer: answers.update({answer.url: answer}))
        page.add_init_script("""
            window.refused = [];
            document.addEventListener("securitypolicyviolation", (found) => refused.push(found.violatedDirective));
        """)
        page.reload()
        expect(page.locator("#voice option")).to_have_count(2)
        everything(page)
        downloaded(page)
        page.click("#record")
        expect(page.locator("#countdown")).to_contain_text("s left")
        page.click("#record")
        expect(page.locator("#countdown")).to_contain_text("Recorded")
        page.click("#switch-language")
        assert page.evaluate("() => refused") == []
        assert [url for url, answer in answers.items() if answer.status >= 400] == []
        policy = answers[f"{gateway.url}/"].headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
