"""The signals that tell a launcher to stop."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Counts them for the length of a `with` block, in which they end nothing.

    Attributes:
        last: the number of the last one; 0 where none came.
        count: how many came.
    """

    def __init__(self) -> None:
        """Nothing is caught yet."""
        self.last = self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    @property
    def name(self) -> str:
        """The name of the last one."""
        return signal.Signals(self.last).name

    def __enter__(self) -> Signals:
        """Begin to catch."""
        self._before = {number: signal.getsignal(number) for number in STOPPING}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:  # as nohup has SIGHUP
                signal.signal(number, self._came)
        return self

    def __exit__(self, *_: object) -> None:
        """Have them do again what they did."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, _frame: FrameType | None) -> None:
        self.last = number
        self.count += 1
