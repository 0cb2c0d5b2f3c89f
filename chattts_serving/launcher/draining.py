"""Lets open requests end before the server does: how gpt_decoder is told, and when nothing is left.

tritonserver cannot do this itself: from SIGTERM on it refuses what one model asks of another, and every chunk of speech
is such a call, so that all open requests would fail (measured, Triton 2.51).
"""

from __future__ import annotations

import http.client
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chattts_serving.launcher.probe import ProbeError, open_requests
from chattts_serving.variables import DRAIN_FILE

# Without an open request and without an answer of any model: Triton may still be sending the last one.
QUIET_S = 0.5  # where no request was open when draining began
LAST_ANSWER_S = 2.0  # where one was
ANSWERS_S = 2.0  # past the limit, for the errors that then answer what is left
ENDED = re.compile(r"^nv_inference_request_(?:success|failure)\{[^}]*\} (\S+)$", re.MULTILINE)
# gpt_decoder closes a request when its last tokens leave. The models that speak have it until its last sound has left.
COME, GONE = (
    re.compile(rf"^chattts_requests_{name}_total\{{[^}}]*\}} (\S+)$", re.MULTILINE) for name in ("come", "gone")
)


@dataclass
class Drain:
    """The end of one server.

    Attributes:
        file: does not exist until the server drains. Then it holds the `time.monotonic()` at which gpt_decoder answers
            what is still open with ShuttingDownError; from its writing on it refuses new requests with that error.
        limit_s: seconds from the one moment to the other.
        metrics: address and port of the metrics.
    """

    file: Path
    limit_s: float
    metrics: tuple[str, int]
    _end: float = 0.0
    _seen: tuple[float, float] = (-1, 0.0)  # open requests, and how many requests have ended
    _quiet_since: float = field(default_factory=time.monotonic)
    _quiet_s: float = QUIET_S

    def environment(self) -> Mapping[str, str]:
        """What the models must find in their environment."""
        return {DRAIN_FILE: str(self.file)}

    def begin(self) -> None:
        """Have the server refuse what is new and end what is open."""
        self._end = time.monotonic() + self.limit_s
        written = self.file.with_suffix(".new")
        written.write_text(repr(self._end), encoding="utf-8")
        written.replace(self.file)  # whole, for who looks at any time

    def is_over(self) -> bool:
        """Whether nothing is open any more, or the time is over; asks the server, for a second at most."""
        now = time.monotonic()
        if now >= self._end + ANSWERS_S:
            return True
        try:
            metrics = _get(self.metrics)
        except (OSError, http.client.HTTPException):
            return False
        try:
            spoken = _total(COME, metrics) - _total(GONE, metrics)
            seen = max(open_requests(metrics), spoken), _total(ENDED, metrics)
        except ProbeError:  # no gpt_decoder, and nothing to wait for
            return True
        if seen[0]:
            self._quiet_s = LAST_ANSWER_S
        if seen[0] or seen != self._seen:
            self._seen, self._quiet_since = seen, now
        return now - self._quiet_since >= self._quiet_s


def _total(pattern: re.Pattern[str], metrics: str) -> float:
    return sum(map(float, pattern.findall(metrics)))


def _get(address: tuple[str, int]) -> str:
    connection = http.client.HTTPConnection(*address, timeout=1.0)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode(errors="replace")
    finally:
        connection.close()
