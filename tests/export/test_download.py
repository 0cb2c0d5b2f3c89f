import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from chattts_serving.errors import ConfigError
from export.download import ATTEMPTS, CHUNK_BYTES, download_checkpoint

FILES = {"asset/a.bin": bytes(range(256)) * 1_600, "asset/gpt/b.json": b'{"b": 1}'}
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Hub(ThreadingHTTPServer):
    """A hub whose faults a test sets."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.files = dict(FILES)
        self.supports_ranges = True
        self.cut_after = None  # bytes of a body after which the connection breaks
        self.statuses = []  # answered first, one per request
        self.requests = Counter()
        self.ranges = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server
        name = self.path.removeprefix("/2Noise/ChatTTS/resolve/main/")
        hub.requests[name] += 1
        if hub.statuses:
            return self.send_error(hub.statuses.pop(0))
        if name not in hub.files:
            return self.send_error(404)
        content, start = hub.files[name], 0
        if "Range" in self.headers and hub.supports_ranges:
            start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            hub.ranges.append(start)
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = None if hub.cut_after is None else start + hub.cut_after
        self.wfile.write(content[start:end])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def download(folder, hub):
    download_checkpoint(folder, hub.url, HASHES, retry_delay=0.0)


def files_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_arrive_under_their_names(hub, tmp_path):
    download(tmp_path, hub)
    assert files_in(tmp_path) == FILES


def test_verified_files_are_not_downloaded_again(hub, tmp_path):
    download(tmp_path, hub)
    hub.requests.clear()
    download(tmp_path, hub)
    assert not hub.requests


def test_a_file_altered_on_disk_is_downloaded_again(hub, tmp_path):
    download(tmp_path, hub)
    (tmp_path / "asset/a.bin").write_bytes(b"altered")
    hub.requests.clear()
    download(tmp_path, hub)
    assert hub.requests == {"asset/a.bin": 1}
    assert files_in(tmp_path) == FILES


def test_a_broken_connection_is_continued_where_it_broke(hub, tmp_path):
    hub.cut_after = 2 * CHUNK_BYTES
    download(tmp_path, hub)
    assert files_in(tmp_path) == FILES
    assert hub.ranges == [2 * CHUNK_BYTES, 4 * CHUNK_BYTES, 6 * CHUNK_BYTES]


def test_a_part_of_an_earlier_run_is_continued(hub, tmp_path):
    (tmp_path / "asset").mkdir()
    (tmp_path / "asset/a.bin.part").write_bytes(FILES["asset/a.bin"][:5_000])
    download(tmp_path, hub)
    assert hub.ranges == [5_000]
    assert files_in(tmp_path) == FILES


def test_a_part_that_is_already_whole_is_taken(hub, tmp_path):
    (tmp_path / "asset").mkdir()
    (tmp_path / "asset/a.bin.part").write_bytes(FILES["asset/a.bin"])
    download(tmp_path, hub)
    assert files_in(tmp_path) == FILES


def test_a_server_without_ranges_sends_it_all_again(hub, tmp_path):
    hub.supports_ranges = False
    (tmp_path / "asset").mkdir()
    (tmp_path / "asset/a.bin.part").write_bytes(b"x" * 5_000)
    download(tmp_path, hub)
    assert files_in(tmp_path) == FILES


def test_an_altered_file_is_refused_and_removed(hub, tmp_path):
    hub.files["asset/a.bin"] = b"x" + FILES["asset/a.bin"][1:]
    with pytest.raises(ConfigError, match=r"a.bin has sha256"):
        download(tmp_path, hub)
    assert files_in(tmp_path) == {}


def test_a_file_that_the_server_cut_short_is_refused_and_removed(hub, tmp_path):
    hub.files["asset/a.bin"] = FILES["asset/a.bin"][:-1]
    with pytest.raises(ConfigError, match=r"a.bin has sha256"):
        download(tmp_path, hub)
    assert files_in(tmp_path) == {}


def test_a_download_that_stops_growing_ends_in_an_error_and_leaves_only_a_part(hub, tmp_path):
    hub.supports_ranges = False
    hub.cut_after = 2 * CHUNK_BYTES
    with pytest.raises(ConfigError, match=r"cannot download .*a.bin"):
        download(tmp_path, hub)
    assert hub.requests["asset/a.bin"] == ATTEMPTS
    assert files_in(tmp_path) == {"asset/a.bin.part": FILES["asset/a.bin"][: 2 * CHUNK_BYTES]}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(hub, tmp_path, status):
    hub.statuses = [status, status]
    download(tmp_path, hub)
    assert files_in(tmp_path) == FILES


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_an_error_at_once(hub, tmp_path, status):
    hub.statuses = [status]
    with pytest.raises(ConfigError, match=f"{status}.*a.bin"):
        download(tmp_path, hub)
    assert sum(hub.requests.values()) == 1
    assert files_in(tmp_path) == {}


def test_a_refused_connection_is_an_error(tmp_path):
    with Hub() as closed:
        url = closed.url
    with pytest.raises(ConfigError, match="cannot download"):
        download_checkpoint(tmp_path, url, HASHES, retry_delay=0.0)
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("url", ["not-a-url", "http://", "ftp://127.0.0.1"])
def test_a_wrong_hub_address_is_an_error(tmp_path, url):
    with pytest.raises(ConfigError, match="cannot download"):
        download_checkpoint(tmp_path, url, HASHES, retry_delay=0.0)


def test_the_hub_address_comes_from_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("CHATTTS_HUB_URL", hub.url + "/")
    download_checkpoint(tmp_path, hashes=HASHES)
    assert files_in(tmp_path) == FILES
