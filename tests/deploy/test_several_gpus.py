"""`--gpus`: two real servers behind a real HAProxy in one command, and what callers see when one dies.

The GPUs are a stand-in for the driver's; the models need none.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chattts_client import TTSClient

from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer, running_server
from tests.client.conftest import FAKE_MODEL
from tests.deploy.haproxy import program
from tests.deploy.test_balancing import LOAD_S, NUM_CALLERS, Outcome, load, wait_for
from tests.launcher.stand_in import driver

ANSWERED = re.compile(r'^nv_inference_request_success\{model="chattts",\S+ (\d+)', re.MULTILINE)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    program()  # skips where HAProxy is not installed
    folder = tmp_path_factory.mktemp("several")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(driver(folder / "driver").parent))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with running_server(FAKE_MODEL, log_path=folder / "log", launcher_flags=["--gpus=all"]) as running:
            yield running


def answered(fleet: RunningServer) -> list[int]:
    """How many requests each server has answered since it was started; -1 for one that does not say."""
    counts = []
    for url in fleet.metrics_url.split(","):
        try:
            with closing(http.client.HTTPConnection(url, timeout=10)) as connection:
                connection.request("GET", "/metrics")
                found = ANSWERED.search(connection.getresponse().read().decode())
        except OSError:
            found = None
        counts.append(int(found[1]) if found else -1)
    return counts


def tritonservers(fleet: RunningServer) -> dict[str, int]:
    """The process ids of the servers by GPU."""
    found = {}
    for launcher in child_processes(fleet.launcher.pid):
        for pid in child_processes(launcher):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            gpus = [one.partition(b"=")[2].decode() for one in environment if one.startswith(b"CUDA_VISIBLE_DEVICES=")]
            if gpus and os.getpgid(pid) == pid:
                found[gpus[0]] = pid
    return found


def test_both_protocols_are_spread_over_a_server_for_each_gpu(fleet: RunningServer) -> None:
    before = answered(fleet)
    with TTSClient(fleet.grpc_url) as grpc, TTSClient(fleet.http_url, "http") as over_http:
        for number in range(8):
            for client in (grpc, over_http):
                assert f"text-{number}" in client.synthesize(f"text-{number}").refined_text
        assert [chunk.num_tokens for chunk in grpc.stream("abcdefg")] == [3, 3, 1]
    assert all(after > count for after, count in zip(answered(fleet), before, strict=True))
    assert tritonservers(fleet).keys() == {"0", "1"}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_request_is_answered_although_a_server_is_killed_under_load(fleet: RunningServer, protocol: str) -> None:
    url = fleet.grpc_url if protocol == "grpc" else fleet.http_url
    outcome, started, before = Outcome(), threading.Event(), tritonservers(fleet)
    loading = threading.Thread(target=load, args=(url, protocol, outcome, started))
    loading.start()
    assert started.wait(10)
    time.sleep(LOAD_S / 3)
    os.kill(before["1"], signal.SIGKILL)
    loading.join()
    assert outcome.lost == []
    assert {len(answers) for answers in outcome.answers.values()} == {1}
    assert len(outcome.failures) <= NUM_CALLERS  # those that the killed server had taken
    with TTSClient(url, protocol) as client:

        def are_both_there() -> bool:
            client.synthesize("again")
            return min(answered(fleet)) > 0 and tritonservers(fleet).keys() == {"0", "1"}

        wait_for(are_both_there)
    after = tritonservers(fleet)
    assert after["0"] == before["0"]
    assert after["1"] != before["1"]
