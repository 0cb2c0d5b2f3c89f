"""What a live server's metrics endpoint says."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from dataclasses import dataclass, fields

from chattts_serving.launcher.running import RunningServer

PORT_OPENS_S = 10.0
SETTLED_S = 0.1


@dataclass(frozen=True)
class Engine:
    """What `gpt_decoder` reports of itself; each field is the gauge `chattts_` and its name."""

    requests_open: int
    sequences_running: int
    sequences_waiting: int
    cache_tokens_used: int


AT_REST = Engine(0, 0, 0, 0)


def exposition(server: RunningServer) -> str:
    """What the endpoint answers, in Prometheus's text format; its port may open a moment after the server is ready."""
    end = time.monotonic() + PORT_OPENS_S
    while True:
        try:
            with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=60) as response:
                text: str = response.read().decode()
        except urllib.error.URLError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return text


def samples(server: RunningServer) -> dict[str, float]:
    """Every value as it is now, by its name with labels, as the endpoint writes it: `name{label="value",...}`."""
    lines = (line for line in exposition(server).splitlines() if not line.startswith("#"))
    parts = (line.rsplit(" ", maxsplit=1) for line in lines)
    return {name: float(value) for name, value in parts}


def scrape(server: RunningServer) -> Engine:
    """The gauges as they are now.

    Raises:
        KeyError: one is not there.
    """
    values = samples(server)
    return Engine(**{field.name: int(values[f"chattts_{field.name}"]) for field in fields(Engine)})


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
    """Seconds until the engine holds nothing any more; as `wait_until`.

    The gauges lag behind by some hundredths of a second, so a request of a moment ago may not be in them yet: who was
    at rest stays there for SETTLED_S.
    """
    start = time.monotonic()
    while True:
        wait_until(server, lambda engine: engine == AT_REST, within_s)
        rested_s = time.monotonic() - start
        time.sleep(SETTLED_S)
        if scrape(server) == AT_REST:
            return rested_s
