"""The dialogue of the page: lines with a voice each, spoken as one request."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.client.fake_synthesis import DEFAULT_SEED
from tests.gateway.browsing import STREAM, clone, is_speech, seconds, sent

TEXTS = ["Who is there?", "It is me.", "Come in."]


@pytest.fixture
def page(page: Page) -> Page:
    """Two voices, and two empty lines."""
    write(page)
    return page


def write(page: Page, *texts: str) -> None:
    page.get_by_role("radio", name="Dialogue").check(force=True)
    expect(page.locator(".turns li")).to_have_count(2)
    for number, text in enumerate(texts, 1):
        if number > 2:
            page.get_by_role("button", name="Add a line").click()
        page.get_by_role("textbox", name=f"Line {number}").fill(text)


def lines(page: Page) -> list[tuple[str, str]]:
    return [
        (row.locator("select").input_value(), row.locator("textarea").input_value())
        for row in page.locator(".turns li").all()
    ]


def test_lines_are_spoken_as_one_each_in_its_voice(page):
    write(page, *TEXTS)
    page.get_by_role("combobox", name="Voice of line 3").select_option("warm, 低沉")
    with page.expect_request(is_speech) as request:
        page.click("#speak")
    voices = ["default", "warm_2", "warm_2"]
    turns = [{"voice": voice, "text": text} for voice, text in zip(voices, TEXTS, strict=True)]
    assert sent(request.value) == {"model": "chattts", "input": turns, **STREAM}
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(chr(10).join(TEXTS)):.1f} s of speech.")
    expect(page.locator("#count")).to_have_text("30 of 20,000 characters")


def test_enter_begins_a_line_and_a_button_deletes_one(page):
    page.get_by_role("textbox", name="Line 1").fill("One.")
    page.keyboard.press("Enter")
    page.keyboard.type("Two.")
    assert lines(page) == [("default", "One."), ("warm_2", "Two."), ("warm_2", "")]
    page.get_by_role("button", name="Delete line 1").click()
    assert lines(page) == [("warm_2", "Two."), ("warm_2", "")]
    expect(page.get_by_role("textbox", name="Line 1")).to_be_focused()


def test_lines_without_text_are_not_sent(page):
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(sent(request)["input"]))
    page.click("#speak")
    expect(page.locator("#input-error")).to_have_text("Type something to say first.")
    expect(page.get_by_role("textbox", name="Line 1")).to_be_focused()
    page.get_by_role("textbox", name="Line 2").fill("Anybody?")
    page.press(".turns", "Control+Enter")
    expect(page.locator("#status")).to_contain_text("Done")
    assert requests == [[{"voice": "warm_2", "text": "Anybody?"}]]


def test_a_dialogue_survives_a_reload_and_comes_back_from_the_history(page):
    page.get_by_role("button", name="An example").click()
    example = lines(page)
    assert len(example) == 3
    page.click("#speak")
    expect(page.locator("#history .text")).to_have_text(" – ".join(text for _, text in example))
    expect(page.locator("#history .help")).to_have_text(f"Dialogue · seed {DEFAULT_SEED}")
    page.reload()
    expect(page.locator(".turns li")).to_have_count(3)
    assert lines(page) == example
    page.get_by_role("radio", name="One voice").check(force=True)
    expect(page.locator("#input")).to_be_visible()
    page.click("#history .entry")
    expect(page.locator(".turns")).to_be_visible()
    assert lines(page) == example


def test_a_line_speaks_in_a_cloned_voice(page):
    made = clone(page, "Anna")
    page.get_by_role("combobox", name="Voice of line 1").select_option("Anna")
    page.get_by_role("textbox", name="Line 1").fill("Hello.")
    with page.expect_request(is_speech) as request:
        page.click("#speak")
    assert sent(request.value)["input"] == [{"voice": {"id": made["id"]}, "text": "Hello."}]


def test_the_line_that_the_server_blames_is_gone_to(page):
    write(page, "fail INVALID_ARG input 'turns' is '!'; allowed is for turn 2: text with at least one word", "", "!")
    page.click("#speak")
    expect(page.locator("#input-error")).to_contain_text("There is nothing in this text to say.")
    expect(page.locator("#input-error [lang=en]")).to_contain_text("for turn 2")
    expect(page.get_by_role("textbox", name="Line 3")).to_be_focused()


def test_tags_go_into_the_line_that_was_written_in(page):
    write(page, *TEXTS[:2])
    page.get_by_role("textbox", name="Line 1").press("End")
    page.click("[data-tag='[laugh]']")
    assert [text for _, text in lines(page)] == ["Who is there?[laugh]", "It is me."]
