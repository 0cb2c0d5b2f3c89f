"""Asks a running server whether it works, for container probes: `python -m chattts_serving.probe`.

`/v2/health/ready` is not enough: Triton calls a server ready whose Python process hangs, and up to about 26.06 one
whose process is dead. So this also has the two Python models that every request needs answer a call each, of
milliseconds: `text_frontend` a word, `gpt_decoder` the cancelling of a request that nobody opened. One that is full or
about to end works, too. `speech` and `chattts_stream` have no call that speaks nothing; being ready tells from Triton
25.12 on that their processes live.

`--wait-idle SECONDS` waits until no request is open, before a server is stopped that gets no new ones.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import secrets
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

QUIET_S = 5.0  # without a request before a server counts as idle: as long as HAProxy takes to leave it out
POLL_S = 0.5
REFUSALS = re.compile("overloaded|shutting down")  # how a model says that it lives and takes nothing for now
OPEN_REQUESTS = re.compile(r"^chattts_requests_open(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


class ProbeError(Exception):
    """The server did not answer as one that works."""


def check(url: str, timeout_s: float) -> None:
    """Ask the server at `url` ("HOST:PORT" of HTTP); each answer may take `timeout_s` seconds.

    Raises:
        ProbeError: it does not work; the message says which question failed and how.
    """
    for path in ("/v2/health/ready", "/v2/models/speech/ready", "/v2/models/chattts_stream/ready"):
        _ask(url, "GET", path, timeout_s)
    _call(url, "text_frontend", "generation", timeout_s, text=("BYTES", "Ready."))
    name = f"probe-{secrets.token_hex(8)}"
    _call(url, "gpt_decoder", "chunk", timeout_s, stream_id=("BYTES", name), cancel=("BOOL", True))


def wait_idle(metrics_url: str, limit_s: float, timeout_s: float, quiet_s: float = QUIET_S) -> None:
    """Wait until the server has had no open request for `quiet_s` seconds.

    Args:
        metrics_url: "HOST:PORT" of the metrics; of several servers, with commas between them.
        limit_s: seconds after which waiting ends.
        timeout_s: seconds for one look at the metrics.
        quiet_s: as above.

    Raises:
        ProbeError: the metrics could not be read, or requests were still open after `limit_s`.
    """
    end = time.monotonic() + limit_s
    quiet_since: float | None = None
    while True:
        num_open = sum(open_requests(_ask(url, "GET", "/metrics", timeout_s)) for url in metrics_url.split(","))
        now = time.monotonic()
        if num_open:
            quiet_since = None
        elif quiet_since is None:
            quiet_since = now
        if quiet_since is not None and now - quiet_since >= quiet_s:
            return
        if now >= end:
            raise ProbeError(f"{num_open} requests are open after {limit_s:.0f} s")
        time.sleep(POLL_S)


def open_requests(metrics: str) -> int:
    """How many requests are open, from the text of the metrics endpoint.

    Raises:
        ProbeError: it does not say.
    """
    found = OPEN_REQUESTS.search(metrics)
    if not found:
        raise ProbeError("the metrics have no chattts_requests_open: is gpt_decoder loaded?")
    return int(float(found[1]))


def _call(url: str, model: str, output: str, timeout_s: float, **inputs: tuple[str, object]) -> None:
    """Have `model` answer one value for each input, given as (datatype, value)."""
    tensors: list[dict[str, Any]] = [
        {"name": name, "datatype": datatype, "shape": [1, 1], "data": [value]}
        for name, (datatype, value) in inputs.items()
    ]
    body = json.dumps({"inputs": tensors, "outputs": [{"name": output}]})
    _ask(url, "POST", f"/v2/models/{model}/infer", timeout_s, body)


def _ask(url: str, method: str, path: str, timeout_s: float, body: str | None = None) -> str:
    try:
        with closing(http.client.HTTPConnection(url, timeout=timeout_s)) as connection:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise ProbeError(f"{url}{path}: {str(error) or type(error).__name__}") from error
    is_alive = response.status == http.client.SERVICE_UNAVAILABLE and method == "POST" and REFUSALS.search(answer)
    if response.status != http.client.OK and not is_alive:
        raise ProbeError(f"{url}{path}: status {response.status} {answer[:300]}")
    return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status: 0 where the server works (or is idle), else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m chattts_serving.probe", description="Ask a running server whether it works."
    )
    parser.add_argument("--url", default="127.0.0.1:8000", metavar="HOST:PORT", help="HTTP (default %(default)s)")
    parser.add_argument(
        "--metrics-url",
        default="127.0.0.1:8002",
        metavar="HOST:PORT",
        help="metrics (default %(default)s); of several servers with commas between them, as the launcher prints them",
    )
    parser.add_argument(
        "--timeout", type=float, default=4.0, metavar="SECONDS", help="for each answer (default %(default)s)"
    )
    parser.add_argument("--wait-idle", type=float, metavar="SECONDS", help="wait up to this until no request is open")
    parser.add_argument(
        "--idle-for",
        type=float,
        default=QUIET_S,
        metavar="SECONDS",
        help="without an open request, until --wait-idle ends: as long as balancers may take to leave the server out "
        "(default %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.wait_idle is None:
            check(options.url, options.timeout)
        else:
            wait_idle(options.metrics_url, options.wait_idle, options.timeout, options.idle_for)
    except ProbeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
