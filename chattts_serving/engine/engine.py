"""One step of continuous batching: schedule, run, take what ended. Not thread-safe; one thread owns an engine."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.model_runner import ModelRunner
from chattts_serving.engine.scheduler import Scheduler, SchedulerConfig
from chattts_serving.engine.sequence import Kind, Sequence
from chattts_serving.errors import ConfigError
from chattts_serving.gpt import GPT

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConfig:
    """Limits of an engine.

    Attributes:
        max_sequences: sequences that run at once.
        max_prefill_tokens: prompt tokens computed in one step.
        kv_cache_gb: memory of the key-value cache, 10**9 bytes; allocated at start, never grown.
    """

    max_sequences: int = 64
    max_prefill_tokens: int = 512
    kv_cache_gb: float = 1.0


@dataclass(frozen=True)
class Finished:
    """A sequence that ended in a step.

    Attributes:
        sequence: its final state.
        hidden: the hidden state that each of its tokens was drawn from, float32 [len(tokens), hidden].
    """

    sequence: Sequence
    hidden: npt.NDArray[np.float32]


class Engine:
    """The model with its cache, and the sequences that it works on."""

    def __init__(self, model: GPT, config: EngineConfig) -> None:
        """Allocate the cache.

        Raises:
            ConfigError: a limit is out of its range, or the cache is too small for one sequence of full length.
        """
        if not 0 < config.kv_cache_gb < math.inf:
            raise ConfigError(f"kv_cache_gb is {config.kv_cache_gb}; allowed is a number above 0")
        kv_cache_tokens = int(config.kv_cache_gb * 1e9 / ModelRunner.bytes_per_token(model))
        scheduler_config = SchedulerConfig(
            max_sequences=config.max_sequences,
            max_prefill_tokens=config.max_prefill_tokens,
            kv_cache_tokens=kv_cache_tokens,
            max_position_embeddings=model.config.max_position_embeddings,
        )
        self._end_tokens = {Kind.TEXT: model.config.ebreak_id, Kind.AUDIO: model.config.eos_code}
        self._runner = ModelRunner(model, kv_cache_tokens)
        self._scheduler = Scheduler(scheduler_config, self._runner.move_cache)
        logger.info("key-value cache: %.2f GB, %d tokens", config.kv_cache_gb, kv_cache_tokens)

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
        """Advance every running sequence by one token and return those that ended."""
        sequences = self._scheduler.schedule()
        if not sequences:
            return []
        for sequence, token in zip(sequences, self._runner.run(sequences), strict=True):
            sequence.append(token, self._end_tokens[sequence.kind])
        return [self._finish(sequence) for sequence in sequences if sequence.is_finished]

    def _finish(self, sequence: Sequence) -> Finished:
        hidden = self._runner.generated_hidden(sequence).numpy()
        self._scheduler.remove(sequence)
        return Finished(sequence, hidden)
