"""What goes wrong on the page: beside which field it is said, and in whose words; keys of the API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from gateway.process import RunningGateway, running_gateway
from tests.client.fake_synthesis import CHARACTERS_PER_CHUNK, SAMPLES_PER_CHARACTER
from tests.gateway.browsing import (
    TEXT,
    decoded,
    downloaded,
    is_speech,
    kept,
    opened,
    seconds,
    speak,
)

KEY = "a-key-of-sixteen-characters"
NOTHING_TO_SAY = "INVALID_ARG input 'text' is '!'; allowed is text with at least one word, Chinese character or number"
FIELDS = [("temperature", "#temperature"), ("text", "#input"), ("speaker", "[type=radio][value=default]")]
FAILURES = [
    ("INTERNAL the decoder fell over", "Something failed in the server."),
    ("UNAVAILABLE the queue is full; try again later", "The server is full; try again in a moment."),
]

# A connection that is lost behind the headers of the answer.
BREAK_OFF = """
() => {
  const body = () => new ReadableStream({ start: (stream) => stream.error(new TypeError("network error")) });
  window.fetch = async () => new Response(body());
}
"""


@pytest.fixture(scope="module")
def locked(server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that asks for a key."""
    log = tmp_path_factory.mktemp("locked") / "gateway.log"
    with running_gateway(server.grpc_url, log, keys=KEY) as running:
        yield running


@pytest.mark.parametrize(("blamed", "shown"), FIELDS)
def test_an_error_is_shown_at_its_field(page, blamed, shown):
    page.fill("#input", f"fail INVALID_ARG input '{blamed}' is bad; allowed is good")
    page.click("#speak")
    field = page.locator("[data-field]").filter(has=page.locator(f"{shown}:focus"))
    expect(field.locator("[aria-invalid=true]")).to_be_visible()
    error = field.locator(".error")
    expect(error).to_contain_text("The server does not take this")
    expect(error.locator("[lang=en]")).to_contain_text("is bad; allowed is good")
    assert [text for text in page.locator(".error").all_inner_texts() if text] == [error.inner_text()]
    expect(page.locator("#speak")).to_have_text("Speak")
    page.locator(shown).dispatch_event("input", {"bubbles": True})
    expect(error).to_be_empty()


@pytest.mark.parametrize(("failure", "own"), FAILURES)
def test_an_error_without_a_field_is_shown_at_the_button(page, failure, own):
    page.fill("#input", f"fail {failure}")
    page.click("#speak")
    expect(page.locator("#general-error")).to_contain_text(own)
    expect(page.locator("#general-error [lang=en]")).to_contain_text(failure.partition(" ")[2])


def test_an_error_follows_the_language_of_the_page(page):
    page.fill("#input", f"fail {NOTHING_TO_SAY}")
    page.click("#speak")
    expect(page.locator("#input-error")).to_contain_text("There is nothing in this text to say.")
    page.click("#switch-language")
    expect(page.locator("#input-error")).to_contain_text("这段文本中没有可朗读的内容。")
    expect(page.locator("#input-error [lang=en]")).to_contain_text("at least one word")


def test_what_came_before_an_error_is_kept(page, tmp_path):
    text = f"hold {tmp_path / 'end'}"
    spoken = (len(text) - 1) // CHARACTERS_PER_CHUNK * CHARACTERS_PER_CHUNK  # all but the last chunk
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#length")).to_have_text(f"{seconds(spoken * 'x'):.1f} s")
    (tmp_path / "end").touch()
    expect(page.locator("#general-error")).to_contain_text("The server broke off")
    expect(page.locator("#general-error [lang=en]")).to_contain_text("the text was held")
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
        expect(page.locator("#key-error")).to_contain_text("The server does not know this key.")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator(".voice")).to_have_count(2)
        expect(page.locator("#key-form")).to_be_hidden()
        speak(page)
        page.click("#programs > summary")
        for name in ("#curl", "#python"):
            expect(page.locator(name)).to_contain_text("CHATTTS_API_KEY")
            expect(page.locator(name)).not_to_contain_text(KEY)
        assert KEY not in kept(page)
        page.reload()
        expect(page.locator(".voice")).to_have_count(2)


def test_speech_that_waited_for_a_key_goes_on(browser, locked):
    with opened(browser, locked.url) as page:
        expect(page.locator("#key")).to_be_focused()
        page.fill("#input", TEXT)
        page.click("#speak")
        expect(page.locator("#speak")).to_have_text("Speak")
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator("#status")).to_have_text(f"Done: {seconds(TEXT):.1f} s of speech.")
