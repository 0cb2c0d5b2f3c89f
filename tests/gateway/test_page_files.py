"""Files that the page gives and takes: sound, texts, cloned voices."""

from __future__ import annotations

import io
import wave

import av
import numpy as np
import pytest
from chattts_client.audio_file import MARK
from playwright.sync_api import Page, expect

from tests.client.fake_synthesis import DEFAULT_SEED, SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.browsing import (
    TEXT,
    TONE_HZ,
    clone,
    decoded,
    downloaded,
    is_speech,
    opened,
    pitch,
    seconds,
    sent,
    speak,
)


def test_the_wav_file_has_every_sample(page):
    speak(page)
    name, data = downloaded(page)
    with av.open(io.BytesIO(data)) as container:
        assert container.metadata["comment"] == MARK
    assert name == f"chattts-{DEFAULT_SEED}.wav"
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:4] == (1, 2, SAMPLE_RATE, len(TEXT) * SAMPLES_PER_CHARACTER)
        audio = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768
    assert pitch(audio, SAMPLE_RATE) == pytest.approx(TONE_HZ, abs=2)
    assert np.abs(audio).max() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("name", ["mp3", "opus", "aac", "flac"])
def test_other_formats_are_of_the_sound_that_is_there(page, name):
    speak(page)
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(request))
    page.fill("#input", "Something else, which was not spoken.")
    page.select_option("#format", name)
    file, data = downloaded(page)
    assert file == f"chattts-{DEFAULT_SEED}.{name}"
    audio, rate = decoded(data)
    assert len(audio) / rate == pytest.approx(seconds(TEXT), abs=0.06)
    assert pitch(audio, rate) == pytest.approx(TONE_HZ, abs=3)
    assert requests == []


# Texts


TWO_LINES = "Good morning, 你好。\nGood night, 晚安。"


def open_text(page: Page, data: bytes, name: str = "text.txt") -> None:
    page.set_input_files("#open-file", {"name": name, "mimeType": "text/plain", "buffer": data})


def test_a_text_file_is_opened_in_the_encodings_that_people_have(page):
    page.on("dialog", lambda dialog: dialog.accept())
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "gb18030"):
        page.fill("#input", "Another text.")
        open_text(page, TWO_LINES.replace("\n", "\r\n").encode(encoding))
        expect(page.locator("#input")).to_have_value(TWO_LINES)
    expect(page.locator("#status")).to_have_text("The text of “text.txt” is here.")


def test_what_is_written_gives_way_to_a_file_only_if_that_is_wished(page):
    questions = []
    page.on("dialog", lambda dialog: (questions.append(dialog.message), dialog.dismiss()))
    open_text(page, b"Of a file.")
    expect(page.locator("#input")).to_have_value("Of a file.")
    page.fill("#input", "My own.")
    open_text(page, b"Of another.", "other.txt")
    page.wait_for_timeout(0)
    expect(page.locator("#open-file")).to_have_value("")
    assert questions == ["Put the text of “other.txt” in place of what is written?"]
    expect(page.locator("#input")).to_have_value("My own.")


def test_a_dropped_file_is_opened_and_is_the_lines_of_a_dialogue(page):
    page.get_by_role("radio", name="Dialogue").check(force=True)
    dropped = page.evaluate_handle(
        """text => {
        const dropped = new DataTransfer();
        dropped.items.add(new File([text], "lines.txt", { type: "text/plain" }));
        return dropped;
    }""",
        TWO_LINES,
    )
    page.dispatch_event("#input-error", "dragover", {"dataTransfer": dropped})
    expect(page.locator("#text")).to_have_class("card dropping")
    page.dispatch_event("#input-error", "drop", {"dataTransfer": dropped})
    expect(page.get_by_role("textbox", name="Line 1")).to_have_value("Good morning, 你好。")
    expect(page.get_by_role("textbox", name="Line 2")).to_have_value("Good night, 晚安。")
    expect(page.locator("#text")).to_have_class("card")
    open_text(page, b"Line.\n" * 201)
    expect(page.locator("#input-error")).to_have_text("“text.txt” has 201 lines; a dialogue may have 200.")
    expect(page.locator(".turns li")).to_have_count(2)


WRONG = [(b"\x00\x01\xff", "“a.bin” is no text file."), (b" \n", "There is no text in “a.bin”.")]
WRONG += [(b"x" * 1_000_001, "“a.bin” is too large: a text file may have 1 MB.")]


def test_what_is_no_text_file_is_refused(page):
    for data, said in WRONG:
        open_text(page, data, "a.bin")
        expect(page.locator("#input-error")).to_have_text(said)
    expect(page.locator("#input")).to_have_value("")


# Voices


def test_cloned_voices_move_to_another_browser_in_a_file(page, browser, gateway):
    expect(page.locator("#export-voices")).to_be_hidden()
    made = clone(page, "Anna")
    with page.expect_download() as download:
        page.click("#export-voices")
    assert download.value.suggested_filename == "chattts-voices.json"
    with opened(browser, gateway.url) as other:
        other.click("#cloning > summary")
        other.set_input_files("#import-voices", download.value.path())
        expect(other.locator("#transferred")).to_have_text("Voices loaded: 1.")
        expect(other.get_by_role("radio", name="Anna Cloned by you")).to_be_checked()
        with other.expect_request(is_speech) as request:
            speak(other)
        assert sent(request.value)["voice"] == {"id": made["id"]}


FOREIGN = [
    "no JSON",
    "{}",
    '{"voices": []}',
    '{"voices": [{"name": "A", "id": "x"}]}',
    '{"voices": [{"id": "clone_x"}]}',
]


def test_a_file_without_voices_is_refused(page):
    page.click("#cloning > summary")
    for text in FOREIGN:
        page.set_input_files("#import-voices", {"name": "a.json", "mimeType": "", "buffer": text.encode()})
        expect(page.locator("#import-voices-error")).to_have_text("“a.json” has no voices that this page has saved.")
        page.check("#consent")  # another error, so that the next is seen to be a new one
        page.click("#clone")
        expect(page.locator("#import-voices-error")).to_be_empty()
    expect(page.locator(".voice")).to_have_count(2)
