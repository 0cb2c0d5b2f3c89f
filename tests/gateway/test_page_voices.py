"""The voices of the page: choosing, hearing and cloning one."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect

from gateway.voices import spoken_by
from tests.client.fake_synthesis import SAMPLE_RATE
from tests.gateway.browsing import (
    clone,
    is_speech,
    kept,
    recording,
    seconds,
    sent,
    speak,
)


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
