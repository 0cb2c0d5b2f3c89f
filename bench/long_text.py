"""A long text that is spoken beside a load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from chattts_client import AsyncTTSClient

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
