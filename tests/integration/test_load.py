"""locust against a live server, in a process of its own as it patches threads and sockets."""

import json
import re
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import tritonclient.http

from chattts_serving.launcher.running import running_server
from tests.client.conftest import FAKE_MODEL
from tests.conftest import ROOT
from tests.metrics import time_to_rest, wait_until

WAYS = ("grpc", "grpc stream", "http", "http stream")
RUN_S = 90  # a run may take that long on a busy machine


def command(http_url, grpc_url, out, *further):
    fixed = [f"--url={http_url}", f"--grpc-url={grpc_url}", f"--out={out}", "--max-new-tokens=24"]
    return [sys.executable, "-m", "tests.load", *fixed, *further]


def command_for(server, out, *further):
    return command(server.http_url, server.grpc_url, out, *further)


def run(arguments):
    """The exit status of a run, and its report."""
    ended = subprocess.run(arguments, check=False, cwd=ROOT, timeout=RUN_S, stdout=subprocess.PIPE, text=True)
    (path,) = re.findall(r"^report: (.+)$", ended.stdout, re.MULTILINE)
    return ended.returncode, json.loads(Path(path).read_text())


def successes(server, model):
    """Requests that Triton says `model` has answered well."""
    with tritonclient.http.InferenceServerClient(server.http_url) as triton:
        (statistics,) = triton.get_inference_statistics(model)["model_stats"]
    return int(statistics["inference_stats"].get("success", {}).get("count", 0))


def test_all_ways_to_the_server_are_loaded_and_measured(tiny, tmp_path):
    models = ("chattts", "chattts_stream")
    before = {model: successes(tiny.server, model) for model in models}
    status, report = run(command_for(tiny.server, tmp_path / "steady", "--users=8", "--minutes=0.07"))
    assert status == 0, report
    assert report["passed"] is True
    entries = {(entry["type"], entry["name"]): entry for entry in report["entries"]}
    answered = dict.fromkeys(models, 0)
    for way in WAYS:
        texts = [entry for (of, name), entry in entries.items() if of == way and name.endswith(" text")]
        assert sum(entry["failures"] for entry in texts) == 0
        requests = sum(entry["requests"] for entry in texts)
        assert entries[way, "RTF x 1000"]["requests"] == requests > 0
        if "stream" in way:
            assert entries[way, "first audio"]["requests"] == requests
            assert 0 < entries[way, "first audio"]["p50"] <= max(entry["p50"] for entry in texts)
        else:
            assert (way, "first audio") not in entries
        answered["chattts_stream" if "stream" in way else "chattts"] += requests
    assert report["summary"]["answered"] == report["summary"]["requests"] == sum(answered.values())
    assert {model: successes(tiny.server, model) - before[model] for model in models} == answered
    page = (tmp_path / "steady.html").read_text()
    assert all(f'"{name}"' in page for name in ("short text", "first audio", "RTF x 1000"))


def test_a_server_that_is_not_there_fails_the_run(tmp_path):
    with socket.socket() as bound:  # nobody listens there, and nobody else can
        bound.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{bound.getsockname()[1]}"
        status, report = run(command(url, url, tmp_path / "nobody", "--users=4", "--minutes=0.02"))
    assert status == 1
    assert set(report["summary"]["errors"]) == {"CONNECTION_FAILED"}
    assert report["summary"]["answered"] == 0
    assert {limit["name"] for limit in report["limits"] if not limit["kept"]} == {
        "share of errors",
        "requests heard, fewest",
    }


def test_callers_who_leave_in_mid_stream_leave_nothing_open(tiny, tmp_path):
    time_to_rest(tiny.server)
    further = ("--scenario=abandon", "--users=8", "--minutes=0.07", "--patience=0.1", "--max-new-tokens=400")
    users = ("GrpcStreamUser", "HttpStreamUser")
    status, report = run(command_for(tiny.server, tmp_path / "abandon", *further, *users))
    assert status == 0, report
    left = {entry["type"]: entry["requests"] for entry in report["entries"] if entry["name"] == "left early"}
    assert set(left) == {"grpc stream", "http stream"}
    assert report["summary"]["left"] == sum(left.values()) > 10
    assert report["summary"]["errors"] == {}
    time_to_rest(tiny.server)


def test_a_user_of_an_open_loop_does_not_wait_for_answers(tiny, tmp_path):
    """A closed loop would have one request open."""
    further = ("--scenario=abandon", "--users=1", "--rate=20", "--minutes=0.5", "--max-new-tokens=400", "--timeout=5")
    with started(command_for(tiny.server, tmp_path / "open", *further, "GrpcUser")):
        wait_until(tiny.server, lambda engine: engine.requests_open >= 5, within_s=30)
    time_to_rest(tiny.server, within_s=30)


SLOW_CALLS, SLOW_S = 14, 4.0
CALLS = f"""
import sys, time
import tests.load.users
import gevent
from chattts_client import TTSClient

with TTSClient(sys.argv[1]) as client:
    slow = [gevent.spawn(client.synthesize, "hang {SLOW_S}") for _ in range({SLOW_CALLS})]
    gevent.sleep(0.5)
    started = time.perf_counter()
    client.synthesize("quick")
    print(time.perf_counter() - started)
    gevent.joinall(slow)
del client, slow  # for the reason given in Caller.on_stop
"""


def test_a_grpc_call_is_timed_right_beside_more_calls_than_gevent_has_threads(tmp_path):
    """A blocking call waits in a thread of gevent's pool. That starts with ten; the answer to one more would lie there
    until one of those has ended."""
    with running_server(FAKE_MODEL, log_path=tmp_path / "server.log") as server:
        calls = [sys.executable, "-c", CALLS, server.grpc_url]
        ended = subprocess.run(calls, check=True, cwd=ROOT, timeout=RUN_S, stdout=subprocess.PIPE, text=True)
    assert float(ended.stdout) < SLOW_S / 2


@contextmanager
def started(arguments):
    """A process that is ended with the block."""
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()
