"""Who may ask: keys, limits, hosts, other sites."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

import pytest
import requests

from gateway.access import ANYBODY, Access
from gateway.errors import GatewayError
from gateway.process import running_gateway
from gateway.settings import Settings, SettingsError, digest, parse, read_keys

KEY, OTHER = "a-key-of-sixteen-characters", "another-key-of-many-characters"
BODY = {"model": "chattts", "input": "Hello", "response_format": "pcm"}
PRIVATE = ["/v1/models", "/v1/models/chattts", "/v1/audio/voices", "/metrics"]


@pytest.fixture(scope="module")
def locked(server, tmp_path_factory):
    log = tmp_path_factory.mktemp("locked") / "gateway.log"
    flags = ["--max-concurrent", "2", "--cors-origin", "https://example.org"]
    with running_gateway(server.grpc_url, log, *flags, keys=f"anna={KEY},{OTHER}") as gateway:
        yield gateway


def headers(key):
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", PRIVATE)
@pytest.mark.parametrize(
    "sent", [{}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}, headers("wrong"), headers("")]
)
def test_nothing_is_told_without_a_key(locked, path, sent):
    answer = requests.get(locked.url + path, headers=sent, timeout=30)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, OTHER])
@pytest.mark.parametrize("path", PRIVATE)
def test_every_key_opens(locked, path, key):
    assert requests.get(locked.url + path, headers=headers(key), timeout=30).ok


def test_nothing_is_spoken_without_a_key(locked):
    assert requests.post(locked.url + "/v1/audio/speech", json=BODY, timeout=30).status_code == 401
    assert requests.post(locked.url + "/v1/audio/speech", json=BODY, headers=headers(KEY), timeout=30).ok


def test_metrics_can_be_told_without_a_key(server, tmp_path):
    """As Prometheus in Compose and Kubernetes asks for them, which has none."""
    with running_gateway(server.grpc_url, tmp_path / "log", "--public-metrics", keys=KEY) as gateway:
        answers = [requests.get(gateway.url + path, timeout=30).status_code for path in ("/metrics", *PRIVATE[:3])]
    assert answers == [200, 401, 401, 401]


@pytest.mark.parametrize("path", ["/", "/health", "/health/ready"])
def test_page_and_health_need_no_key(locked, path):
    assert requests.get(locked.url + path, timeout=30).status_code == 200


def test_one_key_holds_so_many_at_once(locked, tmp_path):
    def hold(number):
        body = BODY | {"input": f"endless {tmp_path / str(number)}"}
        return requests.post(locked.url + "/v1/audio/speech", json=body, headers=headers(KEY), stream=True, timeout=30)

    with hold(1) as first, hold(2) as second:
        assert (first.status_code, second.status_code) == (200, 200)
        third = hold(3)
        assert third.status_code == 429
        assert third.headers["retry-after"] == "1"
        assert third.json()["error"]["code"] == "rate_limit_exceeded"
        assert requests.post(locked.url + "/v1/audio/speech", json=BODY, headers=headers(OTHER), timeout=30).ok
    end = time.monotonic() + 20  # until both are noticed to have gone
    while not requests.post(locked.url + "/v1/audio/speech", json=BODY, headers=headers(KEY), timeout=30).ok:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_upload_is_refused_before_it_is_read(locked):
    """It never comes to its end, so whoever waits for that would wait for ever."""
    address = urlsplit(locked.url)
    head = "POST /v1/audio/voices HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 1000000\r\n\r\n--b\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/v1/audio/speech"])
def test_forms_of_other_sites_are_refused_where_no_key_is_asked_for(gateway, path):
    form = {"files": {"audio_sample": b"x"}, "data": {"name": "x"}}
    answer = requests.post(gateway.url + path, headers={"origin": "https://evil.example"}, timeout=30, **form)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "unknown_origin")
    own = requests.post(gateway.url + path, headers={"origin": gateway.url}, timeout=30, **form)
    assert own.status_code == 400


def test_other_sites_are_let_in_by_name_only(locked, gateway):
    def allowed(running, origin):
        sent = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        answer = requests.options(running.url + "/v1/audio/speech", headers=sent, timeout=30)
        return answer.headers.get("access-control-allow-origin")

    assert allowed(locked, "https://example.org") == "https://example.org"
    assert allowed(locked, "https://example.com") is None
    assert allowed(gateway, "https://example.org") is None


def test_a_name_of_another_site_that_leads_here_is_refused(gateway, locked):
    sent = {"host": "evil.example"}
    assert requests.get(gateway.url + "/health", headers=sent, timeout=30).status_code == 400
    assert requests.get(gateway.url + "/health", headers={"host": "localhost:1"}, timeout=30).ok
    assert requests.get(locked.url + "/health", headers=sent, timeout=30).ok  # there the keys decide


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/audio/voices", "/nothing/"])
def test_a_broken_host_does_no_harm_where_keys_decide(locked, path):
    sent = headers(KEY) | {"host": "["}
    answer = requests.post(locked.url + path, data=b"x", headers=sent, timeout=30)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in locked.log.read_text()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def spend(access, owner="anna"):
    with access.synthesis(owner):
        pass


def test_a_minute_has_so_many_requests():
    clock = Clock()
    access = Access(Settings(requests_per_minute=3), clock)
    for _ in range(3):
        spend(access)
    with pytest.raises(GatewayError) as raised:
        spend(access)
    assert raised.value.status == 429
    wait = int(raised.value.headers["retry-after"])
    spend(access, "bert")
    clock.now += wait
    spend(access)
    clock.now += 3600
    for _ in range(3):
        spend(access)
    with pytest.raises(GatewayError):
        spend(access)


def test_what_fails_gives_its_place_back():
    access = Access(Settings(max_concurrent=1))
    for _ in range(3):
        with pytest.raises(RuntimeError), access.synthesis("anna"):
            raise RuntimeError
    spend(access)


def test_without_keys_everybody_is_the_same_one():
    assert Access(Settings()).owner(None) == ANYBODY


def test_keys_are_read_with_names_and_comments():
    base64 = "c2l4dGVlbiBieXRlcyBvZiBzZWNyZXQ="
    text = f"# people\nanna = {KEY}\n\n{OTHER}, carl={KEY}#2  # the last\n{base64}\n"
    assert read_keys(text, "file") == {
        digest(KEY): "anna",
        digest(OTHER): f"key-{digest(OTHER).hex()[:8]}",
        digest(f"{KEY}#2"): "carl",
        digest(base64): f"key-{digest(base64).hex()[:8]}",
    }


@pytest.mark.parametrize("text", ["short", "anna=short", "", "# nothing", "ключ-ключ-ключ-ключ", "sixteen\tcharacters"])
def test_a_bad_key_is_refused_by_name(text):
    with pytest.raises(SettingsError, match="file") as raised:
        read_keys(text, "file")
    assert not text.strip("# ") or text not in str(raised.value)


def test_the_network_needs_keys_or_a_word():
    with pytest.raises(SettingsError, match=r"--host 0\.0\.0\.0 is open to the network"):
        parse(["--host", "0.0.0.0"], {})
    assert parse(["--host", "0.0.0.0"], {"CHATTTS_API_KEYS": KEY}).keys == {digest(KEY): f"key-{digest(KEY).hex()[:8]}"}
    assert parse(["--host", "0.0.0.0", "--anonymous"], {}).host == "0.0.0.0"
    assert parse([], {}).host == "127.0.0.1"


def test_keys_come_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"anna={KEY}\n")
    assert parse(["--keys-file", str(file)], {}).keys == {digest(KEY): "anna"}
    with pytest.raises(SettingsError, match="nowhere"):
        parse(["--keys-file", str(tmp_path / "nowhere")], {})


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "0"],
        ["--max-concurrent", "0"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--drain-timeout", "-1"],
        ["--max-upload-mib", "0"],
    ],
)
def test_a_setting_out_of_range_is_refused(flags):
    with pytest.raises(SettingsError, match="allowed is"):
        parse(flags, {})


@pytest.mark.parametrize("text", ["7", "x=1", "10=1", "7=0", "7=x"])
def test_a_bad_speed_tag_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        parse(["--speed-tag", text], {})
    assert "allowed is TAG=FACTOR" in capsys.readouterr().err


def test_the_first_error_of_a_command_line_ends_it(tmp_path):
    flags = ("--host", "0.0.0.0")
    with pytest.raises(SettingsError, match="open to the network"), running_gateway("h:1", tmp_path / "log", *flags):
        pass
