"""What a live server's metrics endpoint says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from unittest.mock import patch

from chattts_serving.launcher.running import RunningServer
from chattts_serving.speech.admission import RoomSign
from chattts_serving.variables import DRAIN_FILE

PORT_OPENS_S = 10.0


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
            with closing(HTTPConnection(server.metrics_url, timeout=60)) as connection:
                connection.request("GET", "/metrics")
                text = connection.getresponse().read().decode()
        except OSError:
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


def requests_inside(server: RunningServer) -> int:
    """How many requests the server counts where it decides whom it lets in: open, or on their way to the engine.

    The gauges say so later: a thread of its own writes their values, which on a busy machine took up to 0.35 s.
    """
    sign = _room_sign(server)
    room = sign.read()
    assert room is not None
    return room.num_open + sum(sign.num_ahead(room))


@cache
def _room_sign(server: RunningServer) -> RoomSign:
    environment = Path(f"/proc/{server.pid}/environ").read_text(encoding="utf-8").split("\0")
    [drain_file] = [line.partition("=")[2] for line in environment if line.startswith(f"{DRAIN_FILE}=")]
    sign = RoomSign()
    with patch.dict(os.environ, {DRAIN_FILE: drain_file}):
        sign.read()  # which opens the file for good
    return sign


def wait_until(server: RunningServer, holds: Callable[[Engine], bool], within_s: float) -> float:
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
    """Seconds until the server holds nothing any more and its gauges say so; as `wait_until`."""
    return wait_until(server, lambda engine: engine == AT_REST and requests_inside(server) == 0, within_s)
