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
    monkeypatch.setattr(server, "run", lambda load, *_, **__: seen.append(load))
    return seen


def run(monkeypatch, line):
    monkeypatch.setattr(sys, "argv", ["bench", *line.split()])
    return main()


@pytest.mark.parametrize(
    ("line", "load"),
    [
        ("", Load(tokens=96, concurrency=DEFAULT_CONCURRENCY)),
        ("--stream", Load(tokens=256, concurrency=DEFAULT_CONCURRENCY, stream=True)),
        ("--stream --tokens 60 --rate 2 4", Load(tokens=60, rates=(2.0, 4.0), stream=True, turns=2)),
        ("--rate 2 --seeds 5", Load(rates=(2.0,), seeds=5)),
        ("--stream --rate 2 --seeds 5 --turns 1", Load(tokens=256, rates=(2.0,), seeds=5, stream=True)),
        (
            "--stream --mode low_latency --buffer 80 --concurrency 1 8 --protocol http",
            Load("http", 256, concurrency=(1, 8), stream=True, mode="low_latency", buffer_ms=80.0),
        ),
    ],
)
def test_flags_become_a_load(monkeypatch, loads, line, load):
    assert run(monkeypatch, f"server {line}") == 0
    assert loads == [load]


def test_parameters_of_the_gpt_are_set_for_the_server_under_test(monkeypatch):
    seen = []
    monkeypatch.setattr(server, "run", lambda *_, settings: seen.append(settings))
    assert run(monkeypatch, "server --set max_sequences=7 --set kv_cache_gb=auto") == 0
    assert seen == [{"max_sequences": "7", "kv_cache_gb": "auto"}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--set max_sequences", "--set is 'max_sequences'; allowed is NAME=VALUE"),
        ("--set max_sequences=", "--set is 'max_sequences='; allowed is NAME=VALUE"),
        ('--set a="b', "allowed is NAME=VALUE"),
        ("--set precision=int8", "precision is set twice, or has the flag --precision"),
        ("--set lease_s=1 --set lease_s=2", "--set is 'lease_s=2': lease_s is set twice"),
        ("--set lease_s=1 --url 127.0.0.1:1", "--set is for a server that is started here"),
        ("--set max_sequence=7 --precision fp32", "sets 'max_sequence' 0 times, not once"),
    ],
)
def test_a_parameter_that_cannot_be_set_is_named(monkeypatch, capsys, line, message):
    assert run(monkeypatch, f"server {line}") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "--mode low_latency",
        "--buffer 80",
        "--stream --buffer -1",
        "--tokens 0",
        "--whole 3",
        "--stream --whole -1",
    ],
)
def test_a_load_that_makes_no_sense_is_refused_in_one_line(monkeypatch, loads, capsys, line):
    assert run(monkeypatch, f"server {line}") == 1
    assert loads == []
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("bench: ")
