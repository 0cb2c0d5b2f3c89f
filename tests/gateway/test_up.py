"""`make up`: one command, two servers, one end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import requests

from chattts_serving.launcher.options import PORT_OPTIONS, ServerOptions
from chattts_serving.launcher.processes import child_processes
from gateway.process import START_S, answers, free_port
from tests.client.conftest import FAKE_MODEL
from tests.deploy.haproxy import program
from tests.launcher.stand_in import driver

STOP_S = 40


@contextmanager
def started(*flags: str, host: str = "127.0.0.1") -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, where it listens, and what it says of Triton; `host` is as URLs have it."""
    port = free_port()
    flags = (*flags, "--host", host.strip("[]"))
    command = [sys.executable, "-m", "gateway.up", "--model-repository", str(FAKE_MODEL), "--port", str(port), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        triton = process.stdout.readline()
        assert process.stdout.readline() == f"open http://{host}:{port} (Ctrl-C ends)\n"
        end = time.monotonic() + START_S
        while not answers(f"http://{host}:{port}/health/ready"):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, f"http://{host}:{port}", triton
        process.terminate()
        process.communicate(timeout=STOP_S)


@pytest.fixture
def up():
    """The process, and where it listens."""
    with started() as (process, url, _):
        yield process, url


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_it_speaks_and_says_where_triton_is(host, behind_a_proxy):
    with ExitStack() as stack:
        default = {name: getattr(ServerOptions(), name) for name in PORT_OPTIONS}
        for port in default.values():  # one is taken at least, be it by somebody else
            with suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                break
        free = {port for port in default.values() if is_free(port)}
        _, url, triton = stack.enter_context(started("--triton-flag=--id=the name", host=host))
        found = re.fullmatch(r"Triton: http=(\S+) grpc=(\S+) metrics=(\S+), its log is \S+\n", triton)
        ports = {int(one.rpartition(":")[2]) for one in found.groups()}
        assert len(ports) == 3
        assert ports & set(default.values()) == free
        with requests.Session() as session:
            session.trust_env = False
            assert session.get(f"http://{found[1]}/v2", timeout=30).json()["name"] == "the name"
            assert session.get(f"http://{found[3]}/metrics", timeout=30).ok
            body = {"model": "chattts", "voice": "default", "input": "Hello", "response_format": "wav"}
            assert session.post(f"{url}/v1/audio/speech", json=body, timeout=30).content.startswith(b"RIFF")
            assert "<html" in session.get(url, timeout=30).text


def test_gpus_have_a_triton_each_behind_one_gateway(tmp_path, monkeypatch):
    program()  # skips where HAProxy is not installed
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver(tmp_path).parent))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with started("--gpus=all") as (_, url, triton):
        assert re.fullmatch(r"Triton: http=\S+ grpc=\S+ metrics=[\d.]+:\d+,[\d.]+:\d+, its log is \S+\n", triton)
        body = {"model": "chattts", "voice": "default", "input": "Hello", "response_format": "wav"}
        assert requests.post(f"{url}/v1/audio/speech", json=body, timeout=30).content.startswith(b"RIFF")


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


UP, ALONE = "gateway.up", "gateway"


@pytest.mark.parametrize(
    ("module", "flags", "message"),
    [
        (UP, "--host=0.0.0.0", "open to the network"),
        (UP, "--port=TAKEN", "cannot listen on http://127.0.0.1:TAKEN (Address already in use): choose another --port"),
        (UP, "--host=localhost --port=TAKEN", "cannot listen on http://localhost:TAKEN (Address already in use)"),
        (UP, "--triton-flag=log-verbose=1", "'log-verbose=1' is no flag"),
        (UP, "--triton-flag=--http-port=1", "--http-port=1 cannot be passed on"),
        (UP, "--gpus=some", "--gpus is 'some'; allowed is all, how many, or their numbers"),
        (ALONE, "--port=TAKEN", "cannot listen on http://127.0.0.1:TAKEN (Address already in use): choose another"),
        (ALONE, "--host=::1 --port=TAKEN", "cannot listen on http://[::1]:TAKEN (Address already in use)"),
        (ALONE, "--host=no.such.host.invalid --anonymous", "--host is 'no.such.host.invalid'; allowed is"),
    ],
)
def test_what_cannot_work_starts_nothing(module, flags, message):
    host, family = ("::1", socket.AF_INET6) if "::1" in flags else ("127.0.0.1", socket.AF_INET)
    with socket.create_server((host, 0), family=family) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", module, *flags.replace("TAKEN", port).split()]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert message.replace("TAKEN", port) in line


def test_it_listens_on_ipv6_and_writes_its_address_as_browsers_take_it():
    url = f"http://[::1]:{free_port()}"
    command = [sys.executable, "-m", "gateway", "--host", "::1", "--port", url.rpartition(":")[2]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert json.loads(process.stdout.readline())["message"] == f"listening on {url}"
        assert requests.get(f"{url}/health", timeout=60).ok
        process.terminate()
        process.communicate(timeout=STOP_S)
