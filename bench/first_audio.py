"""Where the time to a stream's first audio goes: the client's notes and the spans of the server's models, in one sum.

Client and server have one clock, as they run on one machine.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench import report
from bench.load import Outcome, percentile
from bench.spans import Span, SpanReceiver

PARTS = {  # of the time to first audio; they add up to it
    "client": "from the moment due until the client has sent the request",
    "request": "until its text is taken up",
    "text": "text_frontend",
    "queue": "until the step is launched that computes the prompt",
    "prompt": "until the first token is there",
    "tokens": "until all tokens of the first chunk are",
    "decoder": "dvae_decoder",
    "vocoder": "vocos",
    "calls": "between these: calls of models, their queues",
    "transport": "from the end of the first chunk until the client has it",
}
SHARES = {"p50": 0.5, "p95": 0.95}
AROUND = 0.05  # share of the streams, to each side of a percentile, whose parts are averaged
SPANS_AFTER_S, SPANS_WITHIN_S = 1.0, 5.0  # of the end of a level; models send what has ended every half second
AUDIBLE = 0.01  # of full scale, -40 dB; what the demo checkpoint makes of silence stays below 0.001 (measured)

Parts = dict[str, "float | None"]
Level = dict[str, Any]


class Notes:
    """What the client notes of one level's streams.

    Attributes:
        sent_ns: when each was sent, ns since 1970, by number.
        onset_s: seconds of its audio before the first audible sample, by number; none where nothing is audible.
    """

    def __init__(self) -> None:
        """Nothing is sent."""
        self.sent_ns: dict[int, int] = {}
        self.onset_s: dict[int, float] = {}
        self._name = secrets.token_hex(8)

    def trace_id(self, number: int) -> str:
        """Of stream `number`."""
        return f"{self._name}{number:016x}"

    def send(self, number: int) -> str:
        """Stream `number` is sent now; its traceparent."""
        self.sent_ns[number] = time.time_ns()
        return f"00-{self.trace_id(number)}-{secrets.token_hex(8)}-01"

    def hear(self, number: int, audio: npt.NDArray[np.float32], start_s: float, sample_rate: int) -> None:
        """`audio` [n] is what stream `number` says from `start_s` on."""
        if number not in self.onset_s:
            audible = np.abs(audio) >= AUDIBLE
            if audible.any():
                self.onset_s[number] = start_s + int(audible.argmax()) / sample_rate


async def parts_of_all(receiver: SpanReceiver, notes: Notes, outcomes: Sequence[Outcome]) -> list[Parts | None]:
    """The parts of each stream that was answered, ms; None where spans are missing SPANS_WITHIN_S after the level."""
    await asyncio.sleep(SPANS_AFTER_S)
    answered = [(number, outcome) for number, outcome in enumerate(outcomes) if outcome.error is None]
    end = time.monotonic() + SPANS_WITHIN_S
    while True:
        by_trace = defaultdict(list)
        for span in receiver.spans():
            by_trace[span["traceId"]].append(span)
        found = [
            parts_of(by_trace[notes.trace_id(number)], notes.sent_ns[number], outcome) for number, outcome in answered
        ]
        has_sound = {parts["decoder"] is not None and parts["vocoder"] is not None for parts in found if parts}
        if (None not in found and len(has_sound) <= 1) or time.monotonic() > end:
            return found
        await asyncio.sleep(0.2)


def parts_of(spans: Iterable[Span], sent_ns: int, outcome: Outcome) -> Parts | None:
    """The parts of one stream, ms; None where its spans are not all there.

    Decoder and vocoder are None where they have no spans of their own, as with Triton's C++ backend: they are among
    the calls then.
    """
    first: dict[str, Span] = {}  # of each name
    for span in sorted(spans, key=_start_ns):
        first.setdefault(span["name"], span)
    if not {"text_frontend", "queue", "prompt", "tokens", "speech_chunk"} <= first.keys():
        return None
    chunk = first["speech_chunk"]
    sound = [first[name] for name in ("dvae_decoder", "vocos") if name in first]
    if any(span["parentSpanId"] != chunk["spanId"] for span in sound):
        return None  # the spans of a later chunk have come, those of the first have not
    total, late = 1e3 * outcome.sounding[0].arrival_s, 1e3 * outcome.late_s
    due_ns = sent_ns - 1e6 * late
    parts: Parts = {
        "client": late,
        "request": (_start_ns(first["text_frontend"]) - sent_ns) / 1e6,
        "text": _ms(first["text_frontend"]),
        **{name: _ms(first[name]) for name in ("queue", "prompt", "tokens")},
        "decoder": _ms(first["dvae_decoder"]) if "dvae_decoder" in first else None,
        "vocoder": _ms(first["vocos"]) if "vocos" in first else None,
        "transport": total - (_end_ns(chunk) - due_ns) / 1e6,
    }
    parts["calls"] = total - sum(ms for ms in parts.values() if ms is not None)
    return {name: parts[name] for name in PARTS}


def composition(streams: Sequence[Mapping[str, float | None]], share: float) -> tuple[float, Parts]:
    """Time to first audio round the percentile `share`, and its parts: means over the streams there, which add up.

    `streams` are the parts of one or more streams.
    """
    totals = [sum(ms for ms in parts.values() if ms is not None) for parts in streams]
    order = sorted(range(len(streams)), key=totals.__getitem__)
    centre, reach = math.ceil(share * len(order) - 1e-9) - 1, int(AROUND * len(order))
    there = order[max(0, centre - reach) : centre + reach + 1]

    def mean(name: str) -> float | None:
        found = [ms for place in there if (ms := streams[place][name]) is not None]
        return sum(found) / len(there) if found else None

    return sum(totals[place] for place in there) / len(there), {name: mean(name) for name in PARTS}


def show(levels: Sequence[Level]) -> str:
    """What is printed of the levels of streams: parts, how far two runs of the same differ, the rate without a gap."""
    pooled: dict[tuple[str, int], list[Level]] = defaultdict(list)  # the seeds of one
    for level in levels:
        at = f"{level['concurrency']} at once" if level["loop"] == "closed" else f"{level['rate']:g}/s"
        if level.get("beside_long_text"):
            at += " + long text"
        if level.get("beside_whole"):
            at += f" + {level['beside_whole']} whole"
        pooled[at, level.get("turn") or 0].append(level)
    rows = []
    for (at, turn), same in pooled.items():
        streams = [parts for level in same for parts in level.get("first_parts_ms", ()) if parts]
        for name, share in SHARES.items() if streams else ():
            total, parts = composition(streams, share)
            rows.append([f"{at}, again" if turn else at, name, len(streams), total, *(parts[part] for part in PARTS)])
    lines = [report.table(("first audio, ms", "", "streams", "all", *PARTS), rows)] if rows else []
    return "\n".join([*lines, *_noise(pooled), *_without_a_gap(levels)])


def _noise(pooled: Mapping[tuple[str, int], Sequence[Level]]) -> list[str]:
    lines = []
    for (at, turn), again in pooled.items():
        if turn:
            before, after = _percentiles(pooled[at, 0]), _percentiles(again)
            changes = (f"{name} {1e3 * (after[name] - before[name]):+.0f} ms" for name in before if name in after)
            lines.append(f"{at}, the same again: first audio {', '.join(changes)}")
    return lines


def _percentiles(levels: Sequence[Level]) -> dict[str, float]:
    first_s = [seconds for level in levels for seconds in level["first_s"]]
    return {name: percentile(first_s, share) for name, share in SHARES.items() if first_s}


def rate_without_a_gap(levels: Sequence[Level]) -> float | None:
    """The highest rate up to which no stream of any run had an underrun or an error; None where there is none."""
    best = None
    for rate in sorted({level["rate"] for level in levels if level["loop"] == "open"}):
        if any(level["with_underruns"] or level["errors"] for level in levels if level["rate"] == rate):
            break
        best = rate
    return best


def _without_a_gap(levels: Sequence[Level]) -> list[str]:
    if all(level["loop"] == "closed" for level in levels):
        return []
    best = rate_without_a_gap(levels)
    if best is None:
        return ["at none of the rates were all streams without an underrun and an error"]
    there = [level for level in levels if level["rate"] == best]
    heard = [seconds for level in there for seconds in level["audible_s"] if seconds is not None]
    times = {"first audio": _percentiles(there)}
    times["audible"] = {name: percentile(heard, share) for name, share in SHARES.items() if heard}
    words = (f"{what} {name} {1e3 * s:.0f} ms" for what, found in times.items() for name, s in found.items())
    count = sum(level["answered"] for level in there)
    return [f"without an underrun or an error up to {best:g}/s ({count} streams there): {', '.join(words)}"]


def _start_ns(span: Span) -> int:
    return int(span["startTimeUnixNano"])


def _end_ns(span: Span) -> int:
    return int(span["endTimeUnixNano"])


def _ms(span: Span) -> float:
    return (_end_ns(span) - _start_ns(span)) / 1e6
