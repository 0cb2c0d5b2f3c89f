"""What a run must keep to pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from tests.load.summary import Summary


class Verdict(NamedTuple):
    """One limit beside what was measured; None where there was nothing to measure."""

    name: str
    measured: float | None
    limit: float
    kept: bool


@dataclass(frozen=True)
class Limits:
    """The most that is allowed; infinity allows all.

    Attributes:
        errors: requests that failed, as a share of all, 0 to 1.
        first_audio_s: p95 of the seconds until the first samples of a stream.
        latency_s: p95 of the seconds until the end of an answer.
        rtf: p95 of the requests' seconds per second of audio.

    Raises:
        ValueError: a limit is negative, or no number.
    """

    errors: float = 0.01
    first_audio_s: float = 20.0
    latency_s: float = 90.0
    rtf: float = 50.0

    def __post_init__(self) -> None:
        """Check every limit."""
        for name, limit in vars(self).items():
            if math.isnan(limit) or limit < 0:
                raise ValueError(f"limit '{name}' is {limit}; allowed is 0 or more")

    def verdicts(self, summary: Summary) -> list[Verdict]:
        """Each limit beside what `summary` has; what was not measured keeps its limit.

        A server that nobody reached would keep them all, so there is one for that, and one for errors of the test.
        """
        most = {
            "share of errors": (summary.error_share, self.errors),
            "first audio p95 s": (summary.first_audio_p95_s, self.first_audio_s),
            "latency p95 s": (summary.latency_p95_s, self.latency_s),
            "RTF p95": (summary.rtf_p95, self.rtf),
            "exceptions in the test": (summary.exceptions, 0),
        }
        heard = summary.answered + summary.left
        return [
            *(Verdict(name, value, limit, value is None or value <= limit) for name, (value, limit) in most.items()),
            Verdict("requests heard, fewest", heard, 1, heard >= 1),
        ]
