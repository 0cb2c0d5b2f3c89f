"""What came of a run: the entries of the statistics and their summary. It does not need locust."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.load.entries import BYTES_PER_AUDIO_S, FIRST_AUDIO, LEFT, MEASURES, RTF


@dataclass(frozen=True)
class Entry:
    """One entry of locust's statistics.

    Attributes:
        way: how the requests went to the server; locust's "type".
        name: see `entries`.
        requests, failures: how many; of a measure, how often it was taken.
        times: how often each value was seen, in ms (RTF: thousandths), rounded by locust to two digits.
        audio_s: seconds of audio in the answers.
    """

    way: str
    name: str
    requests: int
    failures: int
    times: Mapping[int, int]
    audio_s: float

    @classmethod
    def from_locust(cls, entry: Any) -> Entry:
        """A `locust.stats.StatsEntry`."""
        audio_s = entry.total_content_length / BYTES_PER_AUDIO_S
        return cls(
            entry.method, entry.name, entry.num_requests, entry.num_failures, dict(entry.response_times), audio_s
        )

    def to_json(self) -> dict[str, Any]:
        """For the report; percentiles are None where nothing was measured."""
        counts = {"type": self.way, "name": self.name, "requests": self.requests, "failures": self.failures}
        return counts | {f"p{share}": percentile(self.times, share / 100) for share in (50, 90, 95, 99, 100)}


@dataclass(frozen=True)
class Summary:
    """A whole run.

    Attributes:
        seconds: from its start to the last answer.
        requests: all that were sent, measures not among them.
        answered, left: those that got audio, and those that their callers left.
        errors: how many of each kind.
        exceptions: of the load test itself; a run with any says nothing.
        audio_s_per_s: seconds of audio answered per second.
        first_audio_p95_s, latency_p95_s, rtf_p95: over all entries; None where nothing was measured.
    """

    seconds: float
    requests: int
    answered: int
    left: int
    errors: Mapping[str, int]
    exceptions: int
    audio_s_per_s: float
    first_audio_p95_s: float | None
    latency_p95_s: float | None
    rtf_p95: float | None

    @property
    def error_share(self) -> float:
        """Of the requests, 0 to 1."""
        return sum(self.errors.values()) / max(1, self.requests)


def percentile(times: Mapping[int, int], share: float) -> int | None:
    """The smallest value that at least `share` (above 0, to 1) of them do not exceed; None without values."""
    needed = share * sum(times.values()) - 1e-9  # 0.07 * 100 is more than 7
    seen = 0
    for value in sorted(times):
        seen += times[value]
        if seen >= needed:
            return value
    return None


def summarize(entries: Sequence[Entry], errors: Mapping[str, int], exceptions: int, seconds: float) -> Summary:
    """The summary of a run of `seconds`; `errors` has how many there were of each kind."""
    sent = [entry for entry in entries if entry.name not in MEASURES]
    requests = sum(entry.requests for entry in sent)
    left = sum(entry.requests for entry in sent if entry.name == LEFT)
    return Summary(
        seconds=seconds,
        requests=requests,
        answered=requests - left - sum(entry.failures for entry in sent),
        left=left,
        errors=dict(errors),
        exceptions=exceptions,
        audio_s_per_s=sum(entry.audio_s for entry in sent) / seconds if seconds else 0.0,
        first_audio_p95_s=_thousandths(entries, FIRST_AUDIO),
        latency_p95_s=_p95(sent),
        rtf_p95=_thousandths(entries, RTF),
    )


def _thousandths(entries: Iterable[Entry], name: str) -> float | None:
    return _p95(entry for entry in entries if entry.name == name)


def _p95(entries: Iterable[Entry]) -> float | None:
    times: Counter[int] = Counter()
    for entry in entries:
        times.update(entry.times)
    value = percentile(times, 0.95)
    return None if value is None else value / 1e3
