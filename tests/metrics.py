"""Gauges of a live server's metrics endpoint."""

from __future__ import annotations

import re
import time
import urllib.request
from dataclasses import dataclass, fields

from chattts_serving.server import RunningServer


@dataclass(frozen=True)
class Engine:
    """What `gpt_decoder` reports of itself; each field is the gauge `chattts_` and its name."""

    requests_open: int
    sequences_running: int
    sequences_waiting: int
    cache_tokens_used: int


AT_REST = Engine(0, 0, 0, 0)


def scrape(server: RunningServer) -> Engine:
    """The gauges as they are now.

    Raises:
        AssertionError: one is not there.
    """
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=60) as response:
        text = response.read().decode()
    values = {}
    for field in fields(Engine):
        found = re.findall(rf"^chattts_{field.name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        assert len(found) == 1, f"{field.name}: {found}"
        values[field.name] = int(float(found[0]))
    return Engine(**values)


def wait_until(server: RunningServer, holds, within_s: float) -> float:
    """Seconds until the gauges are such that `holds`.

    Raises:
        AssertionError: they were not, `within_s` seconds long.
    """
    start = time.monotonic()
    while True:
        engine, waited_s = scrape(server), time.monotonic() - start
        if holds(engine):
            return waited_s
        assert waited_s < within_s, f"after {waited_s:.1f} s {engine}"
        time.sleep(0.005)


def time_to_rest(server: RunningServer, within_s: float = 10.0) -> float:
    """Seconds until the engine holds nothing any more; as `wait_until`."""
    return wait_until(server, lambda engine: engine == AT_REST, within_s)
