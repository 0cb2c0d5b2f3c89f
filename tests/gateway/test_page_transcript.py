"""The text that is spoken, on the page: the word that is heard is marked and gone to, what was not spoken is told."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.client.fake_synthesis import SAMPLE_RATE, SAMPLES_PER_CHARACTER
from tests.gateway.browsing import is_speech, opened, seconds, sent, speak, start_speaking, wait_until_heard

# The fake models time lines as words.
LINES = ["Good morning, dear listeners, and welcome to our little show.", "How are you?", "The end."]
ON_PAGE = [line.rstrip(".?") for line in LINES]
LETTERS = "not spoken, as the model speaks Chinese and English: 1,{} letters (Arabic)"

# The places of words that were said, in the text as it was written.
PLACES = """
async ([text, sentences]) => {
  const { Alignment } = await import("/alignment.js");
  const alignment = new Alignment(text);
  return sentences.map((words) => alignment.places(words).map((place) => place && text.slice(...place)));
}
"""
# All marks there are from now on, in `window.marks`, and whether the text ever changed.
WATCH = """
() => {
  const box = document.querySelector("#transcript"), text = box.textContent;
  window.watching?.disconnect();
  Object.assign(window, { marks: [], changed: false });
  window.watching = new MutationObserver(() => {
    const mark = box.querySelector(".now")?.textContent ?? null;
    if (mark !== (marks.at(-1) ?? null)) marks.push(mark);
    changed ||= box.textContent !== text;
  });
  watching.observe(box, { subtree: true, childList: true, characterData: true, attributeFilter: ["class"] });
}
"""


def starts() -> list[float]:
    """Of LINES, in s."""
    first = [sum(len(line) + 1 for line in LINES[:number]) for number in range(len(LINES))]
    return [characters * SAMPLES_PER_CHARACTER / SAMPLE_RATE for characters in first]


def marked(page: Page, lines: list[str]) -> bool:
    """Whether `lines` were marked in their order, as many as a busy machine shows, and in the end none."""
    *marks, last = page.evaluate("() => marks")
    return bool(marks) and marks == [line for line in lines if line in marks] and last is None


def current_time(page: Page) -> float:
    return page.evaluate("() => document.querySelector('#audio').currentTime")


def words(page: Page) -> list[str]:
    return page.locator("#transcript span").all_inner_texts()


@pytest.mark.parametrize(
    ("text", "said", "places"),
    [
        ("Good morning!", ["good morning"], ["Good morning"]),
        ("It costs $5. Five came.", ["it costs five dollars", "five came"], ["It costs 5 5", "Five came"]),
        (
            "1995! 2005! Oh.",
            ["nineteen ninety five", "two thousand five", "oh"],
            ["1995 1995 1995", "2005 2005 2005", "Oh"],
        ),
        ("Well, it’s I.", ["um well you know its i"], ["Well Well Well Well it’s I"]),
        ("你好，2024年。好", ["你 好 二 零 二 四 年", "好"], ["你 好 2024 2024 2024 2024 年", "好"]),
        ("Hi [laugh] привет [pause 1.5s] you.", ["hi you"], ["Hi you"]),
        ("On nginx. [laugh] On and on.", ["on engine x", "on and on"], ["On nginx nginx", "On and on"]),
        ("Ｏｎｅ two " + "three " * 40 + "four.", ["one two"] + ["three"] * 40 + ["four"], None),
    ],
)
def test_words_as_they_were_written_are_found(page, text, said, places):
    """Words are divided by blanks; where a text has none of a kind, all places are the words themselves."""
    found = page.evaluate(PLACES, [text, [sentence.split() for sentence in said]])
    assert [" ".join(one) for one in found] == (places or ["Ｏｎｅ two", *said[1:]])


def test_a_code_that_is_spelled_is_one_place_and_signs_have_none(page):
    assert page.evaluate(PLACES, ["It is [spell A1].", [["it", "is", "a", "one"]]]) == [
        ["It", "is", "[spell A1]", "[spell A1]"]
    ]
    assert page.evaluate(PLACES, ["α", [["alpha"]]]) == [[None]]


def test_a_long_text_has_its_words_in_place(page):
    """Of 20,000 characters, a third of which nobody says."""
    sentence, code = "The quick brown fox jumps over dog {}. ", "x = y "
    text = "".join(sentence.format(number) + code * 3 for number in range(350))
    said = [["the", "quick", "brown", "fox", "jumps", "over", "dog", "some", "number"]] * 350
    found = page.evaluate(PLACES, [text, said])
    assert [one[:7] for one in found] == [["The", "quick", "brown", "fox", "jumps", "over", "dog"]] * 350


def test_the_word_that_is_heard_is_marked_while_speech_comes_and_when_it_is_played_again(page):
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(sent(request)))
    page.evaluate(WATCH)
    speak(page, "\n".join(LINES))
    assert marked(page, ON_PAGE)
    assert words(page) == ON_PAGE
    assert page.inner_text("#transcript") == "\n".join(LINES)
    page.evaluate(WATCH)
    page.click("#play")
    page.wait_for_function("() => document.querySelector('#audio').ended && marks.at(-1) === null")
    assert marked(page, ON_PAGE)
    assert not page.evaluate("() => changed")
    assert len(requests) == 1


def test_sound_does_not_wait_for_words(page, tmp_path):
    start_speaking(page, f"hold {tmp_path / 'end'}")
    expect(page.locator("#transcript")).to_have_text(f"hold {tmp_path / 'end'}")
    assert words(page) == []


def test_a_click_goes_to_a_word(page):
    speak(page, "\n".join(LINES))
    for number in (2, 0, 1):
        page.locator("#transcript span").nth(number).click()
        expect(page.locator("#transcript .now")).to_have_text(ON_PAGE[number])
        assert current_time(page) == pytest.approx(starts()[number], abs=2e-3)
    page.fill("#input", "Another one.")
    page.click("#speak")
    expect(page.locator("#transcript")).to_have_text("Another one.")


@pytest.mark.parametrize("way", ["a word", "the wave"])
@pytest.mark.parametrize("is_paused", [False, True])
def test_once_all_has_come_a_place_is_gone_to_before_all_was_heard(page, way, is_paused):
    requests = []
    page.on("request", lambda request: is_speech(request) and requests.append(request))
    page.fill("#input", "\n".join([*LINES, "x" * 500]))
    page.click("#speak")
    expect(page.locator("#status")).to_have_text("All of it has arrived; still playing …")
    wait_until_heard(page)
    if is_paused:
        page.click("#play")
    if way == "a word":
        page.locator("#transcript span").nth(2).click()
    else:
        page.locator("#seek").fill(str(starts()[2] + 0.01))
    expect(page.locator("#status")).to_have_text(re.compile("Done"))
    if is_paused:
        assert current_time(page) == pytest.approx(starts()[2], abs=0.02)
        expect(page.locator("#transcript .now")).to_have_text(ON_PAGE[2])
    else:
        page.wait_for_function("start => document.querySelector('#audio').currentTime > start + 1", arg=starts()[2])
    assert page.evaluate("() => document.querySelector('#audio').paused") == is_paused
    assert len(requests) == 1


def test_arrow_keys_go_from_word_to_word(page):
    speak(page, "\n".join(LINES))
    page.focus("#transcript")
    for key, number in [
        *(("ArrowRight", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("ArrowLeft", 0)),
        *(("End", 2), ("ArrowRight", 2), ("Home", 0)),
    ]:
        page.keyboard.press(key)
        expect(page.locator("#transcript .now")).to_have_text(ON_PAGE[number])
        assert current_time(page) == pytest.approx(starts()[number], abs=2e-3)


def test_the_wave_moves_the_mark(page):
    speak(page, "\n".join(LINES))
    page.evaluate("time => { document.querySelector('#audio').currentTime = time; }", starts()[1] + 0.05)
    expect(page.locator("#transcript .now")).to_have_text(ON_PAGE[1])


def test_turns_of_a_dialogue_are_lines(page):
    page.get_by_role("radio", name="Dialogue").check(force=True)
    for number, text in enumerate(LINES[:2], 1):
        page.get_by_role("textbox", name=f"Line {number}").fill(text)
    page.evaluate(WATCH)
    page.click("#speak")
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(chr(10).join(LINES[:2])):.1f} s of speech.")
    assert page.inner_text("#transcript") == "\n".join(LINES[:2])
    assert marked(page, ON_PAGE[:2])
    page.locator("#transcript span").last.click()
    assert current_time(page) == pytest.approx(starts()[1], abs=2e-3)


def test_words_follow_the_speed(page):
    page.fill("#speed", "1")  # twice as fast
    page.fill("#input", "\n".join(LINES))
    page.click("#speak")
    expect(page.locator("#status")).to_contain_text("Done")
    page.locator("#transcript span").nth(2).click()
    assert current_time(page) == pytest.approx(starts()[2] / 2, abs=2e-3)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_the_marked_word_stays_in_view_and_the_page_where_it_is(browser, gateway, motion):
    """Who wants less motion sees no scrolling, and every mark all the same."""
    lines = [f"Line {number}." for number in range(40)]
    with opened(browser, gateway.url, reduced_motion=motion, viewport={"width": 390, "height": 700}) as page:
        page.evaluate("""() => {
            window.behaviours = new Set();
            const scrollTo = Element.prototype.scrollTo;
            Element.prototype.scrollTo = function (to) { behaviours.add(to.behavior); scrollTo.call(this, to); };
        }""")
        page.evaluate(WATCH)
        speak(page, "\n".join(lines))
        assert marked(page, [line.rstrip(".") for line in lines])
        page.focus("#transcript")
        place = page.evaluate("() => scrollY")
        page.keyboard.press("End")
        expect(page.locator("#transcript .now")).to_be_in_viewport(ratio=1)
        page.keyboard.press("Home")
        expect(page.locator("#transcript .now")).to_be_in_viewport(ratio=1)
        assert page.evaluate("() => scrollY") == place
        assert page.evaluate("() => [...behaviours]") == [{"reduce": "instant"}.get(motion, "smooth")]


def test_the_mark_is_seen_in_colours_of_ones_own(browser, gateway):
    with opened(browser, gateway.url, forced_colors="active") as page:
        speak(page, "\n".join(LINES))
        page.locator("#transcript span").first.click()
        colours = [
            page.locator(f"#transcript {span}").evaluate("one => getComputedStyle(one).backgroundColor")
            for span in (".now", "span:last-child")
        ]
        assert colours[0] != colours[1]


def test_screen_readers_are_told_nothing_while_words_are_marked(page):
    speak(page, LINES[0])
    assert page.evaluate("() => document.querySelector('#transcript').closest('[aria-live], [role=status]')") is None
    expect(page.get_by_role("group", name="The text that is spoken")).to_be_visible()


# What the server says beside speech


def test_what_was_not_spoken_is_told_beside_the_result_in_the_language_of_the_page(page):
    speak(page, "a ☃")
    warning = page.locator("#warning")
    expect(warning).to_have_text("The server has a remark: not all")
    expect(warning.locator("[lang=en]")).to_have_text("not all")
    expect(warning).to_have_role("status")
    assert [text for text in page.locator(".error").all_inner_texts() if text] == []
    page.click("#switch-language")
    expect(warning).to_have_text("服务器提示： not all")
    page.fill("#input", "fail INTERNAL the decoder fell over")
    page.click("#speak")
    expect(warning).to_be_hidden()


@pytest.mark.parametrize(
    ("warning", "told", "said"),
    [
        (LETTERS.format("234"), {"count": "1,234"}, LETTERS.format("234")),
        (
            "; ".join(f"for turn {number}: {LETTERS.format('000')}" for number in (1, 2)),
            {"count": "2,000"},
            "; ".join(f"for turn {number}: {LETTERS.format('000')}" for number in (1, 2)),
        ),
    ],
)
def test_letters_that_were_not_spoken_are_counted(page, warning, told, said):
    remark = page.evaluate("async warning => (await import('/warnings.js')).remarkOf(warning)", warning)
    assert remark == {"told": ["warning_letters", told], "said": said}
