"""Who may ask, and how much: API keys, syntheses at once and in a minute."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.settings import Settings, digest

ANYBODY = "anybody"


@dataclass
class _Use:
    running: int = 0
    credit: float = 0.0  # syntheses that may begin now
    since: float = 0.0


class Access:
    """The doorman; its counts are those of one gateway process."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds."""
        self._settings, self._clock = settings, clock
        self._uses: dict[str, _Use] = {}

    def owner(self, authorization: str | None) -> str:
        """Whose key stands in the header Authorization.

        Raises:
            GatewayError: 401, there is none or an unknown one.
        """
        keys = self._settings.keys
        if not keys:
            return ANYBODY
        scheme, _, key = (authorization or "").partition(" ")
        challenge = {"www-authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not key.strip():
            message = "no API key: send the header 'Authorization: Bearer KEY'"
            raise GatewayError(401, message, "invalid_api_key", headers=challenge)
        sent, found = digest(key.strip()), None
        for known, name in keys.items():  # all of them, so that the time does not tell which
            if hmac.compare_digest(sent, known):
                found = name
        if found is None:
            raise GatewayError(401, "unknown API key", "invalid_api_key", headers=challenge)
        return found

    @contextmanager
    def synthesis(self, owner: str) -> Iterator[None]:
        """Hold one of the owner's syntheses.

        Raises:
            GatewayError: 429, too many at once or in a minute.
        """
        with self._held(owner, 1, 1):
            yield

    @contextmanager
    def batch(self, owner: str, num_texts: int) -> Iterator[int]:
        """Hold as many syntheses as a batch has at once: up to half of those that the owner may have, of what is free.

        Raises:
            GatewayError: 429, too many at once or, each text counted, in a minute.
        """
        half = max(1, self._settings.max_concurrent // 2)
        num_free = self._settings.max_concurrent - self._uses.get(owner, _Use()).running
        at_once = max(1, min(num_texts, half, num_free))
        with self._held(owner, at_once, num_texts):
            yield at_once

    @contextmanager
    def _held(self, owner: str, at_once: int, in_all: int) -> Iterator[None]:
        use = self._uses.setdefault(owner, _Use(credit=self._burst, since=self._clock()))
        if use.running + at_once > self._settings.max_concurrent:
            message = f"{use.running} syntheses of this key are running; allowed are {self._settings.max_concurrent}"
            raise GatewayError(429, message, "rate_limit_exceeded", headers={"retry-after": "1"})
        self._spend(use, in_all)
        use.running += at_once
        try:
            yield
        finally:
            use.running -= at_once

    @property
    def _burst(self) -> float:
        return float(self._settings.requests_per_minute)

    def _spend(self, use: _Use, number: int) -> None:
        per_minute = self._settings.requests_per_minute
        if not per_minute:
            return
        if number > per_minute:
            message = f"the batch has {number} texts; allowed are {per_minute}, as many as this key has in a minute"
            raise GatewayError(429, message, "rate_limit_exceeded")
        now = self._clock()
        use.credit = min(self._burst, use.credit + (now - use.since) * per_minute / 60)
        use.since = now
        if use.credit < number:
            wait_s = max(1, round((number - use.credit) * 60 / per_minute + 0.5))
            message = f"more than {per_minute} requests of this key in a minute; try again in {wait_s} s"
            raise GatewayError(429, message, "rate_limit_exceeded", headers={"retry-after": str(wait_s)})
        use.credit -= number
