"""What whoever watches the engine is told: how busy it is, and each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from chattts_serving.engine.sequence import Kind


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
