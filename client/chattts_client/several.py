"""Several texts in one go, for whoever can wait: some at once, in any order, behind everybody who listens."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from itertools import islice
from typing import TypeVar

from chattts_client.errors import OverloadedError

PRIORITY = "batch"
RETRY_AFTER_S = (0.5, 1.5)  # drawn, so that callers who were refused together do not come back together

T = TypeVar("T")


async def as_they_end(works: Iterable[Callable[[], Awaitable[T]]], at_once: int) -> AsyncGenerator[T, None]:
    """What `works` give, as it comes; at most `at_once` are at work or wait to be taken.

    Leaving cancels what is at work, as does the first error, which is raised.
    """
    waiting = iter(works)
    running: set[asyncio.Future[T]] = set()
    ended: set[asyncio.Future[T]] = set()
    try:
        while True:
            running |= {asyncio.ensure_future(work()) for work in islice(waiting, at_once - len(running))}
            if not running:
                return
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for one in ended:
                yield one.result()
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, *ended, return_exceptions=True)


async def with_patience(work: Callable[[], Awaitable[T]], most_s: float | None) -> T:
    """What `work` gives; where the server has no room, asked again until it has or `most_s` seconds are over.

    Raises:
        OverloadedError: they are over. What `work` raises else, it raises at once.
    """
    end = time.monotonic() + most_s if most_s is not None else float("inf")
    while True:
        try:
            return await work()
        except OverloadedError:
            wait_s = random.uniform(*RETRY_AFTER_S)  # noqa: S311 - no secret
            if time.monotonic() + wait_s > end:
                raise
        await asyncio.sleep(wait_s)
