"""The arithmetic of slopes, on series whose growth is known."""

import numpy as np
import pytest

from tests.soak.trend import Answer, trend

LEVEL = 600.0  # MB
ALLOWED = 6.0
NUM_RUNS = 200
SECONDS = np.arange(0, 1_800, 20.0)  # 90 looks in half an hour


def answers(series, allowed=ALLOWED, x=SECONDS):
    """How often each answer is given, for what `series(rng)` makes with many random numbers."""
    given = [trend(x, series(np.random.default_rng(number))).answer(allowed) for number in range(NUM_RUNS)]
    return {answer: given.count(answer) / NUM_RUNS for answer in Answer}


def ramp(growth, x=SECONDS):
    return LEVEL + growth * (x - x[0]) / (x[-1] - x[0])


def test_a_line_is_found_as_it_is():
    found = trend([10, 20, 40, 50, 70, 80, 90, 110], [1, 2, 4, 5, 7, 8, 9, 11])
    assert found.level == pytest.approx(5.875)
    assert found.growth == pytest.approx(10)
    assert found.error == pytest.approx(0, abs=1e-6)


def test_a_constant_has_no_growth_and_no_error():
    assert trend(range(20), [7.0] * 20) == (7.0, 0.0, 0.0)
    assert trend(range(20), [7.0] * 20).answer(0.0) is Answer.KEPT


def test_few_values_are_refused():
    with pytest.raises(ValueError, match="7 values"):
        trend(range(7), range(7))


def test_noise_alone_is_kept():
    assert answers(lambda rng: LEVEL + rng.normal(0, 2, len(SECONDS)))[Answer.KEPT] == 1


def test_a_leak_in_noise_is_found():
    """Of twice what is allowed, in noise as large as that."""
    assert answers(lambda rng: ramp(2 * ALLOWED) + rng.normal(0, 3, len(SECONDS)))[Answer.GROWS] == 1


def test_the_error_is_as_large_as_noise_makes_it():
    """The true growth is off by more than the error in one run of 370 (three standard errors), or somewhat more."""
    noise = np.random.default_rng(0).normal(0, 3, (1_000, len(SECONDS)))
    found = [trend(SECONDS, ramp(5) + one) for one in noise]
    off = [abs(one.growth - 5) > one.error for one in found]
    assert np.mean(off) < 0.012


@pytest.mark.parametrize(("growth", "never"), [(0, Answer.GROWS), (2 * ALLOWED, Answer.KEPT)])
def test_noise_that_stays_for_a_while_is_not_taken_for_a_trend(growth, never):
    """Each value keeps 0.8 of the one before: the usual standard error would be three times too small."""

    def series(rng):
        noise = np.zeros(len(SECONDS))
        for place, new in enumerate(rng.normal(0, 2, len(SECONDS))):
            noise[place] = 0.8 * noise[place - 1] + new
        return ramp(growth) + noise

    assert answers(series)[never] < 0.02


def test_much_noise_leaves_it_open():
    given = answers(lambda rng: ramp(ALLOWED) + rng.normal(0, 30, len(SECONDS)))
    assert given[Answer.UNDECIDED] > 0.95


def test_warm_up_that_is_left_in_is_no_steady_growth():
    """It rises by 100 MB within three minutes and stays: not kept; left out, it is."""
    rng = np.random.default_rng(0)
    series = LEVEL + 100 * (1 - np.exp(-SECONDS / 60)) + rng.normal(0, 1, len(SECONDS))
    assert trend(SECONDS, series).answer(ALLOWED) is not Answer.KEPT
    steady = SECONDS >= 450
    assert trend(SECONDS[steady], series[steady]).answer(ALLOWED) is Answer.KEPT


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_one_step_is_no_leak(place):
    """An arena more, in the middle of a run: it is not called a leak, whether it is small enough or not."""
    step = 2 * ALLOWED * (place * SECONDS[-1] < SECONDS)
    rng = np.random.default_rng(0)
    assert trend(SECONDS, LEVEL + step + rng.normal(0, 0.5, len(SECONDS))).answer(ALLOWED) is not Answer.GROWS


def test_many_steps_are_a_leak():
    """Shared memory that grows by a block now and then."""
    stairs = 4.0 * np.floor(SECONDS / 180)
    assert trend(SECONDS, LEVEL + stairs).answer(ALLOWED) is Answer.GROWS


def test_a_descriptor_now_and_then_is_found():
    """One in 100 s: the counts have no noise."""
    assert trend(SECONDS, 72 + np.floor(SECONDS / 100)).answer(4) is Answer.GROWS
    assert trend(SECONDS, 72 + (SECONDS > 900)).answer(4) is Answer.KEPT
