"""Two live servers behind a real HAProxy with the shipped configuration, and what callers see when one dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from chattts_client import ConnectionFailedError, OverloadedError, TTSClient

from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer, running_server
from tests.client.conftest import FAKE_MODEL, content
from tests.deploy.haproxy import Addresses, balancer, program, servers_up

HERE = Path(__file__).resolve().parent
NUM_CALLERS = 8
LOAD_S = 3.0  # how long callers begin new requests; a server is killed after a third of it
MOST_TRIES = 5
NOTICED_S = 5.0


@dataclass(frozen=True)
class Counted:
    """A server whose `chattts` keeps a record of the texts that it took."""

    server: RunningServer
    record: Path

    @property
    def addresses(self) -> Addresses:
        return Addresses(self.server.http_url, self.server.grpc_url)

    def taken(self) -> list[str]:
        return self.record.read_text(encoding="utf-8").split()


@contextmanager
def counted(folder: Path) -> Iterator[Counted]:
    """A server whose files lie in `folder`."""
    program()  # skips before a server is started
    for model in ("chattts", "chattts_stream"):
        shutil.copytree(FAKE_MODEL / model, folder / model, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(HERE / "counting_model.py", folder / "chattts" / "1" / "model.py")
    with running_server(folder, log_path=folder.with_suffix(".log")) as server:
        yield Counted(server, folder / "chattts" / "taken")


@pytest.fixture(scope="module")
def survivor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    """The server that nothing happens to; its record goes on from test to test."""
    with counted(tmp_path_factory.mktemp("servers") / "survivor") as running:
        yield running


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Counted]:
    """A second server, which may be killed."""
    with counted(tmp_path / "victim") as running:
        yield running


@pytest.fixture
def balanced(survivor: Counted, victim: Counted, tmp_path: Path) -> Iterator[Addresses]:
    """Both servers behind HAProxy."""
    with balancer([victim.addresses, survivor.addresses], tmp_path) as running:
        yield running


@pytest.fixture
def half_there(survivor: Counted, tmp_path: Path) -> Iterator[Addresses]:
    """One server and an address that nobody listens on, behind an HAProxy that has not noticed yet."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{bound.getsockname()[1]}"
        with balancer([Addresses(nobody, nobody), survivor.addresses], tmp_path) as running:
            yield running


@dataclass
class Outcome:
    """What the callers of a load saw.

    Attributes:
        answers: by request, the texts whose answers its caller got.
        failures: errors by try.
        lost: requests that were given up.
    """

    answers: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


def call(client: TTSClient, request: str, outcome: Outcome) -> None:
    """Send one request, and again where it failed without an answer; each try has a text of its own."""
    for number in range(MOST_TRIES):
        text = f"{request}-{number}"
        try:
            speech = client.synthesize(text)
        except (ConnectionFailedError, OverloadedError) as error:
            outcome.failures[text] = error
        else:
            outcome.answers.setdefault(request, []).append(json.loads(speech.refined_text)["text"]["value"])
            return
    outcome.lost.append(request)


def load(url: str, protocol: str, outcome: Outcome, started: threading.Event) -> None:
    """NUM_CALLERS callers, one request after the other each, for LOAD_S seconds."""
    end = time.monotonic() + LOAD_S

    def caller(number: int) -> None:
        with TTSClient(url, protocol, timeout=10) as client:
            for index in range(10_000):
                if time.monotonic() > end:
                    return
                call(client, f"{number}-{index}", outcome)
                started.set()

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        for done in [pool.submit(caller, number) for number in range(NUM_CALLERS)]:
            done.result()


def load_with_one_killed(url: str, protocol: str, victim: RunningServer) -> Outcome:
    """What callers see of a load during which tritonserver of `victim` is killed."""
    outcome, started = Outcome(), threading.Event()
    thread = threading.Thread(target=load, args=(url, protocol, outcome, started))
    thread.start()
    assert started.wait(10)
    time.sleep(LOAD_S / 3)
    os.kill(victim.pid, signal.SIGKILL)
    thread.join()
    return outcome


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_request_is_answered_once_although_a_server_is_killed_under_load(
    survivor: Counted, victim: Counted, balanced: Addresses, protocol: str
) -> None:
    before = len(survivor.taken()) if survivor.record.exists() else 0
    url = balanced.grpc_url if protocol == "grpc" else balanced.http_url
    outcome = load_with_one_killed(url, protocol, victim.server)
    assert outcome.lost == []
    assert {len(answers) for answers in outcome.answers.values()} == {1}
    assert all(answers[0].startswith(f"{request}-") for request, answers in outcome.answers.items())
    assert outcome.failures, "no request was in flight at the server that was killed"
    # Only a request that the killed server had taken fails, and each caller had one.
    assert len(outcome.failures) <= NUM_CALLERS
    # No try reached two servers: the balancer repeats only what nobody had taken.
    assert set(Counter([*victim.taken(), *survivor.taken()[before:]]).values()) == {1}


def test_a_server_whose_python_model_died_gets_no_more_requests_within_seconds(
    victim: Counted, balanced: Addresses
) -> None:
    """Nobody calls, so that the balancer's own checks have to find out."""
    wait_for(lambda: len(servers_up(balanced, "grpc")) == 2)
    os.kill(next(iter(child_processes(victim.server.pid))), signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: len(servers_up(balanced, "grpc")) == len(servers_up(balanced, "http")) == 1)
    noticed_s = time.monotonic() - killed
    print(f"MEASURED a dead Python model: out of the balancer after {noticed_s:.1f} s")
    assert noticed_s < NOTICED_S
    wait_for(lambda: len(servers_up(balanced, "grpc")) == len(servers_up(balanced, "http")) == 2)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_requests_of_one_connection_are_spread_over_the_servers(victim: Counted, balanced: Addresses) -> None:
    with TTSClient(balanced.grpc_url) as client, ThreadPoolExecutor(NUM_CALLERS) as pool:
        list(pool.map(client.synthesize, [f"text-{number}" for number in range(4 * NUM_CALLERS)]))
    assert NUM_CALLERS <= len(victim.taken()) <= 3 * NUM_CALLERS


def test_a_server_that_refuses_connections_costs_no_request(half_there: Addresses) -> None:
    with TTSClient(half_there.grpc_url) as client:
        for number in range(10):
            client.synthesize(f"text-{number}")


def test_a_stream_comes_through_chunk_by_chunk(half_there: Addresses) -> None:
    with TTSClient(half_there.grpc_url) as client:
        assert [chunk.num_tokens for chunk in client.stream("abcdefg")] == [3, 3, 1]


def test_leaving_a_stream_cancels_it_at_its_server(half_there: Addresses, tmp_path: Path) -> None:
    told = tmp_path / "told"
    with TTSClient(half_there.grpc_url) as client:
        for _chunk in client.stream(f"endless {told}"):
            break
        assert content(told) == "cancelled"
