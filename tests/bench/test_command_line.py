"""What the command line makes of its flags."""

import sys

import pytest

from bench import server
from bench.__main__ import main
from bench.server import DEFAULT_CONCURRENCY, Load


@pytest.fixture
def loads(monkeypatch):
    """The loads that would have been measured."""
    seen = []
    monkeypatch.setattr(server, "run", lambda load, *_: seen.append(load))
    return seen


def run(monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["bench", *line.split()])
    return main()


@pytest.mark.parametrize(
    ("line", "load"),
    [
        ("", Load(tokens=96, concurrency=DEFAULT_CONCURRENCY)),
        ("--stream", Load(tokens=256, concurrency=DEFAULT_CONCURRENCY, stream=True)),
        ("--stream --tokens 60 --rate 2 4", Load(tokens=60, rates=(2.0, 4.0), stream=True)),
        (
            "--stream --mode low_latency --buffer 80 --concurrency 1 8 --protocol http",
            Load("http", 256, concurrency=(1, 8), stream=True, mode="low_latency", buffer_ms=80.0),
        ),
    ],
)
def test_flags_become_a_load(monkeypatch, loads, line, load):
    assert run(monkeypatch, f"server {line}") == 0
    assert loads == [load]


@pytest.mark.parametrize("line", ["--mode low_latency", "--buffer 80", "--stream --buffer -1", "--tokens 0"])
def test_a_load_that_makes_no_sense_is_refused_in_one_line(monkeypatch, loads, capsys, line):
    assert run(monkeypatch, f"server {line}") == 1
    assert loads == []
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("bench: ")
