"""Underruns as a player hears them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load import Chunk, Outcome
from bench.playback import heard_s, play, summarize_streams

TWO_UNDERRUNS = [Chunk(1.0, 0.5), Chunk(1.7, 1.0), Chunk(2.6, 0.5), Chunk(4.0, 0.1)]

# Pairs of milliseconds: since the last chunk, and of audio.
STREAMS = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=12)


def stream(pairs):
    chunks, now = [], 0
    for gap, audio in pairs:
        now += gap
        chunks.append(Chunk(now, audio))
    return chunks


def listen(chunks, buffer):
    """Underruns and milliseconds of silence, by a player that looks once a millisecond."""
    total = sum(chunk.audio_s for chunk in chunks)
    now, played, underruns, silence, playing, sounding = 0, 0, 0, 0, False, True
    while played < total:
        there = sum(chunk.audio_s for chunk in chunks if chunk.arrival_s <= now)
        playing = playing or there >= max(1, min(buffer, total))
        if playing and played < there:
            played += 1
            sounding = True
        elif playing:
            underruns += sounding
            silence += 1
            sounding = False
        now += 1
    return underruns, silence


def test_underruns_of_a_stream_by_hand():
    """Sound from 1.0 to 1.5, silence to 1.7, sound to 2.7 and, the third being in time, to 3.2, silence to 4.0."""
    assert play(TWO_UNDERRUNS) == pytest.approx((2, 0.2 + 0.8))


@pytest.mark.parametrize(
    ("buffer_s", "expected"),
    [
        (0.5, (2, 1.0)),  # there with the first chunk
        (0.6, (1, 0.3)),  # starts at 1.7, lasts to 3.7
        (1.6, (0, 0.0)),  # starts at 2.6, lasts to 4.6
        (9.0, (0, 0.0)),  # more than there ever is: starts with the last
    ],
)
def test_playback_starts_when_the_buffer_is_full(buffer_s, expected):
    assert play(TWO_UNDERRUNS, buffer_s) == pytest.approx(expected)


@given(STREAMS, st.integers(0, 100))
def test_a_player_hears_these_underruns(pairs, buffer):
    chunks = stream(pairs)
    assert play(chunks, buffer) == listen(chunks, buffer)


@pytest.mark.parametrize(
    ("at_s", "buffer_s", "expected"),
    [(0.0, 0.0, 1.0), (0.4, 0.0, 1.4), (0.5, 0.0, 1.7), (1.9, 0.0, 3.1), (2.05, 0.0, 4.05), (0.4, 0.6, 2.1)],
)
def test_a_sample_is_heard_when_all_before_it_was(at_s, buffer_s, expected):
    assert heard_s(TWO_UNDERRUNS, at_s, buffer_s) == pytest.approx(expected)


def test_a_sample_past_the_end_is_never_heard():
    with pytest.raises(ValueError, match="ends"):
        heard_s(TWO_UNDERRUNS, 2.11)


@given(STREAMS)
def test_audio_that_comes_all_at_once_is_never_interrupted(pairs):
    assert play([Chunk(7.0, audio) for _, audio in pairs]) == (0, 0)


@given(STREAMS, st.integers(0, 300), st.integers(0, 300))
def test_a_larger_buffer_makes_no_more_silence(pairs, one, other):
    chunks = stream(pairs)
    assert play(chunks, max(one, other)).silence_s <= play(chunks, min(one, other)).silence_s


def test_summary_counts_streams_underruns_and_silence():
    outcomes = [
        Outcome(4.0, 0.0, tuple(TWO_UNDERRUNS), None),
        Outcome(0.1, 0.0, (), "UNAVAILABLE"),
        Outcome(2.5, 0.0, (Chunk(1.0, 0.0), Chunk(2.0, 3.0), Chunk(2.5, 0.0)), None),
    ]
    summary = summarize_streams(outcomes, 0.0)
    assert summary.first_s == [1.0, 2.0]  # of chunks with samples
    assert (summary.first_p50_s, summary.first_p90_s, summary.first_p95_s, summary.first_p99_s) == (1.0, 2.0, 2.0, 2.0)
    assert (summary.with_underruns, summary.underrun_share, summary.underruns) == (1, 0.5, 2)
    assert summary.silence_s == pytest.approx(1.0)
    assert summary.chunks_per_stream == 2.5
    assert summary.underruns_by_stream == [2, 0]
    assert summary.silence_s_by_stream == pytest.approx([1.0, 0.0])
    assert summarize_streams(outcomes, 0.6).underruns == 1
    assert (summary.audible_s, summary.audible_p50_s) == ([None, None], None)
    summary = summarize_streams(outcomes, 0.0, {1: 9.0, 2: 0.25})
    assert (summary.audible_s, summary.audible_p50_s, summary.audible_p95_s) == ([None, 2.25], 2.25, 2.25)


def test_without_an_answer_there_is_no_first_audio():
    summary = summarize_streams([Outcome(0.1, 0.0, (), "UNAVAILABLE")], 0.0)
    assert (summary.first_p50_s, summary.first_p99_s, summary.underrun_share, summary.chunks_per_stream) == (None,) * 4
    assert (summary.underruns, summary.silence_s) == (0, 0)
