"""Who is let in: not more requests than allowed, and none once the server is about to end.

gpt_decoder decides. What it has open it also writes to a file in the launcher's private folder, where text_frontend
looks before it works on a request in vain. Without a launcher there is no such file, and every request comes to
gpt_decoder.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from dataclasses import astuple, dataclass
from pathlib import Path

from chattts_serving.draining import DRAIN_FILE
from chattts_serving.errors import OverloadedError, ShuttingDownError

PASSAGE_S = 0.2  # from text_frontend to gpt_decoder, at most, on a busy machine
_LAYOUT = struct.Struct("<5q")  # of a Room


@dataclass(frozen=True)
class Room:
    """How many requests are open, and how many may be.

    Attributes:
        num_open, num_batch: all, and those of priority "batch".
        max_open, max_batch: the most of them.
        num_arrived: how many ever came to gpt_decoder, let in or not.
    """

    num_open: int
    num_batch: int
    max_open: int
    max_batch: int
    num_arrived: int = 0

    def check(self, *, is_batch: bool, num_ahead: int = 0) -> None:
        """Let one more in, of priority "batch" or not, behind `num_ahead` that are not open yet.

        Raises:
            OverloadedError: there is no room.
        """
        num_open = self.num_open + num_ahead
        if num_open >= self.max_open:
            raise OverloadedError(
                f"overloaded: {num_open} requests are open, of {self.max_open} allowed; try again later"
            )
        if is_batch and self.num_batch >= self.max_batch:
            raise OverloadedError(
                f"overloaded: {self.num_batch} requests of priority 'batch' are open, of {self.max_batch} allowed; "
                "try again later"
            )


class RoomSign:
    """The file that has the `Room` of this server."""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._file: int | None = None

    def write(self, room: Room) -> None:
        """Let others know."""
        file = self._open(os.O_RDWR | os.O_CREAT)
        if file is not None:
            os.pwrite(file, _LAYOUT.pack(*astuple(room)), 0)

    def read(self) -> Room | None:
        """What was written last; None where nothing was."""
        file = self._open(os.O_RDONLY)
        if file is None:
            return None
        text = os.pread(file, _LAYOUT.size, 0)
        return Room(*_LAYOUT.unpack(text)) if len(text) == _LAYOUT.size else None

    def _open(self, flags: int) -> int | None:
        path = _drain_file()
        if self._file is None and path is not None:
            try:
                self._file = os.open(path.with_name("room"), flags, 0o600)
            except FileNotFoundError:  # gpt_decoder has not been loaded
                return None
        return self._file


class Door:
    """Where text_frontend refuses what gpt_decoder would refuse; it lets in one thread and out another."""

    def __init__(self) -> None:
        """Nobody is inside."""
        self._sign = RoomSign()
        self._lock = threading.Lock()
        self._num_inside = 0
        self._passed: deque[float] = deque()  # when those who are on their way to gpt_decoder left
        self._num_arrived = 0  # of the room that was read last

    def enter(self, *, is_batch: bool) -> None:
        """Let a request in.

        Raises:
            ServingError: there is no room, or the server is about to end.
        """
        check_not_drained()
        room = self._sign.read()
        with self._lock:
            if room is not None:
                self._forget_arrived(room)
                room.check(is_batch=is_batch, num_ahead=self._num_inside + len(self._passed))
            self._num_inside += 1

    def leave(self, *, passes: bool) -> None:
        """Let it out; one that `passes` goes to gpt_decoder."""
        with self._lock:
            self._num_inside -= 1
            if passes:
                self._passed.append(time.monotonic())

    def _forget_arrived(self, room: Room) -> None:
        num_arrived, self._num_arrived = room.num_arrived - self._num_arrived, room.num_arrived
        while self._passed and (num_arrived > 0 or time.monotonic() > self._passed[0] + PASSAGE_S):
            self._passed.popleft()
            num_arrived -= 1


def drained_until() -> float | None:
    """The `time.monotonic()` until which open requests may go on; None while the server is not about to end."""
    path = _drain_file()
    if path is None:
        return None
    try:
        return float(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def check_not_drained() -> None:
    """Let nobody in who comes too late.

    Raises:
        ShuttingDownError: the server is about to end.
    """
    if drained_until() is not None:
        raise ShuttingDownError("the server is shutting down")


def _drain_file() -> Path | None:
    name = os.environ.get(DRAIN_FILE)
    return Path(name) if name else None
