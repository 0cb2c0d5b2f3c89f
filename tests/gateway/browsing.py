"""The web page in a real browser: opening it, and what its tests do and read again and again."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import av
import numpy as np
from playwright.sync_api import Browser, BrowserContext, Page, Request, expect

from tests.client.fake_synthesis import SAMPLE_RATE, SAMPLES_PER_CHARACTER

PATIENCE_MS = 30_000  # a busy machine is slow, and no test is about how long something takes
TEXT = "Good morning."
TONE_HZ = 440
STREAM = {"response_format": "pcm", "stream_format": "sse", "word_times": True}  # as the page asks for speech

# What a listener of the element would hear, gathered in `window.heard` as it plays.
LISTEN = """
() => {
  const context = new AudioContext();
  const analyser = new AnalyserNode(context, { fftSize: 4096 });
  context.createMediaStreamSource(document.querySelector("#audio").srcObject).connect(analyser);
  const samples = new Float32Array(analyser.fftSize), pitches = new Float32Array(analyser.frequencyBinCount);
  window.heard = { loudest: 0, pitch: 0 };
  setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    analyser.getFloatFrequencyData(pitches);
    heard.loudest = Math.max(...samples.map(Math.abs));
    heard.pitch = pitches.indexOf(Math.max(...pitches)) * context.sampleRate / analyser.fftSize;
  }, 50);
}
"""


@contextmanager
def opened(browser: Browser, url: str, **settings) -> Iterator[Page]:
    """The page in a fresh profile; in the end, whatever it did was in order."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | settings)
    context.set_default_timeout(PATIENCE_MS)
    wrong = watched(context, url)
    page = context.new_page()
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert not wrong


def watched(context: BrowserContext, url: str) -> list[str]:
    """Filled with what a page must never do; answers that say no are the business of each test."""
    wrong: list[str] = []
    context.on("weberror", lambda found: wrong.append(str(found.error)))
    context.on("console", lambda found: found.type in ("error", "warning") and wrong.append(found.text))
    context.on("request", lambda request: is_elsewhere(request, url) and wrong.append(request.url))
    refused = "Failed to load resource:"
    context.on("console", lambda found: found.text.startswith(refused) and wrong.remove(found.text))
    return wrong


def is_elsewhere(request: Request, url: str) -> bool:
    found = urlsplit(request.url)
    return found.scheme not in ("blob", "data") and found.netloc != urlsplit(url).netloc


def speak(page: Page, text: str = TEXT) -> None:
    """From the click to the file in the player."""
    page.fill("#input", text)
    page.click("#speak")
    expect(page.locator("#status")).to_have_text(f"Done: {seconds(text):.1f} s of speech.")


def start_speaking(page: Page, text: str) -> None:
    """Until something is heard."""
    page.fill("#input", text)
    page.click("#speak")
    wait_until_heard(page)


def wait_until_heard(page: Page) -> None:
    page.wait_for_function("() => !document.querySelector('#audio').paused")
    page.evaluate(LISTEN)
    page.wait_for_function("() => heard.loudest > 0.4")


def seconds(text: str) -> float:
    return len(text) * SAMPLES_PER_CHARACTER / SAMPLE_RATE


def sent(request: Request) -> dict:
    return json.loads(request.post_data)


def is_speech(request: Request) -> bool:
    return request.url.endswith("/v1/audio/speech")


def downloaded(page: Page) -> tuple[str, bytes]:
    """Name and content of the file that the button gives."""
    with page.expect_download() as download:
        page.click("#download")
    return download.value.suggested_filename, download.value.path().read_bytes()


def decoded(data: bytes) -> tuple[np.ndarray, int]:
    with av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler("flt", "mono", container.streams.audio[0].rate)
        frames = [part for frame in [*container.decode(audio=0), None] for part in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


def pitch(audio: np.ndarray, rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio, 2**18)).argmax() * rate / 2**18)


def recording(length_s: float = 2.0, rate: int = 16_000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, rate, 0, "NONE", ""))
        writer.writeframes((9000 * np.sin(np.arange(int(length_s * rate)) / 20)).astype("<i2").tobytes())
    return file.getvalue()


def clone(page: Page, name: str) -> dict:
    """Clone a voice from a file; the answer of the server."""
    page.click("#cloning > summary")
    page.set_input_files("#clone-file", {"name": "voice.wav", "mimeType": "audio/wav", "buffer": recording()})
    page.fill("#clone-name", name)
    page.fill("#clone-transcript", "What is said.")
    page.check("#consent")
    with page.expect_response("**/v1/audio/voices") as answer:
        page.click("#clone")
    expect(page.locator("#clone-status")).to_have_text(f"“{name}” is ready, and chosen above.")
    return answer.value.json()


def kept(page: Page) -> str:
    return page.evaluate("() => JSON.stringify(localStorage)")
