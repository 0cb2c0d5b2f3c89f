"""Load generator and statistics, against speakers that need no server."""

import asyncio
import time

import numpy as np
import pytest
from chattts_client.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidInputError,
    OverloadedError,
    ServerError,
)
from hypothesis import given
from hypothesis import strategies as st

from bench.load import Chunk, Outcome, closed_loop, open_loop, percentile, poisson_arrivals, slope, summarize


@given(st.lists(st.floats(0, 1e3), min_size=1), st.sampled_from([0.01, 0.07, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, share):
    found = percentile(values, share)
    needed = round(share * len(values), 6)
    assert found in values
    assert sum(value <= found for value in values) >= needed
    assert sum(value < found for value in values) < needed


def test_percentiles_of_a_hundred_values():
    values = list(range(100, 0, -1))
    assert [percentile(values, share) for share in (0.01, 0.07, 0.5, 0.9, 0.99, 1)] == [1, 7, 50, 90, 99, 100]


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0), ([1.0], 1.01)])
def test_percentile_of_nothing_is_refused(values, share):
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, share)


def test_arrivals_repeat_with_the_seed_and_differ_between_seeds():
    first = poisson_arrivals(4, 100, 1)
    assert np.array_equal(first, poisson_arrivals(4, 100, 1))
    assert not np.array_equal(first, poisson_arrivals(4, 100, 2))


@pytest.mark.parametrize("seed", range(3))
def test_arrivals_are_a_poisson_process_of_the_rate(seed):
    rate, count = 5.0, 20_000
    arrivals = poisson_arrivals(rate, count, seed)
    gaps = np.diff(arrivals, prepend=0.0)
    assert (gaps > 0).all()
    assert gaps.mean() == pytest.approx(1 / rate, rel=5 / count**0.5)  # five standard errors
    assert gaps.std() == pytest.approx(1 / rate, rel=0.05)  # exponential: as large as the mean
    per_second = np.bincount(arrivals.astype(int))[:-1]
    assert per_second.var() == pytest.approx(per_second.mean(), rel=0.15)  # a count's variance is its mean
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 5 / count**0.5


def test_callers_of_a_closed_loop_pause_before_each_request_and_that_is_no_latency():
    async def speak(number):
        yield 1.0

    loaded = asyncio.run(closed_loop(speak, 1, 4, lambda: None, pauses=[0.05, 0.0, 0.1, 0.05]))
    assert loaded.seconds >= 0.2
    assert sum(outcome.latency_s for outcome in loaded.outcomes) < loaded.seconds - 0.2 + 1e-3


@pytest.mark.parametrize("concurrency", [1, 3, 8])
def test_closed_loop_keeps_so_many_under_way_and_sends_each_once(concurrency):
    sent, under_way, most, advanced = [], 0, 0, []

    async def speak(number):
        nonlocal under_way, most
        sent.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001 * (number % 3))
        under_way -= 1
        yield 2.0

    summary = summarize(*asyncio.run(closed_loop(speak, concurrency, 20, lambda: advanced.append(1))))
    assert sorted(sent) == list(range(20))
    assert most == concurrency
    assert len(advanced) == summary.requests == summary.answered == len(summary.latencies_s) == 20


def test_latency_counts_from_the_moment_due():
    """A server that stalls for 0.3 s makes those wait who come meanwhile; none may be sent later for it."""
    sent = []

    async def run():
        started = time.perf_counter()
        serial = asyncio.Lock()

        async def speak(number):
            sent.append(time.perf_counter() - started)
            async with serial:
                await asyncio.sleep(0.3 if number == 0 else 0)
            yield 1.0

        return await open_loop(speak, [0.0, 0.1, 0.2], lambda: None)

    summary = summarize(*asyncio.run(run()))
    assert sent == pytest.approx([0, 0.1, 0.2], abs=0.05)
    assert summary.latencies_s == pytest.approx([0.3, 0.2, 0.1], abs=0.05)


def test_a_client_that_falls_behind_shows_and_counts_as_latency():
    async def speak(number):
        if number == 0:
            time.sleep(0.3)  # holds up the event loop, so that the next is sent late
        yield 1.0

    summary = summarize(*asyncio.run(open_loop(speak, [0.0, 0.1], lambda: None)))
    assert summary.max_late_s == pytest.approx(0.2, abs=0.05)
    assert summary.latencies_s[1] == pytest.approx(0.2, abs=0.05)


def test_errors_are_counted_by_kind_and_are_in_no_percentile():
    failures = [
        OverloadedError("full"),
        OverloadedError("full"),
        DeadlineExceededError("late"),
        ConnectionFailedError("gone"),
        InvalidInputError("wrong"),
        ServerError("broken", "INTERNAL"),
    ]

    async def speak(number):
        if number < len(failures):
            await asyncio.sleep(0.2)
            raise failures[number]
        yield 3.0

    summary = summarize(*asyncio.run(closed_loop(speak, 4, 10, lambda: None)))
    assert summary.errors == {
        "UNAVAILABLE": 2,
        "DEADLINE_EXCEEDED": 1,
        "CONNECTION_FAILED": 1,
        "INVALID_ARGUMENT": 1,
        "INTERNAL": 1,
    }
    assert summary.answered == 4
    assert summary.requests == 10
    assert summary.p99_s < 0.1


def test_chunks_are_kept_with_the_moments_of_their_arrival():
    async def speak(number):
        await asyncio.sleep(0.1)
        yield 0.5
        await asyncio.sleep(0.1)
        yield 0.0
        yield 0.25

    (outcome,) = asyncio.run(closed_loop(speak, 1, 1, lambda: None)).outcomes
    assert [chunk.audio_s for chunk in outcome.chunks] == [0.5, 0.0, 0.25]
    assert [chunk.audio_s for chunk in outcome.sounding] == [0.5, 0.25]
    assert [chunk.arrival_s for chunk in outcome.chunks] == pytest.approx([0.1, 0.2, 0.2], abs=0.05)
    assert outcome.latency_s == pytest.approx(0.2, abs=0.05)


def test_a_stream_that_breaks_counts_as_an_error_without_audio():
    async def speak(number):
        yield 0.5
        raise ServerError("broken", "INTERNAL")

    outcomes, seconds = asyncio.run(closed_loop(speak, 1, 2, lambda: None))
    assert [outcome.chunks for outcome in outcomes] == [(), ()]
    assert summarize(outcomes, seconds).errors == {"INTERNAL": 2}


def test_rates_are_of_what_was_answered():
    halves = (Chunk(0.5, 1.0), Chunk(3.0, 1.0))
    outcomes = [
        Outcome(1.0, 0.0, (Chunk(1.0, 2.0),), None),
        Outcome(3.0, 0.5, halves, None),
        Outcome(0.1, 0.0, (), "UNAVAILABLE"),
    ]
    summary = summarize(outcomes, 8.0)
    assert (summary.sentences_per_s, summary.audio_s_per_s, summary.rtf) == (0.25, 0.5, 2.0)
    assert (summary.p50_s, summary.p90_s, summary.max_late_s) == (1.0, 3.0, 0.5)


def test_without_an_answer_there_is_no_latency_and_no_rtf():
    summary = summarize([Outcome(0.1, 0.0, (), "UNAVAILABLE")], 1.0)
    assert (summary.rtf, summary.p50_s, summary.p99_s, summary.sentences_per_s) == (None, None, None, 0)


@given(st.floats(-100, 100), st.floats(-1e4, 1e4), st.integers(2, 40))
def test_slope_of_a_line(steepness, offset, count):
    x = [50.0 * (place + 1) for place in range(count)]
    assert slope(x, [steepness * at + offset for at in x]) == pytest.approx(steepness, abs=1e-6)


def test_slope_looks_past_noise():
    rng = np.random.default_rng(0)
    x = np.arange(50, 5_001, 50)
    assert slope(x, 600 + 0.02 * x + rng.normal(0, 1, len(x))) == pytest.approx(0.02, abs=0.001)
