"""Reads that wait for tokens, by the step of the engine before which their chunk cannot be there."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from chattts_serving.speech.open_request import OpenRequest


class DueReads:
    """A heap of requests by `OpenRequest.due`; one that is answered otherwise has another `due` by then."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._heap: list[tuple[int, int, OpenRequest]] = []  # the step, and a number for those of one step
        self._numbers = itertools.count()

    def add(self, request: OpenRequest, num_steps: int) -> None:
        """Have the read of `request` looked at after `num_steps` steps, if its tokens alone can bring its chunk."""
        missing = request.num_missing()
        if missing is not None:
            request.due = num_steps + missing  # a step brings one at most
            heapq.heappush(self._heap, (request.due, next(self._numbers), request))

    def pop(self, num_steps: int) -> Iterator[OpenRequest]:
        """Those that are due after `num_steps` steps."""
        while self._heap and self._heap[0][0] <= num_steps:
            step, _, request = heapq.heappop(self._heap)
            if request.due == step:
                yield request
