"""The comparison of the gateway with gRPC: real servers, few streams; and its arithmetic on made-up runs."""

import asyncio

import numpy as np
import pytest

from bench.gateway import Comparison, measure, show
from chattts_serving.audio import num_samples
from gateway.process import running_gateway


def test_both_ways_speak_the_same_and_lose_nothing(tiny, tmp_path, capsys, behind_a_proxy):
    comparison = Comparison(clients=4, streams=16, tokens=32, pause_s=0.05)
    with running_gateway(tiny.server.grpc_url, tmp_path / "gateway.log") as gateway:
        runs = asyncio.run(measure(comparison, tiny.server.grpc_url, gateway.url))
    for way in ("grpc", "gateway"):
        assert runs[way]["errors"] == {}
        assert runs[way]["samples"] == 20 * [num_samples(32)]
        assert len(runs[way]["first_s"]) == 16
        assert all(0 < first < runs[way]["seconds"] for first in runs[way]["first_s"])
    assert show(runs)["differing"] == 0
    assert "of 20" in capsys.readouterr().out


def test_differences_are_of_percentiles_and_of_streams_side_by_side(capsys):
    def run(first_ms, samples):
        first_s = [milliseconds / 1e3 for milliseconds in first_ms]
        counts = {"requests": len(samples), "answered": len(samples), "errors": {}, "seconds": 1.0}
        return counts | {"first_s": first_s, "samples": samples}

    found = show({"grpc": run(range(1, 101), [5, 6, 7]), "gateway": run(range(3, 203, 2), [5, 7, 6])})
    assert found["added"]["p50"]["ms"] == pytest.approx(101 - 50)
    assert found["added"]["p95"]["ms"] == pytest.approx(191 - 95)
    assert all(one["low"] < one["ms"] < one["high"] for one in found["added"].values())
    assert found["differing"] == 2


def test_the_interval_holds_no_difference_where_there_is_none():
    first_s = list(np.random.default_rng(1).exponential(0.05, 400))
    run = {"requests": 1, "answered": 1, "errors": {}, "seconds": 1.0, "first_s": first_s, "samples": [1]}
    other = run | {"first_s": list(np.random.default_rng(2).exponential(0.05, 400))}
    for one in show({"grpc": run, "gateway": other})["added"].values():
        assert one["low"] < 0 < one["high"]
