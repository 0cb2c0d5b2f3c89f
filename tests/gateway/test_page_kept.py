"""What the page keeps in the browser: its language, texts, the draft."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from gateway.app import PAGE
from tests.client.fake_synthesis import DEFAULT_SEED
from tests.gateway.browsing import (
    TEXT,
    kept,
    opened,
    seconds,
    speak,
)

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
    english, chinese = ((PAGE / name).read_text(encoding="utf-8") for name in ("english.js", "chinese.js"))
    keys = [re.findall(r"^  (\w+): ", part, re.MULTILINE) for part in (english, chinese)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == len(set(keys[0]))
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r'data-(?:word|label|placeholder)="(\w+)"', html)) <= set(keys[0])


# History


def test_a_text_comes_back_with_its_settings_and_seed(page):
    page.click("#advanced > summary")
    page.fill("#speed", "0.5")
    page.uncheck("#refine")
    page.fill("#temperature", "0.7")
    page.check("[type=radio][value=warm_2]")
    page.fill("#input", TEXT)
    page.click("#speak")
    expect(page.locator("#history li")).to_have_count(1)
    page.fill("#input", "")
    page.reload()
    expect(page.locator(".voice")).to_have_count(2)
    page.fill("#speed", "1")
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
    assert "One." not in kept(page)


def test_the_history_has_the_last_20_texts(page):
    page.evaluate("""() => {
        const held = { voice: "default", speed: "0", seed: "1", refine: true, temperature: "", language: "", mode: "" };
        const old = Array.from({ length: 20 }, (_, i) => ({ ...held, input: `Old ${i}` }));
        localStorage.setItem("chattts.history", JSON.stringify(old));
    }""")
    page.reload()
    speak(page)
    expect(page.locator("#history .text")).to_have_text([TEXT, *(f"Old {i}" for i in range(19))])


# The draft


def test_what_is_being_written_survives_a_reload(page):
    page.click("#advanced > summary")
    page.fill("#input", "Half a sen")
    page.fill("#speed", "0.5")
    page.fill("#temperature", "0.7")
    page.uncheck("#refine")
    page.select_option("#language", "zh")
    page.check("[type=radio][value=warm_2]")
    page.fill("#input", "Half a sentence")
    page.click("#speak")
    page.click("#keep-seed")
    page.reload()
    expect(page.locator("#input")).to_have_value("Half a sentence")
    values = {name: page.input_value(f"#{name}") for name in ("speed", "temperature", "language", "seed")}
    assert values == {"speed": "0.5", "temperature": "0.7", "language": "zh", "seed": str(DEFAULT_SEED)}
    assert not page.is_checked("#refine")
    expect(page.locator("#speed-shown")).to_have_text("1.41 ×")
    expect(page.locator("#count")).to_have_text("15 of 20,000 characters")
    expect(page.locator("#examples")).to_be_hidden()
    expect(page.locator("#voice")).to_have_value("warm_2")
