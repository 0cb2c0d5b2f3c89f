"""A short soak of live servers: a clean one passes, and one that leaks is told so, and where.

What a new server needs before it is steady is far below the limits here, and what is planted far above, so that noise
does not decide.
"""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chattts_serving.launcher.running import running_server
from tests.soak.calls import ANSWERED
from tests.soak.run import run, with_few_requests
from tests.soak.trend import Answer
from tests.soak.verdict import Limits, cache_mb, judge

DECK = {
    "whole grpc": 2,
    "whole http": 2,
    "stream grpc": 2,
    "stream http": 2,
    "low latency grpc": 1,
    "control grpc": 1,
    "deadline http": 1,
    "bad stream http": 1,
    "left stream grpc": 1,
    "left stream http": 1,
    "left whole grpc": 1,
}
ROUNDS = 12
WARM_UP_ROUNDS = 3
LIMITS = {"memory_share": 0.2, "descriptors": 10.0, "threads": 15.0}
LEAKS = {
    "gpt_decoder": "KEPT.append(bytearray(b'x') * 1_000_000)",  # a call is made for each chunk
    "speech": "KEPT.append(open('/dev/null'))",
    "chattts_stream": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
}
LEAKING = """
import threading

KEPT = []
_Sound = TritonPythonModel


class TritonPythonModel(_Sound):
    def execute(self, requests):
        for _ in requests:
            {leak}
        return super().execute(requests)
"""


def served(repository: Path, folder: Path) -> Iterator:
    with running_server(repository, log_path=folder / "server.log") as server:
        yield server


def judged(server, repository):
    record = run(server, 0, DECK, least_rounds=ROUNDS)
    warm_up_s = record.rests[min(WARM_UP_ROUNDS, len(record.rests) - 1)].at_s if record.rests else 0.0
    return judge(record, DECK, Limits(warm_up_s=warm_up_s, **LIMITS), cache_mb(repository))


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory) -> Path:
    """The tiny checkpoint, to be served a second time."""
    return with_few_requests(tiny.repository, tmp_path_factory.mktemp("soak"))


@pytest.fixture(scope="module")
def leaking(exported, tmp_path_factory) -> Path:
    """The same with models that keep something of each call."""
    repository = tmp_path_factory.mktemp("leaking") / "models"
    shutil.copytree(exported, repository, symlinks=True)
    for model, leak in LEAKS.items():
        path = repository / model / "1" / "model.py"
        source = path.read_text("utf-8")
        path.unlink()  # the link, not the file
        path.write_text(source + LEAKING.format(leak=leak), "utf-8")
    return repository


@pytest.fixture(scope="module")
def clean_server(exported, tmp_path_factory):
    yield from served(exported, tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def leaking_server(leaking, tmp_path_factory):
    yield from served(leaking, tmp_path_factory.mktemp("log"))


def test_a_clean_server_passes(clean_server, exported):
    verdict = judged(clean_server, exported)
    assert verdict.reasons == []


def test_a_server_that_leaks_is_told_what_and_where(leaking_server, leaking):
    verdict = judged(leaking_server, leaking)
    assert {check.name for check in verdict.checks if check.answer is Answer.GROWS} == {
        "memory of all",
        "memory of gpt_decoder",
        "descriptors of speech",
        "threads of chattts_stream",
    }


def test_a_server_that_dies_in_mid_run_is_told_so_with_its_last_words(clean_server):
    """Last, as it is not the same server any more afterwards."""
    killed = threading.Timer(3.0, lambda: os.kill(clean_server.pid, signal.SIGKILL))
    killed.start()
    record = run(clean_server, 60.0, DECK)
    killed.join()
    assert record.ended is not None
    what, words = record.ended.split("\n", maxsplit=1)
    assert what.startswith("ended, or started anew: ")
    assert "tritonserver" in what or "gpt_decoder" in what  # whichever is missed first
    assert words in clean_server.log_path.read_text("utf-8", "replace")
    assert any(outcome.ending == ANSWERED for outcome in record.outcomes)
    (reason, *_) = judge(record, DECK, Limits(), 0.0).reasons
    assert what in reason
