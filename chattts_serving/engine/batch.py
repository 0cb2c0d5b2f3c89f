"""The sequences of the next step and what the last steps drew: nobody is touched who merely goes on by one token.

A sequence joins and leaves; while it stays, its numbers follow from how many steps were launched and read since. What
all of them draw comes as one array a step and is stored as that.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from chattts_serving.engine.sequence import Kind, Sequence

IntArray = npt.NDArray[np.int32]


class StepLog:
    """What the last steps drew, by row; step n is the nth that was launched.

    Attributes:
        num_launched: steps launched.
        num_read: of those, the ones whose tokens are here.
    """

    def __init__(self, num_steps: int, num_rows: int, num_codebooks: int, num_heads: int = 0) -> None:
        """The tokens of `num_steps` steps are kept, the last ones, and where `num_heads` heads looked."""
        self.num_launched = self.num_read = 0
        self._tokens = np.zeros((num_steps, num_rows, num_codebooks), np.int32)
        self._looks = np.zeros((num_steps, num_rows, num_heads), np.int32)
        self._launched_ns, self._read_ns = [0] * num_steps, [0] * num_steps
        self._void: dict[int, Counter[Kind]] = {}

    def begin(self) -> None:
        """The next step is about to be launched."""
        self._launched_ns[self.num_launched % len(self._tokens)] = time.time_ns()

    def times_ns(self, step: int) -> tuple[int, int]:
        """When `step`, one of those kept, was launched and when its tokens were here, ns since 1970."""
        place = step % len(self._tokens)
        return self._launched_ns[place], self._read_ns[place]

    def store(self, rows: IntArray, drawn: IntArray, looks: IntArray | None = None) -> None:
        """The oldest step that was not read has drawn `drawn`, [len(rows), num_codebooks], for `rows`.

        Meanwhile heads looked at `looks`, [len(rows), num_heads]; None where it was not noted.
        """
        place = self.num_read % len(self._tokens)
        self._tokens[place, rows] = drawn
        if looks is not None:
            self._looks[place, rows] = looks
        self._read_ns[place] = time.time_ns()
        self.num_read += 1

    def tokens(self, row: int, first: int, last: int) -> IntArray:
        """What steps `first` to `last` - 1 drew for `row`: a copy, [last - first, num_codebooks]."""
        return _of_steps(self._tokens, row, first, last)

    def looks(self, row: int, first: int, last: int) -> IntArray:
        """Where heads looked in these steps, which noted it: a copy, [last - first, num_heads]."""
        return _of_steps(self._looks, row, first, last)

    def add_void(self, step: int, kind: Kind) -> None:
        """What `step` draws for one sequence will not be taken."""
        self._void.setdefault(step, Counter())[kind] += 1

    def take_void(self, step: int) -> Counter[Kind]:
        """How many sequences of each kind do not take what `step` has drawn."""
        return self._void.pop(step, None) or Counter()


def _of_steps(kept: IntArray, row: int, first: int, last: int) -> IntArray:
    start, size = first % len(kept), len(kept)
    end = start + last - first
    if end <= size:
        return kept[start:end, row].copy()
    return np.concatenate([kept[start:, row], kept[: end - size, row]])


@dataclass(eq=False)
class Stay:
    """The time that a sequence spends in the batch, in one go.

    Attributes:
        log: of the steps.
        sequence: whose it is.
        row: its row of whatever table the runner keeps, and of `log`.
        first: its first step.
        last: the step that draws the last token that it may have.
        lane: its place in the step that is launched next.
        is_over: whether it was preempted or removed, or has ended; it takes no token any more.
    """

    log: StepLog
    sequence: Sequence
    row: int
    first: int
    last: int
    lane: int = 0
    is_over: bool = False

    @property
    def num_launched(self) -> int:
        """Its steps that were launched."""
        return min(self.log.num_launched, self.last + 1) - self.first

    @property
    def num_read(self) -> int:
        """Its steps that were read."""
        return max(0, min(self.log.num_read, self.last + 1) - self.first)

    def end(self) -> None:
        """It is over: what is still drawn for it is void."""
        self.is_over = True
        for number in range(self.num_read, self.num_launched):
            self.log.add_void(self.first + number, self.sequence.kind)


class Batch:
    """Who is in the next step, in which lane, and which row each has for as long as it stays.

    Attributes:
        lanes: the stays by lane; those that draw text come first.
        num_text: how many those are.
        num_watched: those of which it is noted where text heads look.
        joined: those that came since the last step, to be written to their rows.
        moved: those whose cache lies elsewhere since.
        is_changed: whether the rows of the lanes differ from those of the last step.
    """

    def __init__(self, capacity: int) -> None:
        """Nobody is in it; `capacity` is the number of rows."""
        self.lanes: list[Stay] = []
        self.num_text = self.num_watched = 0
        self.joined: dict[Sequence, int] = {}
        self.moved: dict[Sequence, int] = {}
        self.is_changed = False
        self._rows = np.zeros(capacity, np.int32)  # by lane
        self._free = list(range(capacity))
        self._stays: dict[Sequence, Stay] = {}

    def __len__(self) -> int:
        """Sequences in it."""
        return len(self.lanes)

    @property
    def rows(self) -> IntArray:
        """The row of each lane."""
        return self._rows[: len(self.lanes)]

    @property
    def sequences(self) -> list[Sequence]:
        """By lane."""
        return [stay.sequence for stay in self.lanes]

    def join(self, sequence: Sequence, log: StepLog) -> Stay:
        """Let `sequence` in.

        Raises:
            ValueError: there is no row for it.
        """
        if not self._free:
            raise ValueError(f"{len(self._rows) + 1} sequences in one step; allowed are {len(self._rows)}")
        first = log.num_launched
        num_left = sequence.params.max_new_tokens - sequence.num_new_tokens
        stay = Stay(log, sequence, self._free.pop(), first, first + num_left - 1)
        self._stays[sequence] = sequence.stay = stay
        self.joined[sequence] = stay.row
        self.is_changed = True
        if sequence.draws_text and self.num_text < len(self.lanes):
            self.lanes.append(self.lanes[self.num_text])
            self._place(len(self.lanes) - 1)
            self.lanes[self.num_text] = stay
            self._place(self.num_text)
        else:
            self.lanes.append(stay)
            self._place(len(self.lanes) - 1)
        self.num_text += sequence.draws_text
        self.num_watched += sequence.watched is not None
        return stay

    def leave(self, sequence: Sequence) -> None:
        """Let `sequence` out; nothing happens where it is not in."""
        stay = self._stays.pop(sequence, None)
        if stay is None:
            return
        self._free.append(stay.row)
        self.joined.pop(sequence, None)
        self.moved.pop(sequence, None)
        self.is_changed = True
        self.num_watched -= sequence.watched is not None
        hole = stay.lane
        if sequence.draws_text:
            self.num_text -= 1
            hole = self._fill(hole, self.num_text)
        self._fill(hole, len(self.lanes) - 1)
        self.lanes.pop()

    def move(self, sequence: Sequence) -> None:
        """The cache of `sequence` lies elsewhere."""
        stay = self._stays.get(sequence)
        if stay is not None:
            self.moved[sequence] = stay.row

    def settle(self) -> None:
        """A step was launched with it as it is."""
        self.joined.clear()
        self.moved.clear()
        self.is_changed = False

    def _fill(self, hole: int, last: int) -> int:
        """Put the lane `last` into `hole`; the hole that it leaves."""
        if hole != last:
            self.lanes[hole] = self.lanes[last]
            self._place(hole)
        return last

    def _place(self, lane: int) -> None:
        stay = self.lanes[lane]
        stay.lane, self._rows[lane] = lane, stay.row
