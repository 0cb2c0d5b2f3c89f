"""The container probe, against answers made up here and against a live server."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path

import pytest

from chattts_serving.launcher import probe
from chattts_serving.launcher.probe import ProbeError, check, main, open_requests, wait_idle
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import running_server
from chattts_serving.launcher.tritonserver import EXPORTED_FILES
from tests.conftest import Deployment

READY = ["/v2/health/ready", "/v2/models/speech/ready", "/v2/models/chattts_stream/ready"]
WORKING = dict.fromkeys([*READY, "/v2/models/text_frontend/infer", "/v2/models/gpt_decoder/infer"], 200)

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor(OUTPUT, np.array([[b""]], object))]) for _ in requests]
"""


@contextmanager
def answering(statuses: dict[str, int], bodies: Iterator[str] | None = None) -> Iterator[str]:
    """The address of a server that answers each path with a status, and with the next of `bodies`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(statuses.get(self.path, 404))
            self.end_headers()
            self.wfile.write(next(bodies, "").encode() if bodies else b"no body")

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def metrics(num_open: int) -> str:
    return f"# TYPE chattts_requests_open gauge\nchattts_requests_open {num_open}\nchattts_sequences_running 7\n"


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process `pid` hangs for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def stub_of(model: str, server_pid: int) -> int:
    """The process that runs the Python model `model`."""
    for pid in child_processes(server_pid):
        if f"/{model}/" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            return pid
    raise AssertionError(f"no process runs {model}")


def write_model(repository: Path, name: str, inputs: list[str], output: str) -> None:
    """A Python model that answers everything with an empty string."""
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(MODEL.replace("OUTPUT", repr(output)), encoding="utf-8")
    for file in EXPORTED_FILES.get(name, ()):  # which the launcher wants to see
        (repository / name / "1" / file).touch()
    tensors = ", ".join(
        f'{{ name: "{one}" data_type: TYPE_{"BOOL" if one == "cancel" else "STRING"} dims: [ 1 ] }}' for one in inputs
    )
    config = f'backend: "python"\nmax_batch_size: 1 input [ {tensors} ] '
    config += (
        f'output [ {{ name: "{output}" data_type: TYPE_STRING dims: [ 1 ] }} ] instance_group [ {{ kind: KIND_CPU }} ]'
    )
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")


def test_a_server_that_answers_everything_works() -> None:
    with answering(WORKING) as url:
        assert main(["--url", url]) == 0


@pytest.mark.parametrize("path", WORKING)
def test_a_question_without_a_good_answer_fails_and_is_named(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(WORKING | {path: 500}) as url:
        assert main(["--url", url]) == 1
    assert f"{path}: status 500 no body" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "status"),
    [("overloaded: 8 requests are open", 0), ("the server is shutting down", 0), ("model is not ready", 1)],
)
def test_a_server_that_takes_nothing_for_now_works(answer: str, status: int) -> None:
    full = {path: 503 if path.endswith("infer") else 200 for path in WORKING}
    with answering(full, iter([""] * len(READY) + [json.dumps({"error": answer})] * 2)) as url:
        assert main(["--url", url]) == status


def test_no_server_fails() -> None:
    with pytest.raises(ProbeError, match="Connection refused"):
        check("127.0.0.1:9", 1)


def test_a_live_server_works(tiny: Deployment, behind_a_proxy: None) -> None:
    check(tiny.server.http_url, 10)
    wait_idle(tiny.server.metrics_url, 10, 10, quiet_s=0.0)


@pytest.mark.parametrize("url", ["127.0.0.1:http", "127.0.0.1:", "[::1", "a b:1"])
def test_what_is_no_address_is_named(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", url, "--timeout", "1"]) == 1
    assert capsys.readouterr().err.startswith(f"error: {url}/v2/health/ready: ")


def test_a_python_model_that_hangs_fails_although_the_server_says_ready(tmp_path: Path) -> None:
    write_model(tmp_path / "models", "text_frontend", ["text"], "generation")
    write_model(tmp_path / "models", "gpt_decoder", ["stream_id", "cancel"], "chunk")
    for name in ("speech", "chattts_stream"):
        write_model(tmp_path / "models", name, ["text"], "sound")
    with running_server(tmp_path / "models", log_path=tmp_path / "log") as server:
        check(server.http_url, 10)
        with stopped(stub_of("gpt_decoder", server.pid)):
            probe._ask(server.http_url, "GET", "/v2/health/ready", 5)
            probe._ask(server.http_url, "GET", "/v2/models/gpt_decoder/ready", 5)
            with pytest.raises(ProbeError, match="gpt_decoder/infer"):  # no answer, or "not healthy"
                check(server.http_url, 3)


def test_a_live_server_tells_its_open_requests(tiny: Deployment) -> None:
    assert open_requests(probe._ask(tiny.server.metrics_url, "GET", "/metrics", 5)) == 0


def test_metrics_without_the_gauge_are_an_error() -> None:
    with pytest.raises(ProbeError, match="chattts_requests_open"):
        open_requests("nv_gpu_utilization 1\n")


def test_waiting_ends_when_no_request_was_open_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "POLL_S", 0.05)
    counts = [2, 0, 1, *[0] * 1_000]
    bodies = (metrics(number) for number in counts)
    started = time.monotonic()
    with answering({"/metrics": 200}, bodies) as url:
        wait_idle(url, 10, 1, quiet_s=0.3)
    assert 0.3 + 3 * 0.05 <= time.monotonic() - started < 5


def test_how_long_none_may_be_open_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "POLL_S", 0.05)
    started = time.monotonic()
    with answering({"/metrics": 200}, repeat(metrics(0))) as url:
        assert main(["--metrics-url", url, "--wait-idle", "10", "--idle-for", "0.3"]) == 0
    assert 0.3 <= time.monotonic() - started < probe.QUIET_S


def test_waiting_ends_with_an_error_when_requests_stay_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "POLL_S", 0.05)
    with answering({"/metrics": 200}, (metrics(3) for _ in range(1_000))) as url:
        assert main(["--metrics-url", url, "--wait-idle", "0.2"]) == 1
    assert "3 requests are open" in capsys.readouterr().err


def test_several_servers_are_waited_for_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "POLL_S", 0.05)
    busy, idle = repeat(metrics(3)), repeat(metrics(0))
    with answering({"/metrics": 200}, idle) as first, answering({"/metrics": 200}, busy) as second:
        assert main(["--metrics-url", f"{first},{second}", "--wait-idle", "0.2"]) == 1
    assert "3 requests are open" in capsys.readouterr().err


def test_a_probe_adds_no_error_to_the_statistics(tiny: Deployment) -> None:
    """Alerts watch them."""
    before = failures(tiny)
    check(tiny.server.http_url, 10)
    assert failures(tiny) == before


def failures(deployment: Deployment) -> dict[str, int]:
    """Failed calls so far of each model that the probe calls."""
    counts = {}
    for model in ("text_frontend", "gpt_decoder"):
        answer = json.loads(probe._ask(deployment.server.http_url, "GET", f"/v2/models/{model}/stats", 5))
        counts[model] = answer["model_stats"][0]["inference_stats"]["fail"]["count"]
    return counts
