"""Who runs in the next step, and where each one's cache lies: plain counting, no tensors.

Sequences are admitted by priority, then first come, first served. A slot starts small and grows. A sequence that finds
no room takes that of one that rests, or else of the youngest one of lower priority; one that runs and must grow, that
of the youngest one of the lowest. Who gives its slot up waits at the head of its queue and computes its cache again
later (its tokens are kept). Who is made to rest keeps the slot, and goes on in it.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from chattts_serving.engine.kv_slots import KVSlots, Slot
from chattts_serving.engine.sequence import Priority, Sequence
from chattts_serving.errors import ConfigError

MIN_SLOT_GROWTH = 256  # tokens added to a slot at once: 5 s of audio, so that most sentences never grow

MoveCache = Callable[[Slot, Slot, int], None]
"""(from, to, num_tokens): copy the cache's first `num_tokens` of one slot into another."""


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step and of the cache.

    Attributes:
        max_sequences: sequences that run at once.
        max_prefill_tokens: prompt tokens computed in one step, so that a crowd of new sequences does not stall those
            that run; one sequence is always let in, however long its prompt.
        kv_cache_tokens: tokens that the cache holds.
        max_position_embeddings: the longest sequence that the model knows.
        join_every: steps from one group that is let in to the next, while others run: who comes in between waits.
    """

    max_sequences: int
    max_prefill_tokens: int
    kv_cache_tokens: int
    max_position_embeddings: int
    join_every: int = 1

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ConfigError: a limit is not positive, or the cache cannot hold one sequence of full length.
        """
        for name in ("max_sequences", "max_prefill_tokens", "max_position_embeddings", "join_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed is 1 or more")
        if self.kv_cache_tokens < self.max_position_embeddings:
            raise ConfigError(
                f"the key-value cache holds {self.kv_cache_tokens} tokens; "
                f"at least {self.max_position_embeddings} are needed for one sequence of full length: raise kv_cache_gb"
            )


@dataclass(frozen=True)
class Changes:
    """What is different in the next step.

    Attributes:
        left: sequences that have lost their slot.
        moved: those that have it elsewhere.
        joined: those that have one now, each with room for the tokens that it computes.
    """

    left: list[Sequence] = field(default_factory=list)
    moved: list[Sequence] = field(default_factory=list)
    joined: list[Sequence] = field(default_factory=list)


class Scheduler:
    """The waiting, the running and the resting sequences. A running one is not looked at until its slot is full."""

    def __init__(self, config: SchedulerConfig, move_cache: MoveCache) -> None:
        """`move_cache` is called when a slot has to grow and cannot do so in place."""
        self._config = config
        self._move_cache = move_cache
        self._slots = KVSlots(config.kv_cache_tokens)
        self._waiting: dict[Priority, deque[Sequence]] = {priority: deque() for priority in Priority}
        self._resting: dict[Sequence, None] = {}
        self._kept: dict[Sequence, None] = {}  # those that have a slot and do not run: they rest, or have until now
        self._steps_since_join = 0
        self._running: list[Sequence] = []  # by priority, oldest first: the last one is the first to go
        self._num_steps = 0
        self._full: dict[int, dict[Sequence, None]] = {}  # by the step before which their slots must grow, or earlier
        self._changes = Changes()

    @property
    def num_waiting(self) -> int:
        """Sequences without a slot."""
        return sum(map(len, self._waiting.values()))

    @property
    def num_running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    @property
    def num_resting(self) -> int:
        """Sequences that are made to rest."""
        return len(self._resting)

    @property
    def num_free_cache_tokens(self) -> int:
        """Tokens of the cache in no slot."""
        return self._slots.num_free_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue `sequence`; its `max_num_tokens` must not exceed `max_position_embeddings`."""
        if sequence.max_num_tokens > self._config.max_position_embeddings:
            raise ValueError(
                f"a sequence of up to {sequence.max_num_tokens} tokens is longer than the model's "
                f"{self._config.max_position_embeddings} positions"
            )
        self._waiting[sequence.priority].append(sequence)

    def schedule(self) -> Changes:
        """Prepare a step: those that run go on by one token each in their slots, but for what is said here."""
        self._num_steps += 1
        changes = self._changes = Changes()
        for sequence in self._full.pop(self._num_steps, ()):
            self._make_room(sequence)
        self._steps_since_join += 1
        if not self._running or self._steps_since_join >= self._config.join_every:
            self._admit()
        return changes

    def remove(self, sequence: Sequence) -> None:
        """Forget `sequence`, wherever it is, and free its slot; nothing happens when it is not here."""
        self._take_out(sequence)
        self._resting.pop(sequence, None)
        self._free_slot(sequence)

    def rest(self, sequence: Sequence) -> None:
        """Let `sequence`, which runs or waits, do neither until it is resumed."""
        if sequence in self._running:
            sequence.rest()
            self._kept[sequence] = None
        self._take_out(sequence)
        self._resting[sequence] = None

    def resume(self, sequence: Sequence) -> None:
        """Let `sequence` wait, before all others of its priority, if it rests."""
        if sequence in self._resting:
            del self._resting[sequence]
            self._waiting[sequence.priority].appendleft(sequence)

    def _take_out(self, sequence: Sequence) -> None:
        for there in (self._running, self._waiting[sequence.priority]):
            if sequence in there:
                there.remove(sequence)
                return

    def reclaim(self) -> int:
        """When nobody is here, so that all of the cache must be free: the tokens that were not, and are from now on."""
        lost = self._config.kv_cache_tokens - self.num_free_cache_tokens
        if lost:
            self._slots = KVSlots(self._config.kv_cache_tokens)
        return lost

    def _admit(self) -> None:
        prefill_tokens = 0
        while queue := next(filter(None, self._waiting.values()), None):
            sequence = queue[0]
            prefill_tokens += sequence.num_uncached_tokens
            if prefill_tokens > self._config.max_prefill_tokens and prefill_tokens > sequence.num_uncached_tokens:
                return
            slot = self._slot_for(sequence)
            if slot is None:
                return
            sequence.slot = slot
            self._kept.pop(sequence, None)
            insort(self._running, queue.popleft(), key=lambda one: one.priority)
            self._changes.joined.append(sequence)
            self._await_full(sequence, slot)
            self._steps_since_join = 0

    def _slot_for(self, sequence: Sequence) -> Slot | None:
        """A slot for one that waits, at the cost of those of lower priority; None where there is no room."""
        if sequence.slot is not None and sequence.num_tokens > sequence.slot.length:
            self._free_slot(sequence)
        while True:
            if len(self._running) < self._config.max_sequences:
                slot = sequence.slot or self._allocate(self._slot_length(sequence))
                if slot is not None:
                    return slot
            if not self._running or self._running[-1].priority <= sequence.priority:
                return None
            self._preempt(self._running[-1])

    def _allocate(self, length: int) -> Slot | None:
        """A slot of `length`, at the cost of those that do not run; None where there is no room."""
        while (slot := self._slots.allocate(length)) is None and self._kept:
            self._free_slot(next(reversed(self._kept)))
        return slot

    def _slot_length(self, sequence: Sequence) -> int:
        return min(sequence.max_num_tokens, sequence.num_tokens + MIN_SLOT_GROWTH)

    def _await_full(self, sequence: Sequence, slot: Slot) -> None:
        """Look at `sequence`, which has room in `slot` for this step, again when it may have none."""
        if slot.length < sequence.max_num_tokens:
            step = self._num_steps + slot.length - sequence.num_tokens + 1
            self._full.setdefault(step, {})[sequence] = None

    def _make_room(self, sequence: Sequence) -> None:
        """Let the slot of `sequence` hold its newest token, at the cost of those after it if need be."""
        slot = sequence.slot
        if slot is None or sequence.stay is None or not sequence.needs_step:
            return  # preempted, for an older one perhaps, or at rest, or ended or about to
        if sequence.num_tokens > slot.length:
            grown = self._grown(sequence, slot)
            if grown is None:
                return
            slot = sequence.slot = grown
        self._await_full(sequence, slot)

    def _grown(self, sequence: Sequence, slot: Slot) -> Slot | None:
        """The larger slot of `sequence`; None where it had to be preempted itself."""
        length = self._slot_length(sequence)
        while True:
            grown = self._slots.extend(slot, length)
            if grown is None and (grown := self._allocate(length)) is not None:
                self._move_cache(slot, grown, sequence.num_cached_tokens)
                self._changes.moved.append(sequence)
                self._slots.release(slot)
            if grown is not None:
                return grown
            last = self._running[-1]
            self._preempt(last)
            if last is sequence:
                return None

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free_slot(sequence)
        self._waiting[sequence.priority].appendleft(sequence)
        self._changes.left.append(sequence)

    def _free_slot(self, sequence: Sequence) -> None:
        self._kept.pop(sequence, None)
        if sequence.slot is not None:
            self._slots.release(sequence.slot)
        sequence.lose_cache()
