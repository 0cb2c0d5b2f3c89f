"""Open loop: moments at which callers come, whatever became of those before."""

from __future__ import annotations

import random
from collections.abc import Iterator


def poisson_arrivals(rate: float, rng: random.Random) -> Iterator[float]:
    """Moments in seconds from the start, without end: a Poisson process of `rate` (above 0) a second.

    Several of them side by side are again one, of the sum of their rates.
    """
    moment = 0.0
    while True:
        moment += rng.expovariate(rate)
        yield moment
