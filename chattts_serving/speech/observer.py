"""What whoever watches the engine is told: how busy it is, and each step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from chattts_serving.engine.engine import Engine
from chattts_serving.engine.sequence import Kind

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How busy the engine is.

    Attributes:
        requests_open: requests that were taken and have not ended.
        sequences_running: sequences in the batch.
        sequences_waiting: sequences that wait for room in the batch or the cache.
        cache_tokens_used: tokens of the key-value cache that are in use.
        cache_tokens: that it holds.
    """

    requests_open: int = 0
    sequences_running: int = 0
    sequences_waiting: int = 0
    cache_tokens_used: int = 0
    cache_tokens: int = 0


@dataclass(frozen=True)
class Step:
    """One step of the engine.

    Attributes:
        seconds: that it took.
        num_sequences: in the batch.
        num_generated: tokens that it added to the sequences, by kind.
    """

    seconds: float
    num_sequences: int
    num_generated: Mapping[Kind, int]


class Observer(Protocol):
    """Is told what the engine does, from its thread; must not keep it waiting."""

    def load(self, load: Load) -> None:
        """How busy the engine is: whenever that has changed, but not more often than every `synthesizer.LOOK_S`."""

    def step(self, step: Step) -> None:
        """A step is done."""


class Observed:
    """Tells an observer what an engine does. Requests matter more: what the observer raises is logged."""

    def __init__(self, observer: Observer | None) -> None:
        """Nothing has happened."""
        self._observer = observer
        self._load = Load()

    def load(self, engine: Engine, num_requests: int) -> None:
        """Tell how busy it is, if that has changed."""
        load = Load(
            requests_open=num_requests,
            sequences_running=engine.num_running,
            sequences_waiting=engine.num_waiting + engine.num_resting,
            cache_tokens_used=engine.num_used_cache_tokens,
            cache_tokens=engine.num_cache_tokens,
        )
        if load != self._load:
            self._load = load
            self._tell(lambda observer: observer.load(load))

    def step(self, engine: Engine, seconds: float) -> None:
        """Tell that a step is done."""
        self._tell(lambda observer: observer.step(Step(seconds, engine.batch_size, engine.num_generated)))

    def _tell(self, what: Callable[[Observer], None]) -> None:
        if self._observer is not None:
            try:
                what(self._observer)
            except Exception:
                logger.exception("what the engine does could not be reported")
