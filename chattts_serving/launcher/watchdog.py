"""Notices a server that lives and does not answer: asks it again and again, each time from a process of its own.

The launcher has one thread, which must not wait for an answer, and starts programs in a way that is safe in a process
of one thread only. A forked copy of it costs a few milliseconds, waits as long as it likes, and can be killed.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable

MOST_PAUSE_S = 10.0  # between two questions
_FORK = multiprocessing.get_context("fork")


class Watchdog:
    """Asks one run of the server whether it works."""

    def __init__(self, ask: Callable[[float], None], limit_s: float) -> None:
        """Nothing is asked yet.

        Args:
            ask: raises an error where the server does not answer as one that works. Its argument is how many seconds
                one answer may take.
            limit_s: how long the server may go without a good answer; 0 never asks.
        """
        self._ask = ask
        self._limit_s = limit_s
        self._pause_s = min(MOST_PAUSE_S, limit_s / 4)
        self._asked = time.monotonic()
        self._unanswered_since: float | None = None  # the first question since the last good answer
        self._asking: multiprocessing.process.BaseProcess | None = None

    def hangs(self) -> bool:
        """Whether the limit has passed; returns at once, and wants to be called often."""
        if not self._limit_s:
            return False
        now = time.monotonic()
        if self._asking is None:
            if now - self._asked >= self._pause_s:
                self._start(now)
            return False
        if self._asking.exitcode is None:
            return False
        answered = self._asking.exitcode == 0
        self.close()
        if answered:
            self._unanswered_since = None
        return self._unanswered_since is not None and now - self._unanswered_since >= self._limit_s

    def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.kill()
            self._asking.join()
            self._asking = None

    def _start(self, now: float) -> None:
        self._asked = now
        if self._unanswered_since is None:
            self._unanswered_since = now
        self._asking = _FORK.Process(target=_question, args=(self._ask, self._limit_s), daemon=True)
        self._asking.start()


def _question(ask: Callable[[float], None], timeout_s: float) -> None:
    try:
        ask(timeout_s)
    except Exception as error:
        print(f"warning: the server does not answer: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
