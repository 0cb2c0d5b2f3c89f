"""Waits for the next chunks of many requests in one call: the other end of `mailbox`, in the process that reads."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from chattts_serving.errors import ServingError

Values = Mapping[str, npt.NDArray[Any] | str]
CallModel = Callable[[str, Values, Sequence[str]], Awaitable[Values]]
"""(model, inputs, names of outputs) -> outputs, none with a batch dimension; raises ServingError."""


class Reader:
    """Reads any number of requests of `gpt_decoder`, from one event loop."""

    def __init__(self, call: CallModel) -> None:
        """`call` calls a model. A call or two of gpt_decoder last while anything is read, beside those that open."""
        self._call = call
        self._name = secrets.token_hex(16)
        self._waiting: dict[str, asyncio.Future[None]] = {}  # by the name of the request
        self._open: set[str] = set()  # of those, what gpt_decoder knows of, or will by the next call
        self._expected: list[str] = []  # of those, what the next call says
        self._num_calls = 0
        self._is_due = False  # the next call
        self._tasks: set[asyncio.Task[None]] = set()

    async def first(self, name: str, opening: Values, opened: Callable[[], object] = lambda: None) -> None:
        """Open the request `name` and wait until its first chunk, or its error, can be taken.

        Args:
            name: the request's stream_id.
            opening: gpt_decoder's inputs for a first call, but for stream_id.
            opened: called once gpt_decoder knows the request.

        Raises:
            ServingError: the request is refused, or the server fails or ends.
        """
        future = self._future(name)  # before the call, as its news may come first
        try:
            await self._call("gpt_decoder", {**opening, "stream_id": name, "reader": self._name}, ["ready"])
            opened()
            self._open.add(name)
            if not self._num_calls:
                self._ask()
            await future
        finally:
            self._forget(name)

    async def next(self, name: str) -> None:
        """Wait until the next chunk of the open request `name`, or its error, can be taken.

        Raises:
            ServingError: the server fails or ends.
        """
        future = self._future(name)
        self._open.add(name)
        self._expected.append(name)
        self._ask()
        try:
            await future
        finally:
            self._forget(name)

    def _future(self, name: str) -> asyncio.Future[None]:
        self._waiting[name] = asyncio.get_running_loop().create_future()
        return self._waiting[name]

    def _forget(self, name: str) -> None:
        del self._waiting[name]
        self._open.discard(name)

    def _ask(self) -> None:
        """Have one call made, for whatever is expected then."""
        if not self._is_due:
            self._is_due = True
            task = asyncio.get_running_loop().create_task(self._wait())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _wait(self) -> None:
        self._is_due = False
        names, self._expected = self._expected, []
        self._num_calls += 1
        try:
            inputs = {"stream_id": self._name, "expected": "\n".join(names)}
            ready = str((await self._call("gpt_decoder", inputs, ["ready"]))["ready"])
        except ServingError as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            return
        finally:
            self._num_calls -= 1
        for name in ready.split("\n"):
            told = self._waiting.get(name)
            if told is not None and not told.done():
                told.set_result(None)
            self._open.discard(name)
        if self._open and not self._num_calls:
            self._ask()
