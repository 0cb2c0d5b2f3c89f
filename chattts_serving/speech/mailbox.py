"""Chunks that lie ready for a reader, and who is told of them: one answer for all requests that a process reads.

A call of one model by another takes two threads while it lasts, so a reader of many requests does not wait for each in
a call of its own: it expects a chunk of each, and waits in one call for news of any.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from chattts_serving.errors import ServingError, ShuttingDownError
from chattts_serving.speech.opening import Opening, Part, Reply
from chattts_serving.speech.synthesizer import Synthesizer

Tell = Callable[[Sequence[str]], None]
"""Called once with the names of requests whose chunk, or error, lies ready."""


@dataclass
class _Reader:
    """Attributes: requests whose chunk is expected; those that it has not been told of; who is to be told."""

    expected: set[str] = field(default_factory=set)
    news: list[str] = field(default_factory=list)
    tell: Tell | None = None

    @property
    def is_idle(self) -> bool:
        return not (self.expected or self.news)


class Mailbox:
    """Reads of a `Synthesizer` whose outcome is kept until it is taken. Its replies leave from a thread of its own."""

    def __init__(self, synthesizer: Synthesizer, keep_s: float) -> None:
        """What is not taken for `keep_s` seconds is thrown away."""
        self._synthesizer = synthesizer
        self._keep_s = keep_s
        self._changed = threading.Condition()  # guards all below
        self._kept: dict[str, tuple[float, Part | ServingError]] = {}  # oldest first
        self._readers: dict[str, _Reader] = {}
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)
        self._thread.start()

    def open(self, reader: str, name: str, opening: Opening) -> None:
        """Open the request `name`, whose first chunk `reader` expects; raises as `Synthesizer.open`."""
        self._expect(reader, name, partial(self._synthesizer.open, name, opening))

    def wait(self, reader: str, names: Sequence[str], tell: Tell) -> None:
        """Expect the next chunks of `names`, too, and have `reader` told of those that lie ready, once there are any.

        Who waited for this reader before is told of none; so is one that expects nothing.

        Raises:
            ShuttingDownError: the synthesizer is closed; `tell` will not be called.
        """
        for name in names:
            self._expect(reader, name, partial(self._synthesizer.read, name))
        with self._changed:
            if self._is_closed:
                raise ShuttingDownError("the server is shutting down")
            found = self._readers.setdefault(reader, _Reader())
            before, found.tell = found.tell, tell
            self._changed.notify()
        if before is not None:
            before([])

    def take(self, name: str) -> Part | ServingError | None:
        """What lies ready of the request `name`."""
        with self._changed:
            return self._kept.pop(name, (0.0, None))[1]

    def close(self) -> None:
        """Tell readers that wait of what has ended, after the synthesizer was closed, and end the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _expect(self, reader: str, name: str, read: Callable[[Reply], None]) -> None:
        with self._changed:
            self._readers.setdefault(reader, _Reader()).expected.add(name)
        try:
            read(partial(self._keep, reader, name))
        except BaseException:
            with self._changed:
                self._readers[reader].expected.discard(name)
                self._changed.notify()
            raise

    def _keep(self, reader: str, name: str, outcome: Part | ServingError) -> None:
        with self._changed:
            self._kept[name] = time.monotonic(), outcome
            found = self._readers[reader]
            found.expected.discard(name)
            found.news.append(name)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (told := self._due()) and not self._is_closed:
                    self._changed.wait()
                if not told:
                    return
            for tell, names in told:
                with suppress(Exception):  # a reader that cannot be told asks again, or has gone
                    tell(names)

    def _due(self) -> list[tuple[Tell, list[str]]]:
        """Who is to be told of what, taken from the readers; the caller holds the lock."""
        self._throw_away()
        due = []
        for key, reader in list(self._readers.items()):
            if reader.tell is not None and (reader.news or reader.is_idle or self._is_closed):
                due.append((reader.tell, reader.news))
                reader.news, reader.tell = [], None
            if reader.is_idle and reader.tell is None:
                del self._readers[key]
        return due

    def _throw_away(self) -> None:
        oldest = time.monotonic() - self._keep_s
        for name, (kept, _) in list(self._kept.items()):
            if kept > oldest:
                break
            del self._kept[name]
            for reader in self._readers.values():
                with suppress(ValueError):
                    reader.news.remove(name)
