"""Pages of other servers, in a real browser, that call the gateway as OpenAI's own client in JavaScript does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gateway.process import RunningGateway, running_gateway
from gateway.settings import parse
from tests.client.fake_synthesis import SAMPLES_PER_CHARACTER

KEY = "a-key-of-sixteen-characters"

# With the headers of the package `openai` for JavaScript. A refusal of the browser comes as a TypeError.
SPEAK = """
async ([url, key, input]) => {
  const lang = { "x-stainless-lang": "js", "x-stainless-runtime": "browser:chrome", "x-stainless-arch": "unknown" };
  const about = { "x-stainless-os": "Unknown", "x-stainless-package-version": "6.9.0", "x-stainless-retry-count": "0" };
  const own = { "openai-organization": "mine", "x-request-id": "mine-1", accept: "application/octet-stream" };
  const headers = { ...lang, ...about, ...own, "content-type": "application/json", authorization: `Bearer ${key}` };
  const body = { model: "tts-1", voice: "alloy", input, response_format: "pcm", instructions: "Whisper.", seed: 7 };
  try {
    const answer = await fetch(`${url}/v1/audio/speech`, { method: "POST", headers, body: JSON.stringify(body) });
    const names = ["x-request-id", "x-seed", "x-sample-rate", "x-ignored", "x-ai-generated", "retry-after"];
    const told = names.map((name) => answer.headers.get(name));
    return [answer.status, (await answer.arrayBuffer()).byteLength, ...told];
  } catch (error) {
    return error.name;
  }
}
"""


@pytest.fixture(scope="module")
def page(browser, gateway):
    """A page of `gateway`, which is another server than the ones that are called: its port is another one."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(gateway.url + "/health")  # without the page's own policy
    yield page
    context.close()


@contextmanager
def called(server, tmp_path, *origins, keys="") -> Iterator[RunningGateway]:
    flags = [flag for origin in origins for flag in ("--cors-origin", origin)]
    with running_gateway(server.grpc_url, tmp_path / "gateway.log", *flags, keys=keys) as running:
        yield running


def speak(page, running, text="Hello"):
    return page.evaluate(SPEAK, [running.url, KEY, text])


@pytest.mark.parametrize("written", ["{}", "{}/", "*"])
@pytest.mark.parametrize("keys", ["", KEY], ids=["open", "locked"])
def test_a_page_that_is_named_speaks_with_the_headers_of_openais_client(page, gateway, server, tmp_path, written, keys):
    with called(server, tmp_path, written.format(gateway.url), keys=keys) as running:
        num_bytes = 2 * len("Hello") * SAMPLES_PER_CHARACTER
        assert speak(page, running) == [200, num_bytes, "mine-1", "7", "24000", "instructions", "true", None]
        status, _, *told = speak(page, running, "fail UNAVAILABLE the queue is full; try again later")
        assert (status, told[-1]) == (503, "1")


def test_a_page_that_is_not_named_is_refused(page, server, tmp_path):
    with called(server, tmp_path, "https://example.org") as running:
        assert speak(page, running) == "TypeError"


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://Example.org/", "https://example.org"),
        ("https://example.org:443", "https://example.org"),
        ("http://example.org:80/", "http://example.org"),
        ("http://example.org:443", "http://example.org:443"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("*", "*"),
    ],
)
def test_origins_are_kept_as_browsers_write_them(written, origin):
    assert parse(["--cors-origin", written], {}).cors_origins == [origin]


@pytest.mark.parametrize("written", ["example.org", "https://", "https://example.org/x", "http://[", "http://a:b", ""])
def test_what_is_no_origin_is_refused(written, capsys):
    with pytest.raises(SystemExit):
        parse(["--cors-origin", written], {})
    assert "allowed is SCHEME://HOST[:PORT]" in capsys.readouterr().err
