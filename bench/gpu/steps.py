"""Where a step's time goes: what the hardware does at best, decode steps, prompts, sampling, newcomers."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch

from bench.gpu.machine import WARM, Machine, dtype_of
from bench.gpu.phases import NotHereError, Row, Wrong
from bench.model import bytes_read, sequence
from chattts_serving.engine.sequence import Kind

JOIN_PROMPT = 40  # tokens of a newcomer's prompt: a short sentence's
MOST_AGE = 1_000  # tokens that the oldest sequence has drawn, where newcomers are few
SPIN_CYCLES = 200_000  # of a kernel that only takes time
WATCHED = 40  # tokens of a sentence whose words are timed
MOST_MORE = 1  # % of a step that this may take
LISTED = 12  # kernels of a profile that the table shows


def hardware(machine: Machine) -> Iterator[Row | Wrong]:
    """Bandwidth of the memory, speed of large products, and how late an event is heard."""
    counts, device = machine.counts, machine.device
    read_ms, copy_ms = _memory_ms(machine)
    a = torch.randn(counts.product_rows, counts.product_rows, device=device).to(dtype_of(machine.precision))
    product_ms = machine.device_ms(lambda: a @ a)
    machine.bandwidth = 1e3 * counts.read_bytes / read_ms
    yield {
        "device": torch.cuda.get_device_name(device) if machine.is_gpu else "cpu",
        "read GB/s": machine.bandwidth / 1e9,
        "copy GB/s, both ways": 2 * counts.read_bytes / copy_ms / 1e6,
        f"{machine.precision.value} TFLOP/s": 2 * counts.product_rows**3 / product_ms / 1e9,
    }
    if machine.is_gpu:
        waits = _event_waits_us(counts.waits)
        yield {"wait for an event, p50 us": float(np.median(waits)), "p99 us": float(np.quantile(waits, 0.99))}


def _memory_ms(machine: Machine) -> tuple[float, float]:
    """Time to read so many bytes, and to copy them."""
    data = torch.ones(machine.counts.read_bytes // 4, device=machine.device)
    target = torch.empty_like(data)
    return machine.device_ms(data.sum), machine.device_ms(lambda: target.copy_(data))


def _event_waits_us(count: int) -> list[float]:
    """How long a thread waits for the event after a short kernel, asleep."""
    waits = []
    for _ in range(count):
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        torch.cuda._sleep(SPIN_CYCLES)  # type: ignore[no-untyped-call]
        event.record()
        started = time.perf_counter()
        event.synchronize()
        waits.append(1e6 * (time.perf_counter() - started))
    return waits


def grid(machine: Machine) -> Iterator[Row | Wrong]:
    """Decode steps of so many sequences with so much context: on the GPU alone, and as the host sees them."""
    counts, engine = machine.counts, machine.grid_engine()
    points = [(lanes, context) for context in counts.grid_contexts for lanes in counts.grid_lanes]
    for number, (lanes, context) in enumerate(points):
        machine.need(5, f"{number} of {len(points)} points")
        prefill_steps = math.ceil(lanes / max(1, counts.prefill_tokens // context))
        most = prefill_steps + WARM + counts.steps + 5  # none may end while it is timed
        wanted = lanes * (context + most)
        if wanted > engine.num_cache_tokens:
            note = f"{wanted} tokens do not fit into a cache of {engine.num_cache_tokens}"
            yield {"sequences": lanes, "context": context, "left out": note}
            continue
        sequences = machine.prime(engine, [context] * lanes, most)
        cached = sum(one.num_tokens for one in sequences)
        gpu_ms = machine.decode_ms(engine, lanes)
        wall = []
        for _ in range(counts.steps):
            started = time.perf_counter()
            engine.step()
            wall.append(1e3 * (time.perf_counter() - started))
        machine.drain(engine, sequences)
        floor_ms = _floor_ms(machine, cached, machine.cache_bytes_read(engine))
        yield {
            "sequences": lanes,
            "context": context,
            "cached tokens": cached,
            "GPU ms": gpu_ms,
            "wall p50 ms": statistics.median(wall),
            "wall p99 ms": float(np.quantile(wall, 0.99)),
            "tokens/s": 1e3 * lanes / statistics.mean(wall),
            "floor ms": floor_ms,
            "% of bandwidth": None if floor_ms is None else 100 * floor_ms / gpu_ms,
        }


def profile(machine: Machine) -> Iterator[Row | Wrong]:
    """The kernels of a decode step, by their time; all of them in a text file."""
    if not machine.is_gpu:
        raise NotHereError("only kernels of a GPU are listed")
    from torch.profiler import ProfilerActivity  # noqa: PLC0415  # where PyTorch was built without it
    from torch.profiler import profile as profiling  # noqa: PLC0415

    engine = machine.grid_engine()
    for lanes, context in machine.counts.profiled:
        machine.need(5, f"before {lanes} x {context}")
        sequences = machine.prime(engine, [context] * lanes, machine.counts.steps + 200)
        step, back, repeats = machine.decode(engine, lanes), machine.same_state(engine), machine.counts.repeats
        with torch.inference_mode(), profiling(activities=[ProfilerActivity.CUDA]) as profiled:
            for _ in range(repeats):
                back()
                step()
            torch.cuda.synchronize(machine.device)
        machine.drain(engine, sequences)
        kernels = sorted(profiled.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
        lines = [
            (kernel.self_device_time_total / repeats, kernel.count / repeats, kernel.key.replace("|", "!"))
            for kernel in kernels
            if kernel.self_device_time_total
        ]
        if not lines:
            raise NotHereError("the profiler saw no kernel")
        listing = "\n".join(f"{us:10.1f} us {times:7.1f} x  {name}" for us, times, name in lines)
        (machine.folder / f"profile-{lanes}x{context}.txt").write_text(listing + "\n", "utf-8")
        for us, times, name in lines[:LISTED]:
            yield {"sequences": lanes, "context": context, "us a step": us, "times": times, "kernel": name[:80]}


def prompts(machine: Machine) -> Iterator[Row | Wrong]:
    """A pass over each bucket of prompt tokens, filled with short prompts."""
    engine = machine.grid_engine()
    buckets = machine.prompt_buckets(engine)
    length = buckets[0]
    for size in buckets:
        machine.need(3, f"up to buckets of {size // 2} tokens")
        sequences = machine.prime(engine, [length] * (size // length), 20)
        ms = machine.prompt_ms(engine, size)
        machine.drain(engine, sequences)
        yield {"prompt tokens": size, "prompts": size // length, "GPU ms": ms, "tokens/s": 1e3 * size / ms}


def sampling(machine: Machine) -> Iterator[Row | Wrong]:
    """Heads and draws of a step, audio and text."""
    engine = machine.grid_engine()
    for lanes in machine.counts.sampled_lanes:
        row: Row = {"sequences": lanes}
        for kind in (Kind.AUDIO, Kind.TEXT):
            sequences = machine.prime(engine, [20] * lanes, 200, kind)
            head, draw = machine.heads(engine, lanes, kind)
            row[f"{kind.value} head us"] = 1e3 * machine.device_ms(head)
            row[f"{kind.value} draw us"] = 1e3 * machine.device_ms(draw, machine.same_state(engine))
            machine.drain(engine, sequences)
        yield row


def joins(machine: Machine) -> Iterator[Row | Wrong]:
    """What newcomers cost: as many run all the time, and the oldest leaves when one comes; beside the same without."""
    counts, engine = machine.counts, machine.grid_engine()
    step_ms = 1.0
    for rate in counts.join_rates:
        machine.need(2 * counts.join_s + 3, f"before {rate} joins/s")
        ages = np.linspace(0, min(MOST_AGE, 1e3 * counts.join_lanes / rate / step_ms), counts.join_lanes)
        room = 2 * MOST_AGE  # more than anyone draws
        running = deque(machine.prime(engine, [JOIN_PROMPT + int(age) for age in ages[::-1]], room))
        started = time.perf_counter()
        for _ in range(counts.steps):
            engine.step()
        step_ms = 1e3 * (time.perf_counter() - started) / counts.steps
        due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, int(2 * rate * counts.join_s) + 10))
        joined = tokens = 0
        wall, started = [], time.perf_counter()
        while (now := time.perf_counter()) - started < counts.join_s:
            while started + due[joined] <= now:
                engine.remove(running.popleft())
                running.append(sequence(machine.config, 10_000 + joined, JOIN_PROMPT, room))
                engine.add(running[-1])
                joined += 1
            engine.step()
            tokens += sum(engine.num_generated.values())
            wall.append(1e3 * (time.perf_counter() - now))
        seconds = time.perf_counter() - started
        machine.drain(engine, list(running))
        alone = 1e3 * counts.join_lanes / step_ms
        yield {
            "joins/s": rate,
            "beside": counts.join_lanes,
            "joined": joined,
            "tokens/s": tokens / seconds,
            "without joins": alone,
            "% lost": 100 * (1 - tokens / seconds / alone),
            "wall p50 ms": statistics.median(wall),
            "wall p99 ms": float(np.quantile(wall, 0.99)),
        }


def word_times(machine: Machine) -> Iterator[Row | Wrong]:
    """What it costs to note where text heads look: the steps of sequences that are watched and of such that are not."""
    counts, engine = machine.counts, machine.grid_engine()
    for lanes, context in counts.watched:
        machine.need(3, f"before {lanes} x {context}")
        watched = (context // 4, context // 4 + min(WATCHED, context // 2))
        gpu_ms: dict[bool, list[float]] = {False: [], True: []}
        wall_ms: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(counts.rounds):
            for watch in (False, True):
                room = context + counts.steps + 200
                sequences = machine.prime(engine, [context] * lanes, room, watched=watched if watch else None)
                gpu_ms[watch].append(machine.decode_ms(engine, lanes, watch=watch))
                for _ in range(counts.steps):
                    started = time.perf_counter()
                    engine.step()
                    wall_ms[watch].append(1e3 * (time.perf_counter() - started))
                machine.drain(engine, sequences)
        without, with_them = (statistics.median(gpu_ms[watch]) for watch in (False, True))
        more = 100 * (with_them / without - 1)
        yield {
            "sequences": lanes,
            "context": context,
            "text tokens": watched[1] - watched[0],
            "GPU ms": without,
            "with word times": with_them,
            "% more": more,
            "wall p50 ms": statistics.median(wall_ms[False]),
            "wall with word times": statistics.median(wall_ms[True]),
        }
        if machine.is_gpu and more > MOST_MORE:
            yield Wrong(f"{lanes} x {context}: word times take {more:.1f} % of a step; at most {MOST_MORE} % is wanted")


def _floor_ms(machine: Machine, cached_tokens: int, bytes_per_token: int) -> float | None:
    """How long reading weights and cache once takes at the bandwidth that this run measured; None before it has."""
    if machine.bandwidth is None:
        return None
    wanted = bytes_read(machine.config, dtype_of(machine.precision), cached_tokens, bytes_per_token)
    return 1e3 * wanted / machine.bandwidth
