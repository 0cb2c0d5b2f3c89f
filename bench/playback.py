"""What someone hears who plays streams while they arrive: when sound starts, and where it stops for want of audio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from bench.load import Chunk, Outcome, percentile


class Playback(NamedTuple):
    """One stream as it was heard.

    Attributes:
        underruns: how often the player ran out of audio before the next chunk was there.
        silence_s: how long it was silent for that, all in all.
    """

    underruns: int
    silence_s: float


@dataclass(frozen=True)
class StreamSummary:
    """The streams of one level of load; those that ended in an error are not in it.

    Attributes:
        first_p50_s, first_p90_s, first_p95_s, first_p99_s: from the moment at which a request was due until its first
            chunk with samples was there; None where no stream was answered.
        with_underruns: streams with at least one underrun.
        underrun_share: of those answered, 0 to 1; None where no stream was answered.
        underruns: of all streams together.
        silence_s: seconds of silence that they made, of all streams together.
        chunks_per_stream: mean number of chunks with samples; None where no stream was answered.
        audible_p50_s, audible_p95_s: from the moment at which a request was due until its first audible sample was
            heard; None where none was.
        first_s, underruns_by_stream, silence_s_by_stream, audible_s: the same of each stream, in the order of the
            requests; `audible_s` is None for those of which nothing is known to be audible.
    """

    first_p50_s: float | None
    first_p90_s: float | None
    first_p95_s: float | None
    first_p99_s: float | None
    with_underruns: int
    underrun_share: float | None
    underruns: int
    silence_s: float
    chunks_per_stream: float | None
    audible_p50_s: float | None
    audible_p95_s: float | None
    first_s: list[float]
    underruns_by_stream: list[int]
    silence_s_by_stream: list[float]
    audible_s: list[float | None]


def play(chunks: Sequence[Chunk], buffer_s: float = 0.0) -> Playback:
    """Play `chunks` as they come.

    Args:
        chunks: one or more, each with samples, in the order of their arrival.
        buffer_s: playback starts as soon as so much audio is there, or all of it; 0 starts with the first chunk.
    """
    starts = _starts(chunks, buffer_s)
    ends = [start + chunk.audio_s for start, chunk in zip(starts, chunks, strict=True)]
    gaps = [start - end for start, end in zip(starts[1:], ends, strict=False) if start > end]
    return Playback(len(gaps), sum(gaps))


def heard_s(chunks: Sequence[Chunk], at_s: float, buffer_s: float = 0.0) -> float:
    """When the sample that has `at_s` seconds of audio before it is heard; arguments and times as for `play`.

    Raises:
        ValueError: there is no such sample.
    """
    for start, chunk in zip(_starts(chunks, buffer_s), chunks, strict=True):
        if at_s < chunk.audio_s:
            return start + at_s
        at_s -= chunk.audio_s
    raise ValueError(f"the audio ends {at_s:g} s before that sample")


def _starts(chunks: Sequence[Chunk], buffer_s: float) -> list[float]:
    """When each chunk begins to be heard."""
    there = accumulate(chunk.audio_s for chunk in chunks)
    enough = (chunk.arrival_s for chunk, audio_s in zip(chunks, there, strict=True) if audio_s >= buffer_s)
    end = next(enough, chunks[-1].arrival_s)  # when what is there will have been played
    starts = []
    for chunk in chunks:
        starts.append(max(end, chunk.arrival_s))
        end = starts[-1] + chunk.audio_s
    return starts


def summarize_streams(
    outcomes: Sequence[Outcome], buffer_s: float, onsets_s: Mapping[int, float] | None = None
) -> StreamSummary:
    """The summary of the streams among `outcomes` that were answered, played with `buffer_s` (see `play`).

    `onsets_s` has the seconds of audio before the first audible sample, by the place in `outcomes`.
    """
    answered = {number: outcome.sounding for number, outcome in enumerate(outcomes) if outcome.error is None}
    streams = list(answered.values())
    onsets_s = onsets_s or {}
    audible_s = [
        heard_s(chunks, onsets_s[number], buffer_s) if number in onsets_s else None
        for number, chunks in answered.items()
    ]
    heard = [seconds for seconds in audible_s if seconds is not None]
    first_s = [chunks[0].arrival_s for chunks in streams]
    played = [play(chunks, buffer_s) for chunks in streams]
    with_underruns = sum(one.underruns > 0 for one in played)
    p50, p90, p95, p99 = (percentile(first_s, share) if first_s else None for share in (0.5, 0.9, 0.95, 0.99))
    return StreamSummary(
        first_p50_s=p50,
        first_p90_s=p90,
        first_p95_s=p95,
        first_p99_s=p99,
        with_underruns=with_underruns,
        underrun_share=with_underruns / len(streams) if streams else None,
        underruns=sum(one.underruns for one in played),
        silence_s=sum(one.silence_s for one in played),
        chunks_per_stream=sum(map(len, streams)) / len(streams) if streams else None,
        audible_p50_s=percentile(heard, 0.5) if heard else None,
        audible_p95_s=percentile(heard, 0.95) if heard else None,
        first_s=first_s,
        underruns_by_stream=[one.underruns for one in played],
        silence_s_by_stream=[one.silence_s for one in played],
        audible_s=audible_s,
    )
