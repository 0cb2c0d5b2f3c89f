"""What streams keep of their sentences between chunks: counted while they are open, and gone with those who leave."""

import asyncio
import time

from chattts_client import AsyncTTSClient

from bench.watch import memory_of, process_tree
from chattts_serving.launcher.processes import model_of
from tests.metrics import samples, time_to_rest

MODEL = "chattts_stream"  # whose process holds the states of streams
AT_ONCE = 50  # fewer than run at once
STREAMS = 1_000
WITHIN_S = 60.0  # far above what it takes, so that a busy machine does not decide


def held(server):
    """How many states the streams hold, and their bytes."""
    now = samples(server)
    return tuple(int(now[f'chattts_{name}{{model="{MODEL}"}}']) for name in ("states_held", "state_bytes"))


def wait_for_held(server, number):
    end = time.monotonic() + WITHIN_S
    while (seen := held(server))[0] != number:
        assert time.monotonic() < end, f"{seen[0]} states of {seen[1]} bytes are held, not those of {number} streams"
        time.sleep(0.02)
    return seen


def memory(server):
    """Bytes that the process of MODEL takes at rest, without pages of files."""
    time_to_rest(server, WITHIN_S)
    assert wait_for_held(server, 0) == (0, 0)
    [pid] = [pid for pid in process_tree(server.launcher.pid) if model_of(pid) == MODEL]
    return memory_of(pid).held


def open_stream(client, seed, text="Hello there."):
    """A stream without end."""
    return client.stream(text, seed=seed, skip_refine=True, min_new_tokens=2_048, mode="low_latency")


async def look_while_open(server, text="Hello there."):
    """What is held for AT_ONCE streams of `text`, each of which has its first chunk; then they are left."""
    async with AsyncTTSClient(server.grpc_url, timeout=120.0) as client:
        streams = [open_stream(client, seed, text) for seed in range(AT_ONCE)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        seen = await asyncio.to_thread(wait_for_held, server, AT_ONCE)
        await asyncio.gather(*(stream.aclose() for stream in streams))
        return seen


async def cancel_streams(server, number):
    """AT_ONCE callers who open a stream, leave with its first chunk, and open another, `number` in all."""
    seeds = iter(range(number))

    async def caller(client):
        for seed in seeds:
            stream = open_stream(client, seed)
            await anext(stream)
            await stream.aclose()

    async with AsyncTTSClient(server.grpc_url, timeout=120.0) as client:
        await asyncio.gather(*(caller(client) for _ in range(AT_ONCE)))


def test_a_thousand_cancelled_streams_leave_no_state_and_no_memory(tiny):
    """A quarter of what their states take is allowed for; the process grew by a twentieth (measured)."""
    _, num_bytes = asyncio.run(look_while_open(tiny.server))
    assert num_bytes > AT_ONCE * 10_000
    asyncio.run(cancel_streams(tiny.server, AT_ONCE))  # until threads and arenas have their full size
    before = memory(tiny.server)
    asyncio.run(cancel_streams(tiny.server, STREAMS))
    growth = memory(tiny.server) - before
    print(f"{STREAMS:,} streams with {num_bytes / AT_ONCE:,.0f} bytes of state each left {growth:+,} bytes")
    assert growth < STREAMS * num_bytes / AT_ONCE / 4


def test_texts_in_pieces_that_are_left_leave_no_state(tiny):
    asyncio.run(look_while_open(tiny.server, ["Hello there."]))
    assert wait_for_held(tiny.server, 0) == (0, 0)
