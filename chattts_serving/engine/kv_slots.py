"""Where each sequence's keys and values lie in the cache: contiguous runs of tokens, counted in plain integers.

A run can be read as one slice without a copy, which CPU attention needs, and is addressed by one offset in a kernel.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A run of the cache: tokens `start` to `start + length - 1`."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first token past it."""
        return self.start + self.length


class KVSlots:
    """First-fit allocation of slots in a cache of `capacity` tokens; free neighbours are always merged."""

    def __init__(self, capacity: int) -> None:
        """`capacity` is the number of tokens that the cache holds."""
        self._free = [Slot(0, capacity)] if capacity else []  # sorted by start, no two touch

    @property
    def num_free_tokens(self) -> int:
        """Tokens in no slot; a slot as long as that may still not fit, when they lie apart."""
        return sum(slot.length for slot in self._free)

    def allocate(self, length: int) -> Slot | None:
        """A slot of `length` > 0 tokens, or None when no free run is that long."""
        for index, free in enumerate(self._free):
            if free.length >= length:
                self._replace(index, Slot(free.start + length, free.length - length))
                return Slot(free.start, length)
        return None

    def extend(self, slot: Slot, length: int) -> Slot | None:
        """`slot` grown in place to `length` tokens, or None when what follows it is not free."""
        missing = length - slot.length
        index = bisect.bisect_left([free.start for free in self._free], slot.end)
        if index == len(self._free) or self._free[index].start != slot.end or self._free[index].length < missing:
            return None
        self._replace(index, Slot(slot.end + missing, self._free[index].length - missing))
        return Slot(slot.start, length)

    def release(self, slot: Slot) -> None:
        """Give `slot` back."""
        index = bisect.bisect_left([free.start for free in self._free], slot.start)
        start, end = slot.start, slot.end
        first = last = index
        if index > 0 and self._free[index - 1].end == start:
            first, start = index - 1, self._free[index - 1].start
        if index < len(self._free) and self._free[index].start == end:
            last, end = index + 1, self._free[index].end
        self._free[first:last] = [Slot(start, end - start)]

    def _replace(self, index: int, rest: Slot) -> None:
        self._free[index : index + 1] = [rest] if rest.length else []
