"""The web page in a real browser, in front of a real gateway whose models answer a tone: speaking and hearing."""

from __future__ import annotations

import io
import re

import av
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from tests.client.conftest import content
from tests.client.fake_synthesis import DEFAULT_SEED, SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.browsing import (
    STREAM,
    TEXT,
    TONE_HZ,
    decoded,
    downloaded,
    is_speech,
    opened,
    seconds,
    sent,
    speak,
    start_speaking,
    wait_until_heard,
)

LARGE_SEED = 2**53 + 1  # no number of JavaScript

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
    held = page.evaluate("() => document.querySelector('#playhead').style.left")
    length = float(page.text_content("#length").split()[0])
    page.wait_for_function(
        "length => parseFloat(document.querySelector('#length').textContent) > length + 1", arg=length
    )
    if length < 4:  # while the axis is as long as before
        assert page.evaluate("() => document.querySelector('#playhead').style.left") == held
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


def test_what_was_heard_stays_heard_when_samples_ran_out(page):
    before, after = page.evaluate("""async () => {
        const { Player } = await import("/player.js");
        let player;
        await new Promise((resolve) => {
            player = new Player(document.querySelector("#sample"), (isWaiting) => isWaiting && resolve());
            player.begin().then(() => player.add(new Int16Array(4800), 24000));
        });
        const before = player.heard;
        player.add(new Int16Array(12000), 24000);
        const after = player.heard;
        player.stop();
        return [before, after];
    }""")
    assert before == pytest.approx(0.2)
    assert after >= before


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
    assert re.fullmatch(r"\d+ ms", page.text_content("#first"))
    assert page.text_content("#length") == f"{seconds(TEXT):.1f} s"
    assert float(page.text_content("#factor")) > 0
    assert page.text_content("#used-seed") == str(DEFAULT_SEED)


def test_what_is_left_as_it_was_is_not_sent(page):
    with page.expect_request(is_speech) as request:
        speak(page)
    assert sent(request.value) == {"model": "chattts", "input": TEXT, "voice": "default", **STREAM}


def test_what_is_set_is_sent(page):
    page.click("#advanced > summary")
    page.fill("#speed", "1")
    page.fill("#seed", "7")
    page.uncheck("#refine")
    page.fill("#temperature", "0.55")
    page.select_option("#language", "zh")
    page.select_option("#mode", "low_latency")
    page.check("[type=radio][value=warm_2]")
    page.fill("#input", TEXT)
    with page.expect_request(is_speech) as request:
        page.click("#speak")
    expected = {"input": TEXT, "voice": "warm_2", "speed": 2, "seed": 7, "refine": False, "temperature": 0.55}
    expected |= {"language": "zh", "mode": "low_latency", "model": "chattts", **STREAM}
    assert sent(request.value) == expected
    expect(page.locator("#status")).to_have_text(re.compile("Done: 0.[12] s of speech."))  # at twice the speed


def test_a_large_seed_arrives_as_it_was_typed(page):
    page.fill("#seed", str(LARGE_SEED))
    speak(page)
    assert page.text_content("#used-seed") == str(LARGE_SEED)


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


def test_an_example_fills_an_empty_text(page):
    example = page.locator(".example").first
    said = example.inner_text()
    example.click()
    expect(page.locator("#input")).to_have_value(said)
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("#examples")).to_be_hidden()


def test_tags_go_in_at_the_cursor(page):
    page.fill("#input", "Hello world")
    page.evaluate("() => document.querySelector('#input').setSelectionRange(5, 5)")
    for tag in ("[laugh]", "[uv_break]", "[lbreak]"):
        page.click(f"[data-tag='{tag}']")
    page.keyboard.type("!")
    expect(page.locator("#input")).to_have_value("Hello[laugh][uv_break][lbreak]! world")
    expect(page.locator("#count")).to_have_text("37 of 20,000 characters")


# The result


def test_nothing_is_shown_of_a_sound_that_is_not_there(page):
    for name in ("#player", "#details"):
        expect(page.locator(name)).to_be_hidden()
    speak(page)
    expect(page.locator("#player")).to_be_visible()
    expect(page.locator("#details > summary")).to_be_visible()
    expect(page.locator("#spectrum")).to_be_hidden()
    page.fill("#input", "fail INTERNAL the decoder fell over")
    page.click("#speak")
    expect(page.locator("#player")).to_be_hidden()


def test_the_wave_seeks(page):
    speak(page)
    page.wait_for_function("() => document.querySelector('#audio').readyState > 0")
    wave = page.locator("#wave").bounding_box()
    page.mouse.click(wave["x"] + wave["width"] / 2, wave["y"] + 5)
    sought = page.evaluate("() => document.querySelector('#audio').currentTime")
    assert sought == pytest.approx(seconds(TEXT) / 2, abs=0.02)
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('#audio').currentTime > before", arg=sought)


def test_the_players_button_plays_and_pauses(page):
    speak(page, TEXT * 10)
    expect(page.locator("#time")).to_have_text("0:00 / 0:02")
    page.get_by_role("button", name="Play", exact=True).click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert page.evaluate("() => document.querySelector('#audio').paused")


def test_the_player_stays_at_hand_on_a_phone(browser, gateway):
    with opened(browser, gateway.url, viewport={"width": 390, "height": 700}) as page:
        speak(page)
        page.evaluate("() => scrollTo(0, document.documentElement.scrollHeight)")
        expect(page.locator("#play")).to_be_in_viewport(ratio=1)
        footer, player = (page.locator(name).bounding_box() for name in ("footer", "#player"))
        assert footer["y"] + footer["height"] <= player["y"]


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
        page.click("#details > summary")
        page.wait_for_function("() => parseFloat(document.querySelector('#length').textContent) > 3")
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
