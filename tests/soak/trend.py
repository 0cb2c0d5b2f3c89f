"""Whether something grows: a straight line through noisy values, and how far noise alone could turn it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import numpy as np

from bench.load import slope

FEWEST_VALUES = 8  # fewer say nothing of their noise
STANDARD_ERRORS = (
    3.0  # to each side of a slope; noise alone goes beyond in one run of 50 with 8 values, of 300 with many
)


class Answer(Enum):
    """What a trend says to a limit."""

    KEPT = "ok"
    GROWS = "GROWS"
    UNDECIDED = "UNDECIDED"  # the noise is larger than what is asked for


class Trend(NamedTuple):
    """The straight line through the values of a series.

    Attributes:
        level: its mean.
        growth: of the line from the first to the last value.
        error: what noise may have added to `growth`, or hidden of it.
    """

    level: float
    growth: float
    error: float

    def answer(self, allowed: float) -> Answer:
        """Whether the growth is `allowed`, as far as the noise lets see."""
        if self.growth + self.error <= allowed:
            return Answer.KEPT
        return Answer.GROWS if self.growth - self.error > allowed else Answer.UNDECIDED


def trend(x: Sequence[float], y: Sequence[float]) -> Trend:
    """The trend of `y` at the places `x`, which grow.

    The standard error of a slope supposes that every value has noise of its own. Memory has not: it stays where a step
    has put it. So the error is that of as many values as there would be without what neighbours have in common (a
    first-order autoregression of the residuals). A single step is a line with a large error.

    Raises:
        ValueError: there are less than FEWEST_VALUES.
    """
    if len(x) < FEWEST_VALUES:
        raise ValueError(f"{len(x)} values say nothing; allowed is {FEWEST_VALUES} or more")
    places, values = np.asarray(x, float), np.asarray(y, float)
    span, per_x = float(places[-1] - places[0]), slope(x, y)
    residuals = values - values.mean() - per_x * (places - places.mean())
    variance = float(residuals @ residuals) / (len(x) - 2)
    error = math.sqrt(variance / float(np.sum((places - places.mean()) ** 2)))
    return Trend(float(values.mean()), per_x * span, STANDARD_ERRORS * error * span * _inflation(residuals))


def _inflation(residuals: np.ndarray) -> float:
    """How much larger the error is because neighbours are alike, 1 or more."""
    square = float(residuals @ residuals)
    if square == 0:
        return 1.0
    alike = float(residuals[1:] @ residuals[:-1]) / square
    alike = min(max(alike, 0.0), 1 - 2 / len(residuals))
    return math.sqrt((1 + alike) / (1 - alike))
