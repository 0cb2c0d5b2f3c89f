"""The comparison of the gateway with gRPC: real servers, few streams; and its arithmetic on made-up runs."""

import asyncio

import pytest

from bench.gateway import Comparison, measure, show
from chattts_serving.audio import num_samples
from gateway.process import running_gateway


def test_both_ways_speak_the_same_and_lose_nothing(tiny, tmp_path, capsys):
    comparison = Comparison(clients=4, streams=8, rounds=2, tokens=32, pause_s=0.05)
    with running_gateway(tiny.server.grpc_url, tmp_path / "gateway.log") as gateway:
        runs = asyncio.run(measure(comparison, tiny.server.grpc_url, gateway.url))
    for way in ("grpc", "gateway"):
        assert [one["errors"] for one in runs[way]] == [{}, {}]
        assert [one["samples"] for one in runs[way]] == 2 * [8 * [num_samples(32)]]
        assert all(0 < first < one["seconds"] for one in runs[way] for first in one["first_s"])
    assert show(runs)["differing"] == 0
    assert "of 16" in capsys.readouterr().out


def test_differences_are_of_percentiles_and_of_streams_side_by_side(capsys):
    def run(first_ms, samples):
        first_s = [milliseconds / 1e3 for milliseconds in first_ms]
        counts = {"requests": len(samples), "answered": len(samples), "errors": {}, "seconds": 1.0}
        return counts | {"first_s": first_s, "samples": samples}

    runs = {"grpc": [run(range(1, 101), [5, 6, 7])], "gateway": [run(range(3, 203, 2), [5, 7, 6])]}
    found = show(runs)
    assert found["added_ms"]["p50"] == pytest.approx(101 - 50)
    assert found["added_ms"]["p95"] == pytest.approx(191 - 95)
    assert found["differing"] == 2
