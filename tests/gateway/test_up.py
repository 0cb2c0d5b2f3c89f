"""`make up`: one command, two servers, one end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import requests

from chattts_serving.launcher.processes import child_processes
from gateway.process import START_S, answers, free_port
from tests.client.conftest import FAKE_MODEL

STOP_S = 40


@pytest.fixture
def up():
    """The process, and where it listens."""
    port = free_port()
    command = [sys.executable, "-m", "gateway.up", "--model-repository", str(FAKE_MODEL), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        end = time.monotonic() + START_S
        while not answers(f"http://127.0.0.1:{port}/health/ready"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
        process.terminate()
        process.communicate(timeout=STOP_S)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_speaks(up):
    _, url = up
    body = {"model": "chattts", "voice": "default", "input": "Hello", "response_format": "wav"}
    assert requests.post(f"{url}/v1/audio/speech", json=body, timeout=30).content.startswith(b"RIFF")
    assert "<html" in requests.get(url, timeout=30).text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both(up, number):
    process, _ = up
    (launcher,) = child_processes(process.pid)
    process.send_signal(number)
    assert process.wait(STOP_S) in (0, 130)
    assert not is_there(launcher)


def test_the_end_of_the_server_is_the_end_of_the_gateway(up):
    process, _ = up
    (launcher,) = child_processes(process.pid)
    os.kill(launcher, signal.SIGTERM)
    assert process.wait(STOP_S) == 0


def test_a_wrong_flag_starts_nothing():
    command = [sys.executable, "-m", "gateway.up", "--host", "0.0.0.0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert "open to the network" in result.stderr


@pytest.mark.parametrize("module", ["gateway", "gateway.up"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_is_said_at_once(module, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other:
        port = other.getsockname()[1]
        command = [sys.executable, "-m", module, "--host", host, "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    url = f"http://[::1]:{port}" if ":" in host else f"http://127.0.0.1:{port}"
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: cannot listen on {url}: ")


def test_it_listens_on_ipv6_and_writes_its_address_as_browsers_take_it():
    url = f"http://[::1]:{free_port()}"
    command = [sys.executable, "-m", "gateway", "--host", "::1", "--port", url.rpartition(":")[2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["message"] == f"listening on {url}"
        assert requests.get(f"{url}/health", timeout=60).ok
        process.terminate()
        process.communicate(timeout=STOP_S)
