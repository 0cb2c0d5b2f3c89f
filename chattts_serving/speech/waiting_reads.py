"""Reads that wait for tokens, by the engine's step before which their chunks cannot be there."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from chattts_serving.speech.open_request import OpenRequest


class WaitingReads:
    """Of each request one at most."""

    def __init__(self) -> None:
        """None waits."""
        self._steps: dict[OpenRequest, int] = {}
        self._heap: list[tuple[int, int, OpenRequest]] = []  # step, number of its own; those no longer waiting, too
        self._numbers = itertools.count()

    def put(self, request: OpenRequest, step: int) -> None:
        """The read of `request` waits for `step`, whatever it waited for before."""
        self._steps[request] = step
        heapq.heappush(self._heap, (step, next(self._numbers), request))

    def drop(self, request: OpenRequest) -> None:
        """The read of `request` waits for no step any more."""
        self._steps.pop(request, None)

    def take(self, step: int) -> Iterator[OpenRequest]:
        """The requests whose reads have waited for `step` or one before it, the earliest first; they wait no more."""
        while self._heap and self._heap[0][0] <= step:
            waited_for, _, request = heapq.heappop(self._heap)
            if self._steps.get(request) == waited_for:
                del self._steps[request]
                yield request
