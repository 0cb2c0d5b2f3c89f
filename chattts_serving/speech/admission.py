"""Who is let in: not more requests than allowed, and none once the server is about to end.

gpt_decoder decides. What it has open it also writes to a file in the launcher's private folder, where text_frontend
looks before it works on a request in vain. Its instances write there, too, whom they have let in, so that two of them
do not give one place away twice. Without a launcher there is no such file, and every request comes to gpt_decoder.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections import deque
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from chattts_serving.errors import OverloadedError, ShuttingDownError
from chattts_serving.variables import DRAIN_FILE

PASSAGE_S = 0.2  # from text_frontend to gpt_decoder, at most, on a busy machine
MAX_DOORS = 16  # instances of text_frontend that know of each other
MAX_PASSAGES = 31  # of one of them
_ROOM = struct.Struct("<5q")
# Of each door: how many are inside, and for each passage its ticket and when it must have come, in ns; 0: none.
_DOOR_SHAPE = (MAX_DOORS, 1 + 2 * MAX_PASSAGES)


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
    """The file that has the `Room` of this server, and behind it its doors."""

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._file: int | None = None

    def write(self, room: Room) -> None:
        """Let others know."""
        file = self._open(create=True)
        if file is not None:
            os.pwrite(file, _ROOM.pack(*astuple(room)), 0)

    def read(self) -> Room | None:
        """What was written last; None where nothing was."""
        file = self._open()
        if file is None:
            return None
        text = os.pread(file, _ROOM.size, 0)
        return Room(*_ROOM.unpack(text)) if len(text) == _ROOM.size else None

    def write_door(self, index: int, values: list[int]) -> None:
        """Let others know whom a door has let in."""
        file = self._open()
        if file is not None and index < MAX_DOORS:
            row = np.zeros(_DOOR_SHAPE[1], np.int64)
            row[: len(values)] = values
            os.pwrite(file, row.tobytes(), _ROOM.size + index * row.nbytes)

    def num_ahead(self, room: Room) -> tuple[int, int]:
        """How many the doors have let in who have not come yet: still inside, and on their way."""
        file = self._open()
        if file is None:
            return 0, 0
        doors = np.zeros(_DOOR_SHAPE, np.int64)
        text = os.pread(file, doors.nbytes, _ROOM.size)
        doors.reshape(-1)[: len(text) // 8] = np.frombuffer(text, np.int64, len(text) // 8)
        tickets, latest = doors[:, 1::2], doors[:, 2::2]
        on_their_way = (tickets > room.num_arrived) & (latest > time.monotonic_ns())
        return int(doors[:, 0].sum()), int(on_their_way.sum())

    def _open(self, *, create: bool = False) -> int | None:
        path = _drain_file()
        if self._file is None and path is not None:
            try:
                self._file = os.open(path.with_name("room"), os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
            except FileNotFoundError:  # gpt_decoder has not been loaded
                return None
        return self._file


class Door:
    """Where text_frontend refuses what gpt_decoder would refuse; it lets in one thread and out another.

    One that passes gets a ticket: how many will have come to gpt_decoder with it. Once so many have, it is there. One
    that stays, as a probe does, is refused like others and takes nobody's place.
    """

    def __init__(self, index: int = 0) -> None:
        """Nobody is inside; `index` is that of the instance, 0 or more."""
        self._index = index
        self._sign = RoomSign()
        self._lock = threading.Lock()
        self._num_inside = self._num_staying = 0
        self._passages: deque[tuple[int, int]] = deque(maxlen=MAX_PASSAGES)  # ticket, and when it must have come
        self._show()  # over what a process that died has left

    def enter(self, *, is_batch: bool, stays: bool = False) -> None:
        """Let a request in, which `stays` if it does not go to gpt_decoder.

        Raises:
            ServingError: there is no room, or the server is about to end.
        """
        check_not_drained()
        with self._lock:
            room = self._sign.read()
            if room is not None:
                num_staying = self._num_staying if stays else 0
                room.check(is_batch=is_batch, num_ahead=sum(self._sign.num_ahead(room)) + num_staying)
            self._count(1, stays=stays)

    def leave(self, *, passes: bool, stays: bool = False) -> None:
        """Let it out; one that `passes` goes to gpt_decoder. `stays` as when it came."""
        with self._lock:
            room = self._sign.read()
            if passes and not stays and room is not None:
                ticket = room.num_arrived + self._sign.num_ahead(room)[1] + 1
                self._passages.append((ticket, time.monotonic_ns() + round(PASSAGE_S * 1e9)))
            self._count(-1, stays=stays)

    def _count(self, change: int, *, stays: bool) -> None:
        """Count one in (1) or out (-1); the caller holds the lock."""
        if stays:
            self._num_staying += change
        else:
            self._num_inside += change
            self._show()

    def _show(self) -> None:
        self._sign.write_door(self._index, [self._num_inside, *chain.from_iterable(self._passages)])


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
