"""One step of continuous batching: schedule, launch, take what ended. Not thread-safe; one thread owns an engine."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.runner import PendingStep, Runner
from chattts_serving.engine.scheduler import Scheduler, SchedulerConfig
from chattts_serving.engine.sequence import Kind, Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A sequence that ended in a step.

    Attributes:
        sequence: its final state.
        hidden: the hidden state that each of its tokens was drawn from, float32 [len(tokens), hidden].
    """

    sequence: Sequence
    hidden: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _InFlight:
    """A step that was launched and not read.

    Attributes:
        sequences: those that it draws a token for.
        cache_epochs: their `cache_epoch` at launch; a sequence that has lost its cache since does not take the token.
        step: the runner's handle.
    """

    sequences: list[Sequence]
    cache_epochs: list[int]
    step: PendingStep


class Engine:
    """The model with its cache, and the sequences that it works on."""

    def __init__(self, runner: Runner, *, max_sequences: int, max_prefill_tokens: int, join_every: int = 1) -> None:
        """Take over `runner`.

        Args:
            runner: the model with its cache.
            max_sequences: sequences that run at once.
            max_prefill_tokens: prompt tokens computed in one step.
            join_every: steps from one group of those who join to the next.

        Raises:
            ConfigError: a limit is out of its range, or the cache is too small for one sequence of full length.
        """
        self._end_tokens = {Kind.TEXT: runner.config.ebreak_id, Kind.AUDIO: runner.config.eos_code}
        self._runner = runner
        self._in_flight: deque[_InFlight] = deque()
        self.batch_size = 0  # sequences of the newest step
        self.num_generated = dict.fromkeys(Kind, 0)  # tokens that the newest step added, by kind
        scheduler_config = SchedulerConfig(
            max_sequences=max_sequences,
            max_prefill_tokens=max_prefill_tokens,
            kv_cache_tokens=runner.num_cache_tokens,
            max_position_embeddings=runner.config.max_position_embeddings,
            join_every=join_every,
        )
        self._scheduler = Scheduler(scheduler_config, runner.move_cache)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room in the cache."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return self._scheduler.num_running

    @property
    def num_free_cache_tokens(self) -> int:
        """Tokens of the cache that no sequence holds."""
        return self._scheduler.num_free_cache_tokens

    @property
    def num_cache_tokens(self) -> int:
        """Tokens that the cache holds."""
        return self._runner.num_cache_tokens

    @property
    def num_used_cache_tokens(self) -> int:
        """Tokens of the cache that sequences hold."""
        return self.num_cache_tokens - self.num_free_cache_tokens

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute and nothing to read."""
        return not (self._in_flight or self.num_waiting or self.num_running)

    def hidden(self, sequence: Sequence, first: int, last: int) -> npt.NDArray[np.float32]:
        """The hidden states of its tokens `first` to `last` - 1, float32 [last - first, hidden]; it `has_hidden`."""
        return self._runner.generated_hidden(sequence, first, last)

    def add(self, sequence: Sequence) -> None:
        """Queue `sequence`; it joins the batch between two steps.

        Raises:
            ValueError: it could become longer than the model's positions.
        """
        self._scheduler.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Drop `sequence` and free its cache; nothing happens when it is not here."""
        self._scheduler.remove(sequence)

    def step(self) -> list[Finished]:
        """Launch a step, read the oldest one that is due, and return the sequences that ended in it."""
        sequences = self._scheduler.schedule()
        self.batch_size, self.num_generated = len(sequences), dict.fromkeys(Kind, 0)
        if sequences:
            self._launch(sequences)
        unread = self._runner.steps_ahead if sequences else 0
        finished = []
        while len(self._in_flight) > unread:
            finished += self._read(self._in_flight.popleft())
        if self.is_idle and (lost := self._scheduler.reclaim()):
            logger.error("%d of %d tokens of the cache were held by nobody: a bug", lost, self.num_cache_tokens)
        return finished

    def _launch(self, sequences: list[Sequence]) -> None:
        step = self._runner.launch(sequences)
        for sequence in sequences:
            sequence.mark_launched()
        self._in_flight.append(_InFlight(sequences, [sequence.cache_epoch for sequence in sequences], step))

    def _read(self, flight: _InFlight) -> list[Finished]:
        finished = []
        for sequence, epoch, token in zip(flight.sequences, flight.cache_epochs, flight.step.tokens(), strict=True):
            if sequence.cache_epoch != epoch:  # removed or preempted in the meantime; or it ended a step before
                continue
            before = len(sequence.tokens)
            sequence.append(token, self._end_tokens[sequence.kind])
            self.num_generated[sequence.kind] += len(sequence.tokens) - before
            if sequence.is_finished:
                hidden = self._runner.generated_hidden(sequence, 0, len(sequence.tokens))
                finished.append(Finished(sequence, hidden))
                self._scheduler.remove(sequence)
        return finished
