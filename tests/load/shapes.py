"""How many users there are at each moment, for locust: the scenario's profile over the time of the run."""

from __future__ import annotations

from locust import LoadTestShape

from tests.load.scenarios import SCENARIOS

DEFAULT_RUN_S = 120.0
MOST_SPAWNED_PER_S = 100  # locust's own advice


class ScenarioShape(LoadTestShape):
    """The shape of `--scenario` for `--users` users and `--run-time` (120 s where none is given)."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now, and how many may start a second; None at the end."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        passed = self.get_run_time() / (options.run_time or DEFAULT_RUN_S)
        if passed >= 1:
            return None
        users = SCENARIOS[options.scenario].num_users(passed, options.num_users or 1)
        return users, MOST_SPAWNED_PER_S
