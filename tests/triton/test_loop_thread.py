import asyncio
import threading
import time
from concurrent.futures import CancelledError

import pytest

from chattts_serving.triton.loop_thread import LoopThread


def test_coroutines_run_at_once_on_another_thread():
    loop = LoopThread(num_threads=4)
    names, barrier = [], threading.Barrier(3)

    async def call():
        names.append(threading.current_thread().name)
        await asyncio.get_running_loop().run_in_executor(None, barrier.wait, 30)

    for future in [loop.run(call()) for _ in range(3)]:
        future.result(timeout=30)
    assert names == ["calls"] * 3
    loop.close()


def test_closing_cancels_what_runs_and_waits_for_its_end():
    loop = LoopThread(num_threads=1)
    ended = []

    async def endless():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            ended.append(time.monotonic())

    future = loop.run(endless())
    loop.run(asyncio.sleep(0)).result(timeout=30)
    loop.close()
    assert ended
    with pytest.raises(CancelledError):
        future.result(timeout=30)
