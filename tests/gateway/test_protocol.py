"""HTTP as clients of all kinds send it, byte by byte and by Java's own client."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import requests

from gateway.protocol import HEADERS_TIMEOUT_S, MAX_HEADER_BYTES
from tests.client.fake_synthesis import SAMPLES_PER_CHARACTER

TEXT = "Hello"
BODY = json.dumps({"model": "chattts", "input": TEXT, "response_format": "pcm"}).encode()
NUM_BYTES = 2 * SAMPLES_PER_CHARACTER * len(TEXT)
HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
# What Java's client sends with its first request.
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAQBAAAAAAUAAEAA\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
WITH_LENGTH = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)

JAVA = """
import java.io.*;
import java.net.URI;
import java.net.http.*;

public class Speak {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        HttpRequest.BodyPublisher chunked =
            HttpRequest.BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(given[1].getBytes()));
        for (var body : new HttpRequest.BodyPublisher[] {HttpRequest.BodyPublishers.ofString(given[1]), chunked}) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0] + "/v1/audio/speech"))
                .header("Content-Type", "application/json").POST(body).build();
            HttpResponse<byte[]> answer = client.send(request, HttpResponse.BodyHandlers.ofByteArray());
            System.out.println(answer.statusCode() + " " + answer.body().length);
        }
    }
}
"""


@contextmanager
def connected(gateway):
    """A connection on which waiting too long is an error."""
    address = urlsplit(gateway.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        yield connection


def answered(gateway, request: bytes) -> tuple[bytes, bytes]:
    """Headers and body of what is answered until the gateway closes."""
    with connected(gateway) as connection:
        connection.sendall(request)
        head, _, body = b"".join(iter(lambda: connection.recv(65_536), b"")).partition(b"\r\n\r\n")
    return head, body


def unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return b"".join(parts)


@pytest.mark.parametrize("body", [CHUNKED, WITH_LENGTH], ids=["chunked", "with length"])
def test_a_client_that_offers_http2_is_answered_in_http1(gateway, body):
    close = H2C.replace(b"Upgrade,", b"Upgrade, close,")
    head, audio = answered(gateway, HEAD + close + body)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert len(unchunked(audio)) == NUM_BYTES


def test_the_connection_of_a_client_that_offers_http2_is_kept(gateway):
    with connected(gateway) as connection:
        for _ in range(2):
            connection.sendall(HEAD + H2C + WITH_LENGTH)
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                answer += connection.recv(65_536)
            assert len(unchunked(answer.partition(b"\r\n\r\n")[2])) == NUM_BYTES


def test_offers_of_other_protocols_are_no_news(gateway):
    for upgrade in (b"h2c", b"websocket"):
        head, _ = answered(
            gateway,
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, Upgrade\r\nUpgrade: %s\r\n\r\n" % upgrade,
        )
        assert head.startswith(b"HTTP/1.1 200 ")
    assert "pgrade" not in gateway.log.read_text()


@pytest.mark.parametrize("target", ["http://localhost/health", "HTTP://localhost:80/health", "http://localhost"])
def test_a_target_as_proxies_write_it_is_that_path(gateway, target):
    head, _ = answered(gateway, f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert head.startswith(b"HTTP/1.1 200 ")


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(gateway):
    head, _, body = (HEAD + b"Expect: 100-continue\r\nConnection: close\r\n" + WITH_LENGTH).partition(b"\r\n\r\n")
    with connected(gateway) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(shutil.which("java") is None, reason="no JDK is installed")
def test_java_speaks(gateway, tmp_path):
    source = tmp_path / "Speak.java"
    source.write_text(JAVA, encoding="utf-8")
    said = subprocess.run(["java", source, gateway.url, BODY.decode()], capture_output=True, text=True, check=False)
    assert said.stdout.splitlines() == [f"200 {NUM_BYTES}"] * 2, said.stderr


def test_a_client_of_http_1_0_gets_audio_and_nothing_else(gateway):
    head, audio = answered(gateway, HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + WITH_LENGTH)
    assert b"chunked" not in head.lower()
    assert len(audio) == NUM_BYTES


def test_headers_that_never_end_are_refused(gateway):
    head, body = answered(gateway, HEAD + b"X-Long: " + b"a" * (MAX_HEADER_BYTES + 1))
    assert head.startswith(b"HTTP/1.1 400 ")
    assert f"more than {MAX_HEADER_BYTES} bytes" in json.loads(body)["error"]["message"]


def test_headers_and_bodies_have_their_time(gateway):
    """At once, so that the test waits once: nothing at all, and requests that stop amid headers and body."""
    with connected(gateway) as silent, connected(gateway) as slow, connected(gateway) as stalled:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(65_536).startswith(b"HTTP/1.1 200 ")
        slow.sendall(HEAD)
        stalled.sendall(HEAD + b"Connection: close\r\n" + WITH_LENGTH[:-1])
        for connection, message in ((slow, b"the headers did not come within"), (stalled, b"nothing of the body came")):
            connection.settimeout(3 * HEADERS_TIMEOUT_S)
            answer = b"".join(iter(lambda: connection.recv(65_536), b""))  # noqa: B023 - called at once
            assert b"HTTP/1.1 408 " in answer
            assert message in answer
        silent.settimeout(3 * HEADERS_TIMEOUT_S)
        assert silent.recv(1) == b""


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/audio/speech HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nno size\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_told_so(gateway, nonsense):
    head, body = answered(gateway, nonsense)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    assert requests.get(gateway.url + "/health", timeout=30).ok
    assert "Traceback" not in gateway.log.read_text()
