"""What callers' threads leave for the engine's thread to do, and the places of the requests among that."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

from chattts_serving.errors import ShuttingDownError
from chattts_serving.speech.admission import Room, RoomSign, check_not_drained

Call = Callable[[], None]


class Arrivals:
    """Calls in the order in which they came. Any thread puts them, one takes them.

    Attributes:
        room: how many requests are open; its sign says so to others.
    """

    def __init__(self, room: Room) -> None:
        """Nothing has come, and `room` is free."""
        self.room = room  # guarded by _lock
        self._sign = RoomSign()
        self._sign.write(room)
        self._lock = threading.Lock()
        self._is_closed = False
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()  # None: closed

    def put(self, call: Call) -> None:
        """Leave `call`.

        Raises:
            ShuttingDownError: this is closed.
        """
        with self._lock:
            self._check_open()
            self._calls.put(call)

    def put_request(self, call: Call, *, is_batch: bool) -> None:
        """Leave `call`, which opens a request; it has its place from now on.

        Raises:
            OverloadedError: there is no room.
            ShuttingDownError: this is closed, or the server is about to end.
        """
        check_not_drained()
        with self._lock:
            self._check_open()
            self._write(replace(self.room, num_arrived=self.room.num_arrived + 1))
            self.room.check(is_batch=is_batch)
            self._count(1, is_batch=is_batch)
            self._calls.put(call)

    def leave(self, *, is_batch: bool) -> None:
        """A request has ended, and gives its place back."""
        with self._lock:
            self._count(-1, is_batch=is_batch)

    def get(self, *, block: bool, timeout: float | None) -> Call | None:
        """The next call, waited for as `queue.SimpleQueue.get` does; None once closed.

        Raises:
            queue.Empty: there is none.
        """
        return self._calls.get(block=block, timeout=timeout)

    def close(self) -> None:
        """Take no further calls."""
        with self._lock:
            self._is_closed = True
        self._calls.put(None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise shutting_down()

    def _count(self, change: int, *, is_batch: bool) -> None:
        room = self.room
        num_batch = room.num_batch + (change if is_batch else 0)
        self._write(replace(room, num_open=room.num_open + change, num_batch=num_batch))

    def _write(self, room: Room) -> None:
        self.room = room
        self._sign.write(room)


def shutting_down() -> ShuttingDownError:
    """What whoever comes too late is told."""
    return ShuttingDownError("the server is shutting down")
