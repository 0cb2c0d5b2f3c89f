"""The page on small screens, for screen readers and keyboards, and within its own policy."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.gateway.browsing import (
    clone,
    downloaded,
    opened,
    speak,
)


def everything(page: Page) -> None:
    """Show all that the page has: all folds, a cloned voice, a history, a speech and what it leaves out, errors."""
    clone(page, "A voice with a rather long name")
    page.fill("#seed", str(2**63 - 1))
    speak(page, "A text that is long enough to have several lines on the screen of a small telephone. ☃")
    page.locator("#transcript span").first.click()
    expect(page.locator("#transcript .now")).to_be_visible()
    expect(page.locator("#warning")).to_be_visible()
    for fold in ("#details", "#advanced", "#programs"):
        page.click(f"{fold} > summary")
    page.fill("#input", "")
    page.click("#speak")
    page.click("#clone")
    expect(page.locator("#input-error")).not_to_be_empty()
    expect(page.locator("#clone-file-error")).to_be_visible()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_narrow_screen_is_enough(browser, gateway, language):
    with opened(browser, gateway.url, viewport={"width": 360, "height": 740}) as page:
        expect(page.locator(".voice")).to_have_count(2)
        everything(page)
        if language == "zh":
            page.click("#switch-language")
        for kind in ("", "dialogue"):
            page.check(f"[name=kinds][value='{kind}']", force=True)
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
            assert small_targets(page) == []


def small_targets(page: Page) -> list[str]:
    """What a finger might miss: visible controls of less than 44 by 44 pixels."""
    return page.evaluate("""() => {
        const controls = "button, select, summary, textarea, label.check, label.button, .voice label, .kinds label,"
            + "footer a, audio, input:not([type=checkbox], [type=radio], [type=file])";
        const found = [...document.querySelectorAll(controls)].filter((one) => one.checkVisibility());
        if (found.length < 25) throw new Error(`only ${found.length} controls`);
        const size = (one) => one.getBoundingClientRect();
        return found.filter((one) => size(one).height < 44 || size(one).width < 44).map((one) => one.outerHTML);
    }""")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_nothing(browser, gateway, language, scheme):
    with opened(browser, gateway.url, color_scheme=scheme) as page:
        expect(page.locator(".voice")).to_have_count(2)
        everything(page)
        page.evaluate("() => { document.querySelector('#key-form').hidden = false; }")
        if language == "zh":
            page.click("#switch-language")
        expect(page.locator("html")).to_have_attribute("lang", {"en": "en", "zh": "zh-CN"}[language])
        for kind in ("", "dialogue"):
            page.check(f"[name=kinds][value='{kind}']", force=True)
            found = Axe().run(page).response
            assert {"color-contrast", "label"} <= {rule["id"] for rule in found["passes"]}
            assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found["violations"]] == []


def test_every_control_is_reached_by_the_keyboard_in_the_order_of_the_page(page):
    page.click("#cloning > summary")
    page.click("#advanced > summary")
    page.click("#programs > summary")
    focusable = page.evaluate("""() => [
        ...document.querySelectorAll("button, input, select, textarea, summary, a, pre")]
        .filter((one) => one.checkVisibility() && !one.disabled && (one.type !== "radio" || one.checked))
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
        expect(page.locator(".voice")).to_have_count(2)
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
