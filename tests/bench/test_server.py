"""Load on the live server with the tiny model."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.http

from bench import report, server
from bench.repository import sentence
from bench.server import Load, Target, measure_levels, measure_soak
from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.errors import ConfigError


def successes(deployment):
    """Requests that Triton says the ensemble has answered well."""
    with tritonclient.http.InferenceServerClient(deployment.server.http_url) as triton:
        (statistics,) = triton.get_inference_statistics("chattts")["model_stats"]
    return int(statistics["inference_stats"].get("success", {}).get("count", 0))


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_every_request_of_both_loops_is_one_of_triton(tiny, protocol):
    load = Load(protocol, tokens=12, concurrency=(3,), rates=(20.0,), seeds=2, requests=6)
    url = tiny.server.grpc_url if protocol == "grpc" else tiny.server.http_url
    before = successes(tiny)
    levels = asyncio.run(measure_levels(load, Target(url, tiny.server.launcher.pid), None))
    assert successes(tiny) - before == 3 + 3 * 6  # three to warm up
    assert [(level["loop"], level["concurrency"], level["rate"], level["seed"]) for level in levels] == [
        ("closed", 3, None, None),
        ("open", None, 20.0, 0),
        ("open", None, 20.0, 1),
    ]
    for level in levels:
        assert level["answered"] == level["requests"] == 6
        assert level["errors"] == {}
        assert level["rtf"] == pytest.approx(1 / level["audio_s_per_s"])
        assert level["audio_s_per_s"] == pytest.approx(level["sentences_per_s"] * num_samples(12) / SAMPLE_RATE)
        assert 0 < level["p50_s"] <= level["p90_s"] <= level["p99_s"]
        assert level["peak_memory_mb"] >= level["memory_after_mb"] > 100  # five Python processes and a server
        assert 0 < level["server_cpu_share"] <= 1.1
    assert report.table(server.COLUMNS, [server._row(level, server.COLUMNS)[1:] for level in levels])


@pytest.mark.parametrize("mode", ["exact", "low_latency"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_streams_are_timed_and_played(tiny, protocol, mode):
    tokens = 160
    load = Load(protocol, tokens, concurrency=(2,), rates=(20.0,), seeds=1, requests=4, stream=True, mode=mode)
    url = tiny.server.grpc_url if protocol == "grpc" else tiny.server.http_url
    levels = asyncio.run(measure_levels(load, Target(url, None), None))
    for level in levels:
        assert level["answered"] == level["requests"] == len(level["first_s"]) == 4
        assert level["errors"] == {}
        assert level["audio_s_per_s"] == pytest.approx(level["sentences_per_s"] * num_samples(tokens) / SAMPLE_RATE)
        assert level["chunks_per_stream"] > 1
        assert 0 < level["first_p50_s"] < level["p50_s"]
        assert level["first_p50_s"] <= level["first_p90_s"] <= level["first_p95_s"] <= level["first_p99_s"]
        assert level["underruns"] == sum(level["underruns_by_stream"]) >= level["with_underruns"]
        audible = [
            (first_s, s) for first_s, s in zip(level["first_s"], level["audible_s"], strict=True) if s is not None
        ]
        assert all(first_s <= s for first_s, s in audible)
        assert "first_parts_ms" not in level  # nobody sees the spans of this server
    assert report.table(server.STREAM_COLUMNS, [server._row(level, server.STREAM_COLUMNS)[1:] for level in levels])


def test_whole_answers_beside_streams_count_for_themselves(tiny, capsys):
    load = Load(tokens=200, concurrency=(2,), requests=4, stream=True, whole=3)
    before = successes(tiny)
    target = Target(tiny.server.grpc_url, None)
    alone, beside = asyncio.run(measure_levels(load, target, None))
    assert (alone["beside_whole"], beside["beside_whole"]) == (0, 3)
    assert "whole" not in alone
    assert alone["answered"] == beside["answered"] == 4
    whole = beside["whole"]
    assert 0 < whole["answered"] == whole["requests"] <= successes(tiny) - before
    assert whole["audio_s_per_s"] == pytest.approx(
        whole["sentences_per_s"] * num_samples(server.WHOLE_TOKENS) / SAMPLE_RATE
    )
    assert server._row(beside, server.STREAM_COLUMNS)[0] == "2 at once + 3 whole"


def listen(load, num_tokens):
    """What the bench's streams ask of the client, and what they hear of one that answers chunks of `num_tokens`."""
    asked, heard = [], []

    async def stream(text, options, *, mode, traceparent):
        assert traceparent == ""
        asked.append((text, options, mode))
        for count in num_tokens:
            audio = np.zeros(count * 512, np.float32)
            yield SimpleNamespace(duration=0.02 * count, num_tokens=count, audio=audio, sample_rate=24_000)

    async def run():
        async for audio_s in server.speaker(SimpleNamespace(stream=stream), load, first=100)(5):
            heard.append(audio_s)

    asyncio.run(run())
    return asked, heard


def test_a_stream_is_heard_chunk_by_chunk():
    load = Load(tokens=75, stream=True, mode="low_latency")
    ((text, options, mode),), heard = listen(load, [25, 50, 0])
    assert (text, options.seed, mode) == (server.sentence(105), 5, "low_latency")
    assert options.min_new_tokens == options.max_new_tokens == 75
    assert heard == pytest.approx([0.5, 1.0, 0.0])


def test_a_stream_of_other_length_than_asked_for_is_not_measured():
    with pytest.raises(AssertionError, match="made 74 tokens, not 75"):
        listen(Load(tokens=75, stream=True), [25, 49])


def test_soak_reads_the_memory_after_every_block(tiny, monkeypatch):
    monkeypatch.setattr(server, "SOAK_BLOCK", 4)
    load = Load(tokens=8, soak=18)
    before = successes(tiny)
    found = asyncio.run(measure_soak(load, Target(tiny.server.grpc_url, tiny.server.launcher.pid)))
    assert successes(tiny) - before == 18
    assert found["requests"] == [4, 8, 12, 16, 18]
    assert all(pss > held > 100 for pss, held in zip(found["memory_mb"], found["held_mb"], strict=True))
    assert len(found["held_mb"]) == 5
    assert -100 < found["second_half_slope_mb_per_100"] < 1_000
    assert found["errors"] == {}


def test_turns_of_a_seed_follow_each_other_and_no_text_comes_twice(tiny, monkeypatch):
    said = []
    monkeypatch.setattr(server, "sentence", lambda number: said.append(number) or sentence(number))
    load = Load(tokens=8, concurrency=(2,), rates=(50.0,), seeds=2, turns=2, requests=3)
    levels = asyncio.run(measure_levels(load, Target(tiny.server.grpc_url, None), None))
    assert [(level["seed"], level["turn"]) for level in levels] == [(None, None), (0, 0), (0, 1), (1, 0), (1, 1)]
    assert sorted(said) == list(range(2 + 5 * 3))


def test_a_whole_run_leaves_json_and_plot(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    load = Load(tokens=8, concurrency=(1, 2), requests=2)
    (path,) = server.run(load, tmp_path, [], tiny.server.grpc_url, None)
    run = report.read(path)
    assert [level["answered"] for level in run["levels"]] == [2, 2]
    assert run["levels"][0]["peak_memory_mb"] is None
    assert run["settings"]["url"] == tiny.server.grpc_url
    assert path.with_suffix(".png").exists()
    assert "2 at once" in capsys.readouterr().out


def test_a_whole_run_of_streams_leaves_json_and_plot(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    load = Load(tokens=80, concurrency=(1, 2), requests=2, stream=True, mode="low_latency", buffer_ms=100.0)
    (path,) = server.run(load, tmp_path, [], tiny.server.grpc_url, None)
    run = report.read(path)
    assert (run["settings"]["stream"], run["settings"]["mode"], run["settings"]["buffer_ms"]) == (
        True,
        "low_latency",
        100.0,
    )
    assert [len(level["first_s"]) for level in run["levels"]] == [2, 2]
    assert path.with_suffix(".png").exists()
    assert "with underruns" in capsys.readouterr().out


def test_a_server_that_answers_nothing_is_not_measured(tiny):
    """No answer comes within a millisecond."""
    load = Load(tokens=400, timeout_s=0.001, concurrency=(2,), requests=4)
    with pytest.raises(ConfigError, match="answered none of 2 requests: 2 DEADLINE_EXCEEDED"):
        asyncio.run(measure_levels(load, Target(tiny.server.grpc_url, None), None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": 0},
        {"concurrency": (4, 0)},
        {"rates": (-1.0,)},
        {"requests": -3},
        {"requests": 0},
        {"turns": 0},
        {"soak": 60},
        {"stream": True, "buffer_ms": -1.0},
        {"stream": True, "buffer_ms": float("nan")},
        {"mode": "low_latency"},
        {"buffer_ms": 50.0},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        Load(**wrong)


def test_a_soak_of_a_server_whose_processes_are_unknown_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--pid"):
        server.run(Load(soak=200), tmp_path, [], "127.0.0.1:1", None)


def test_levels_have_enough_requests():
    assert [Load().num_closed(concurrency) for concurrency in (1, 4, 64)] == [16, 16, 256]
    assert [Load().num_open(rate) for rate in (0.1, 2.5)] == [32, 50]
    assert Load(requests=7).num_closed(64) == Load(requests=7).num_open(100) == 7
