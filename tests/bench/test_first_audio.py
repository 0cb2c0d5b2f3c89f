"""Where the time to first audio went, from spans made by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bench.first_audio import PARTS, Notes, composition, parts_of, parts_of_all, rate_without_a_gap, show
from bench.load import Chunk, Outcome
from bench.spans import SpanReceiver

MS = 1_000_000
DUE_NS = 1_000_000 * MS
# Due at 0, sent at 2 ms, heard of at 100 ms; starts and ends in ms after it was due.
SPANS = {
    "text_frontend": (5, 9),
    "gpt_decoder": (10, 72),
    "queue": (11, 21),
    "prompt": (21, 40),
    "tokens": (40, 70),
    "speech_chunk": (73, 95),
    "dvae_decoder": (75, 80),
    "vocos": (82, 93),
}
EXPECTED = {
    "client": 2,
    "request": 3,
    "text": 4,
    "queue": 10,
    "prompt": 19,
    "tokens": 30,
    "decoder": 5,
    "vocoder": 11,
    "calls": 11,  # 9 to 11, 70 to 75, 80 to 82, 93 to 95
    "transport": 5,
}
OUTCOME = Outcome(0.5, 0.002, (Chunk(0.1, 1.0), Chunk(0.4, 1.0)), None)


def span(name: str, start_ms: float, end_ms: float, parent: str = "") -> dict[str, Any]:
    times = {"startTimeUnixNano": str(DUE_NS + int(start_ms * MS)), "endTimeUnixNano": str(DUE_NS + int(end_ms * MS))}
    return {"name": name, "spanId": f"{name} {start_ms}", "parentSpanId": parent, **times}


def spans(*without: str) -> list[dict[str, Any]]:
    """Of both chunks of the stream, the second one's first."""
    chunks = {"speech_chunk": 300, "dvae_decoder": 302, "vocos": 310, "gpt_decoder": 200}
    later = [span(name, at, at + 5, "speech_chunk 300") for name, at in chunks.items()]
    first = [span(name, *times, "speech_chunk 73") for name, times in SPANS.items() if name not in without]
    return later + first


def parts(found: list[dict[str, Any]]) -> Any:
    return parts_of(found, DUE_NS + 2 * MS, OUTCOME)


def test_the_parts_are_those_of_the_first_chunk_and_add_up() -> None:
    assert parts(spans()) == pytest.approx(EXPECTED)
    assert list(EXPECTED) == list(PARTS)
    assert sum(EXPECTED.values()) == 100


def test_decoder_and_vocoder_without_spans_are_among_the_calls() -> None:
    found = parts([one for one in spans() if one["name"] not in {"dvae_decoder", "vocos"}])
    assert (found["decoder"], found["vocoder"], found["calls"]) == (None, None, pytest.approx(27))


@pytest.mark.parametrize("name", sorted(set(SPANS) - {"gpt_decoder"}))
def test_while_a_span_of_the_first_chunk_is_missing_there_are_no_parts(name: str) -> None:
    assert parts(spans(name)) is None


def test_spans_that_come_late_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.first_audio.SPANS_AFTER_S", 0.0)
    receiver, notes = SpanReceiver(""), Notes()
    notes.sent_ns = {0: DUE_NS, 1: DUE_NS + 2 * MS}
    first = [one | {"traceId": notes.trace_id(1)} for one in spans()]
    come = iter([[], first[:5], first[5:]])
    monkeypatch.setattr(receiver, "spans", lambda: seen.extend(next(come, [])) or seen)
    seen: list[dict[str, Any]] = []
    outcomes = [Outcome(0.1, 0.0, (), "UNAVAILABLE"), OUTCOME]
    assert asyncio.run(parts_of_all(receiver, notes, outcomes)) == [pytest.approx(EXPECTED)]


def stream(total: float) -> dict[str, float | None]:
    return dict.fromkeys(PARTS, total / len(PARTS))


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95)])
def test_the_parts_of_a_percentile_are_those_of_the_streams_round_it(share: float, expected: float) -> None:
    streams = [stream(float(total)) for total in np.random.default_rng(0).permutation(np.arange(1, 101))]
    total, mean = composition(streams, share)
    assert total == pytest.approx(expected)
    assert sum(ms for ms in mean.values() if ms is not None) == pytest.approx(total)
    assert composition([stream(7.0)], share)[0] == pytest.approx(7)


def level(rate: float, turn: int, *, underruns: int = 0, errors: int = 0, first_s: float = 0.1) -> dict[str, Any]:
    return {
        "loop": "open",
        "concurrency": None,
        "rate": rate,
        "turn": turn,
        "answered": 1,
        "with_underruns": underruns,
        "errors": {"UNAVAILABLE": errors} if errors else {},
        "first_s": [first_s],
        "audible_s": [first_s + 0.2],
        "first_parts_ms": [stream(1e3 * first_s)],
    }


def test_the_rate_without_a_gap_is_the_last_before_the_first_gap() -> None:
    assert rate_without_a_gap([level(4, 0), level(2, 0), level(8, 0), level(2, 1), level(8, 1, underruns=1)]) == 4
    assert rate_without_a_gap([level(2, 0, errors=1), level(4, 0)]) is None
    assert rate_without_a_gap([level(2, 0), level(2, 1), level(4, 1, errors=1), level(8, 0)]) == 2


def test_what_is_shown_has_both_turns_and_the_noise_between_them() -> None:
    shown = show([level(2, 0), level(2, 1, first_s=0.13), level(4, 0, underruns=2)])
    assert "2/s, again  p95" in shown
    assert "2/s, the same again: first audio p50 +30 ms, p95 +30 ms" in shown
    assert "up to 2/s (2 streams there): first audio p50 100 ms" in shown
    assert "audible p95 330 ms" in shown


def test_streams_that_nobody_traced_are_shown_without_parts() -> None:
    shown = show([level(2, 0) | {"first_parts_ms": [None]}, level(2, 1, errors=3) | {"first_parts_ms": []}])
    assert "prompt" not in shown
    assert "at none of the rates" in shown


def test_the_first_audible_sample_is_found_in_whichever_chunk_it_is() -> None:
    notes, silence = Notes(), np.full(2_400, 0.009, np.float32)
    speech = silence.copy()
    speech[600] = -0.02
    for start_s, audio in ((0.0, silence), (0.1, np.zeros(0, np.float32)), (0.1, speech), (0.2, speech)):
        notes.hear(3, audio, start_s, 24_000)
        notes.hear(4, silence, start_s, 24_000)
    assert notes.onset_s == {3: pytest.approx(0.125)}


def test_streams_of_a_level_have_traces_of_their_own() -> None:
    notes, others = Notes(), Notes()
    ids = {trace.send(number).split("-")[1] for trace in (notes, others) for number in range(20)}
    assert len(ids) == 40
    assert ids == {trace.trace_id(number) for trace in (notes, others) for number in range(20)}
