"""What a server speaks beside the load that is measured: a long text, or whole answers for callers of their own."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from chattts_client import AsyncTTSClient

from bench.load import Chunk, Outcome, Speak, Summary, summarize

LONG_TEXT = (
    "The old clock in the market square was slow again, and nobody had told the baker. "
    "今天天气真不错，我们一起去公园散步，好吗？"
) * 96  # 10,000 characters, 192 sentences


@asynccontextmanager
async def long_text_streams(client: AsyncTTSClient) -> AsyncIterator[None]:
    """A long text is spoken and heard, again and again, for the length of a block; it has begun when the block does."""
    begun = asyncio.Event()

    async def listen() -> None:
        while True:
            async with client.stream(LONG_TEXT, seed=0, skip_refine=True) as stream:
                async for _ in stream:
                    begun.set()

    listening = asyncio.create_task(listen())
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([listening, waiting], return_when=asyncio.FIRST_COMPLETED)
    try:
        if listening.done():
            listening.result()
        yield
        if listening.done():
            listening.result()
    finally:
        waiting.cancel()
        listening.cancel()
        await asyncio.wait([listening])


@dataclass
class Beside:
    """What became of the whole answers; `summary` is there when the block has ended."""

    summary: Summary | None = None


@asynccontextmanager
async def whole_answers(speak: Speak, callers: int) -> AsyncIterator[Beside]:
    """So many callers ask for one sentence after another by `speak`, for the length of a block.

    What is under way at its end is waited for, and counts nowhere.
    """
    found, outcomes, numbers, started = Beside(), list[Outcome](), itertools.count(), time.monotonic()
    has_ended = False

    async def call() -> None:
        while not has_ended:
            sent = time.monotonic()
            chunks = [Chunk(time.monotonic() - sent, audio_s) async for audio_s in speak(next(numbers))]
            outcomes.append(Outcome(time.monotonic() - sent, 0.0, tuple(chunks), None))

    calling = [asyncio.create_task(call()) for _ in range(callers)]
    try:
        yield found
        found.summary = summarize(list(outcomes), time.monotonic() - started)
    finally:
        has_ended = True
        await asyncio.gather(*calling)  # raises what ended one of them
