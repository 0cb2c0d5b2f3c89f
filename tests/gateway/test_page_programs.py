"""Programs that the page writes, run as they stand."""

from __future__ import annotations

import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.gateway.browsing import (
    decoded,
    seconds,
)

LARGE_SEED = 2**53 + 1  # no number of JavaScript
DIFFICULT = """It's "so" \\ $HOME `date` !1 你好 {x}\n%s \\n"""


@pytest.mark.parametrize("kind", ["text", "dialogue"])
@pytest.mark.parametrize("name", ["curl", "python"])
def test_programs_for_the_settings_of_now_run_as_they_stand(page, tmp_path, name, kind):
    page.click("#programs > summary")
    expect(page.locator(f"#{name}")).to_contain_text("Good morning, and welcome to our little show.")
    if kind == "dialogue":
        page.get_by_role("radio", name="Dialogue").check(force=True)
        page.get_by_role("textbox", name="Line 2").fill(DIFFICULT)
    else:
        page.fill("#input", DIFFICULT)
    page.fill("#seed", str(LARGE_SEED))
    page.fill("#speed", "1")
    page.uncheck("#refine")
    program = page.text_content(f"#{name}")
    assert str(LARGE_SEED) in program
    command = ["bash", "-c", program] if name == "curl" else [sys.executable, "-c", program]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    audio, rate = decoded((tmp_path / "speech.wav").read_bytes())
    assert len(audio) / rate == pytest.approx(seconds(DIFFICULT) / 2, abs=0.09)  # at twice the speed


def test_a_program_is_copied(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#programs > summary")
    page.get_by_role("button", name="Copy the command for curl").click()
    expect(page.locator("#copied")).to_have_text("Copied.")
    assert page.evaluate("() => navigator.clipboard.readText()") == page.text_content("#curl")
