"""What streams keep of their sentences between chunks: counted while they are open, and gone with those who leave."""

import asyncio
import time

from chattts_client import AsyncTTSClient

from bench.watch import memory_of, process_tree
from chattts_serving.launcher.processes import model_of
from tests.metrics import samples, time_to_rest

MODEL = "chattts_stream"  # whose process holds the states of streams
AT_ONCE = 50  # fewer than run at once
ROUNDS = 20
WARM_ROUNDS = 2  # until threads and arenas have their full size
WITHIN_S = 10.0  # far above what it takes, so that a busy machine does not decide


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


async def cancel_streams(server, rounds, look=lambda: None, text="Hello there."):
    """AT_ONCE streams of `text` without end, all left once each has its first chunk, `rounds` times."""
    options = {"skip_refine": True, "min_new_tokens": 2_048, "mode": "low_latency"}
    async with AsyncTTSClient(server.grpc_url, timeout=120.0) as client:
        for number in range(rounds):
            seeds = range(AT_ONCE * number, AT_ONCE * (number + 1))
            streams = [client.stream(text, seed=seed, **options) for seed in seeds]
            await asyncio.gather(*(anext(stream) for stream in streams))
            await asyncio.to_thread(look)
            await asyncio.gather(*(stream.aclose() for stream in streams))


def test_a_thousand_cancelled_streams_leave_no_state_and_no_memory(tiny):
    """A quarter of what their states take is allowed for; the process grew by less than a tenth (measured)."""
    seen = []
    asyncio.run(cancel_streams(tiny.server, 1, lambda: seen.append(wait_for_held(tiny.server, AT_ONCE))))
    asyncio.run(cancel_streams(tiny.server, WARM_ROUNDS - 1))
    [(_, num_bytes)] = seen
    assert num_bytes > AT_ONCE * 10_000
    before = memory(tiny.server)
    asyncio.run(cancel_streams(tiny.server, ROUNDS))
    growth = memory(tiny.server) - before
    print(f"{ROUNDS * AT_ONCE:,} streams with {num_bytes / AT_ONCE:,.0f} bytes of state each left {growth:+,} bytes")
    assert growth < ROUNDS * num_bytes / 4


def test_texts_in_pieces_that_are_left_leave_no_state(tiny):
    asyncio.run(cancel_streams(tiny.server, 1, lambda: wait_for_held(tiny.server, AT_ONCE), ["Hello there."]))
    assert wait_for_held(tiny.server, 0) == (0, 0)
