"""One step of continuous batching: schedule, launch, take what ended. Not thread-safe; one thread owns an engine."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.batch import Batch, IntArray, Stay, StepLog
from chattts_serving.engine.gpt_config import TextHead
from chattts_serving.engine.runner import PendingStep, Runner
from chattts_serving.engine.scheduler import Changes, Scheduler, SchedulerConfig
from chattts_serving.engine.sequence import NO_TOKEN, FinishReason, Kind, Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """A sequence that ended in a step.

    Attributes:
        sequence: its final state.
        hidden: the hidden state that each of its tokens was drawn from, float32 [len(tokens), hidden].
        looks: where text heads looked meanwhile, [len(tokens), heads], as `PendingStep`; None where it was not noted.
    """

    sequence: Sequence
    hidden: npt.NDArray[np.float32]
    looks: IntArray | None = None


@dataclass(frozen=True)
class _InFlight:
    """A step that was launched and not read.

    Attributes:
        lanes: the stays that it draws a token for, by lane; those of text come first.
        num_text: how many those are.
        rows: of the lanes.
        step: the runner's handle.
    """

    lanes: list[Stay]
    num_text: int
    rows: IntArray
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
        config = self._config = runner.config
        self._runner = runner
        self._in_flight: deque[_InFlight] = deque()
        self.batch_size = 0  # sequences of the newest step
        self.num_generated = dict.fromkeys(Kind, 0)  # tokens that the newest step added, by kind
        scheduler_config = SchedulerConfig(
            max_sequences=max_sequences,
            max_prefill_tokens=max_prefill_tokens,
            kv_cache_tokens=runner.num_cache_tokens,
            max_position_embeddings=config.max_position_embeddings,
            join_every=join_every,
        )
        self._scheduler = Scheduler(scheduler_config, runner.move_cache)
        self._batch = Batch(max_sequences)
        # No sequence stays for more steps than there are positions.
        num_steps = config.max_position_embeddings + runner.steps_ahead + 1
        self._log = StepLog(num_steps, max_sequences, config.num_codebooks, len(runner.text_heads))
        self._last_steps: dict[int, list[Stay]] = {}  # of the stays that nothing ends before, by the step's number

    @property
    def text_heads(self) -> tuple[TextHead, ...]:
        """The attention heads by which it can be told when words are said; none where it cannot."""
        return self._runner.text_heads

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for room in the cache."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Sequences in the batch."""
        return self._scheduler.num_running

    @property
    def num_resting(self) -> int:
        """Sequences that are made to rest."""
        return self._scheduler.num_resting

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
    def num_steps_read(self) -> int:
        """Steps so far; a sequence gets one token in each at most."""
        return self._log.num_read

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute and nothing to read, but for what rests."""
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
        self._batch.leave(sequence)
        self._scheduler.remove(sequence)

    def rest(self, sequence: Sequence) -> None:
        """Take `sequence`, which is here, out of the batch until it is resumed; its cache stays while there is room."""
        self._scheduler.rest(sequence)
        self._batch.leave(sequence)

    def resume(self, sequence: Sequence) -> None:
        """Let `sequence` go on, if it rests."""
        self._scheduler.resume(sequence)

    def step(self) -> list[Finished]:
        """Launch a step, read the oldest one that is due, and return the sequences that ended in it."""
        self._change(self._scheduler.schedule())
        self.batch_size, self.num_generated = len(self._batch), dict.fromkeys(Kind, 0)
        if self.batch_size:
            self._launch()
        unread = self._runner.steps_ahead if self.batch_size else 0
        finished = []
        while len(self._in_flight) > unread:
            finished += self._read(self._in_flight.popleft())
        if self.is_idle and not self.num_resting and (lost := self._scheduler.reclaim()):
            logger.error("%d of %d tokens of the cache were held by nobody: a bug", lost, self.num_cache_tokens)
        return finished

    def _change(self, changes: Changes) -> None:
        for sequence in changes.left:
            self._batch.leave(sequence)
        for sequence in changes.moved:
            self._batch.move(sequence)
        for sequence in changes.joined:
            stay = self._batch.join(sequence, self._log)
            self._last_steps.setdefault(stay.last, []).append(stay)

    def _launch(self) -> None:
        batch, number = self._batch, self._log.num_launched
        self._log.begin()
        step = self._runner.launch(batch)
        self._in_flight.append(_InFlight(batch.lanes.copy(), batch.num_text, batch.rows.copy(), step))
        self._log.num_launched += 1
        batch.settle()
        for stay in self._last_steps.get(number, ()):
            if not stay.is_over:
                batch.leave(stay.sequence)

    def _read(self, flight: _InFlight) -> list[Finished]:
        drawn, number = flight.step.tokens(), self._log.num_read
        void = self._log.take_void(number)
        self._log.store(flight.rows, drawn, flight.step.looks())
        num_audio = len(flight.lanes) - flight.num_text
        for kind, num_lanes in ((Kind.TEXT, flight.num_text), (Kind.AUDIO, num_audio)):
            self.num_generated[kind] += num_lanes - void[kind]
        finished = []
        for lane in self._ended_lanes(drawn, flight.num_text):
            stay = flight.lanes[lane]
            if not stay.is_over:  # else it was removed or preempted in the meantime, or it ended a step before
                self.num_generated[stay.sequence.kind] -= 1  # the end is no token
                width = 1 if stay.sequence.draws_text else drawn.shape[1]
                has_failed = NO_TOKEN in drawn[lane, :width]
                finished.append(self._finish(stay, FinishReason.FAILED if has_failed else FinishReason.STOP))
        for stay in self._last_steps.pop(number, ()):
            if not stay.is_over:
                finished.append(self._finish(stay, FinishReason.LENGTH))
        return finished

    def _ended_lanes(self, drawn: IntArray, num_text: int) -> list[int]:
        """The lanes that drew their end token or, in a place of it, NO_TOKEN; ascending."""
        codes, num_codebooks = drawn[num_text:], drawn.shape[1]
        ended = np.flatnonzero((codes == self._config.eos_code) | (codes == NO_TOKEN))  # places in `codes`
        lanes = sorted({num_text + place // num_codebooks for place in ended.tolist()})
        if num_text:
            text = drawn[:num_text, 0]
            lanes = np.flatnonzero((text == self._config.ebreak_id) | (text == NO_TOKEN)).tolist() + lanes
        return lanes

    def _finish(self, stay: Stay, reason: FinishReason) -> Finished:
        """End the sequence with the step that was just read, whose draw is a token of it only by LENGTH."""
        sequence = stay.sequence
        num_tokens = sequence.num_new_tokens - (reason is not FinishReason.LENGTH)
        hidden = self._runner.generated_hidden(sequence, 0, num_tokens)
        is_watched = self.text_heads and sequence.watched is not None
        looks = sequence.looks(num_tokens) if is_watched else None
        sequence.finish_reason = reason
        sequence.end_stay(num_tokens)
        self.remove(sequence)
        return Finished(sequence, hidden, looks)
