"""The scenarios: how many callers there are in the course of a run, what they say, and whether they leave early.

It knows neither locust nor servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Profile = Callable[[float], float]
"""Share of the run that has passed, 0 to 1 -> share of the users that are there, 0 to 1."""

RAMP_SHARE = 0.8  # of the run; then all users stay, so that the full load is seen, too
SPIKE_BASE = 0.25  # of the users, before and after the spike


def _steady(_passed: float) -> float:
    return 1.0


def _ramp(passed: float) -> float:
    return min(1.0, passed / RAMP_SHARE)


def _spike(passed: float) -> float:
    return 1.0 if 1 / 3 <= passed < 2 / 3 else SPIKE_BASE


EVERYDAY = {"short": 6, "medium": 3, "long": 1}


@dataclass(frozen=True)
class Scenario:
    """One scenario.

    Attributes:
        about: what it shows, for people.
        profile: how many users there are.
        lengths: how often each length of text comes (keys of `texts.LENGTHS`).
        leaves: whether those who take streams leave them in the middle.
    """

    about: str
    profile: Profile
    lengths: Mapping[str, float]
    leaves: bool = False

    def num_users(self, passed: float, users: int) -> int:
        """Users when the share `passed` of the run has passed, of `users` at most; 1 at least."""
        return max(1, round(self.profile(passed) * users))


SCENARIOS = {
    "steady": Scenario("all users from start to end", _steady, EVERYDAY),
    "ramp": Scenario("one user more after the other: where latency starts to grow", _ramp, EVERYDAY),
    "spike": Scenario("a quarter of the users, all of them, a quarter again", _spike, EVERYDAY),
    "long": Scenario("one text in three is long: what short ones wait beside it", _steady, {"short": 2, "long": 1}),
    "abandon": Scenario("streams are left in the middle, whole answers not", _steady, {"medium": 1, "long": 1}, True),
}
