"""The voices of the page: choosing, hearing and cloning one."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from gateway.voices import spoken_by
from tests.client.conftest import content
from tests.client.fake_synthesis import SAMPLE_RATE
from tests.conftest import ROOT
from tests.gateway.browsing import (
    clone,
    is_speech,
    kept,
    recording,
    sent,
    speak,
)


def cards(page):
    """What the cards say, line by line."""
    return [card.inner_text().split("\n") for card in page.locator(".voice label").all()]


def test_voices_are_cards_in_words(page):
    assert sorted(cards(page)) == [["default"], ["warm, 低沉", "warm_2"]]
    expect(page.get_by_role("radio", name="default")).to_be_checked()
    page.get_by_role("radio", name="warm, 低沉").check()
    with page.expect_request(is_speech) as request:
        speak(page)
    assert sent(request.value)["voice"] == "warm_2"
    expect(page.locator("#history .help")).to_contain_text("warm, 低沉")


@pytest.mark.parametrize("folder", ["voices", "export/demo/voices"])
def test_the_page_has_words_of_its_own_for_the_voices_of_this_repository(page, folder):
    files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / folder).glob("*.json")}
    voices = [{"id": name, "description": voice["description"]} for name, voice in files.items()]
    titles = page.evaluate(
        "async voices => voices.map((await import('/portraits.js')).titleOf)",
        voices,
    )
    keys = [key for key, _ in titles]
    assert len(keys) >= 4
    assert "plain" not in keys


def test_the_words_of_a_card_follow_the_language(page):
    """The default one comes first, wherever the server lists it."""
    files = [ROOT / "export" / "demo" / "voices" / f"{name}.json" for name in ("awb", "default")]
    listed = [{"id": path.stem} | json.loads(path.read_text(encoding="utf-8")) for path in files]
    page.route("**/v1/audio/voices", lambda route: route.fulfill(json={"data": listed}))
    page.reload()
    expect(page.get_by_role("radio", name="American woman default")).to_be_checked()
    assert cards(page) == [["American woman", "default"], ["Scottish man", "awb"]]
    page.click("#switch-language")
    assert cards(page) == [["美国女声", "default"], ["苏格兰男声", "awb"]]
    expect(page.get_by_role("button", name="试听 苏格兰男声")).to_be_visible()
    expect(page.locator("#voices-test")).to_contain_text("只会说英语")


def test_nothing_is_said_of_what_other_voices_cannot_say(page):
    expect(page.locator(".voice")).to_have_count(2)
    expect(page.locator("#voices-test")).to_be_hidden()


def test_a_voice_is_heard_from_its_card_and_asked_for_once(page):
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(sent(request)))
    page.evaluate("() => (window.heard = 0)")
    page.evaluate("() => document.querySelector('#sample').addEventListener('playing', () => (window.heard += 1))")
    hear = page.get_by_role("button", name="Hear warm, 低沉")
    for times in (1, 2):
        hear.click()
        page.wait_for_function("times => window.heard === times", arg=times)
        expect(hear).to_have_class("round bare")  # it has ended
    assert [request["voice"] for request in requests] == ["warm_2"]
    expect(page.get_by_role("radio", name="default")).to_be_checked()
    expect(page.locator("#history li")).to_have_count(0)
    expect(page.locator("#player")).to_be_hidden()


@pytest.mark.parametrize("stop", ["a second click", "speaking"])
def test_a_voice_falls_silent(page, tmp_path, stop):
    endless = json.dumps({"model": "chattts", "input": f"endless {tmp_path / 'ended'}", "response_format": "pcm"})
    page.route("**/v1/audio/speech", lambda route: route.continue_(post_data=endless), times=1)
    hear = page.get_by_role("button", name="Hear default")
    hear.click()
    page.wait_for_function("() => !document.querySelector('#sample').paused")
    if stop == "speaking":
        speak(page)
    else:
        hear.click()
    page.wait_for_function("() => !document.querySelector('#sample').srcObject")
    assert content(tmp_path / "ended") == "cancelled"


def test_a_voice_is_cloned_from_a_file_and_speaks(page):
    made = clone(page, "Anna")
    expect(page.get_by_role("radio", name="Anna Cloned by you")).to_be_checked()
    voice = spoken_by(made["id"])
    assert voice["sample_text"] == "What is said."
    assert json.loads(voice["speaker_sample"])["shapes"][0][-1] == pytest.approx(2 * SAMPLE_RATE, abs=50)
    with page.expect_request(is_speech) as request:
        speak(page)
    assert sent(request.value)["voice"] == {"id": made["id"]}
    page.reload()
    expect(page.get_by_role("radio", name="Anna Cloned by you")).to_be_checked()
    expect(page.locator(".voice")).to_have_count(3)


def test_a_cloned_voice_can_be_deleted(page):
    made = clone(page, "Anna")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete Anna").click()
    expect(page.locator(".voice")).to_have_count(2)
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
    expect(page.get_by_role("radio", name="Me Cloned by you")).to_be_checked()
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
    error = page.locator("#clone-file-error")
    expect(error).to_contain_text("This file is no recording that the server can read.")
    expect(error.locator("[lang=en]")).to_contain_text("no recording that FFmpeg can read")
    page.click("#switch-language")
    expect(error).to_contain_text("此文件不是服务器能读取的录音。")
    expect(error.locator("[lang=en]")).to_contain_text("no recording that FFmpeg can read")
    assert page.inner_text("#clone-error") == ""
