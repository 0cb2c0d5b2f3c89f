"""Decode steps alone: official sizes, random weights, no server. Needs torch, NumPy and safetensors only.

Each point runs a batch of sequences at one length of context and times whole steps, sampling included. Two limits stand
beside it, from what the same run measured: how long reading weights and cache once would take at the bandwidth of
memory, and how long the arithmetic would take at the speed of a large matrix product.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable

import torch

from bench import report
from bench.model import (
    CHECKED_PROMPTS,
    CHECKED_TOKENS,
    DTYPES,
    OFFICIAL,
    bytes_read,
    logit_error,
    logits_too_far,
    operations,
    random_weights,
    sequence,
)
from bench.plots import draw_beside
from chattts_serving.engine.cpu.runner import CpuRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.runner import TorchRunner
from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.engine.runner import Runner
from chattts_serving.errors import ConfigError

WARM_STEPS = 3
PREFILL_TOKENS = 4_096  # at once; one long prompt at a time would make the first sequences much longer than the last
PRODUCT_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}  # rows; which is fastest depends on the machine
COLUMNS = ("sequences", "context", "ms/step", "tokens/s", "% of bandwidth limit", "% of limit")


def default_points() -> tuple[list[int], list[int]]:
    """Batches and contexts to measure: fewer on a CPU, which takes minutes for the prompts of the larger ones."""
    if torch.cuda.is_available():
        return [2**power for power in range(9)], [300, 1500]
    return [1, 4, 16, 64], [300]


def check_variant(settings: tuple[str, ...]) -> Variant:
    """What `settings`, as `Variant.parse` takes them, choose.

    Raises:
        ConfigError: they are wrong, or there is no GPU for them.
    """
    variant = Variant.parse(settings)
    if settings and not torch.cuda.is_available():
        raise ConfigError(f"variant is {' '.join(settings)}; it changes steps on a GPU, and there is none")
    return variant


def run(
    *,
    batches: list[int],
    contexts: list[int],
    steps: int,
    precision: Precision,
    threads: int,
    variant: tuple[str, ...] = (),
) -> None:
    """Check the numbers against float32, measure, print the table, write JSON and plot.

    Empty `batches` or `contexts` are those of `default_points`; `variant` is for `check_variant`.
    """
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[precision]
    made = _Maker(random_weights(OFFICIAL), device, precision, threads, check_variant(variant))
    differences = _logit_error(made)
    print(
        "logits differ from float32 by {largest:.2g} at most, {rms:.2g} rms; their size is {size:.2g} rms".format(
            **differences
        )
    )
    if wrong := logits_too_far(precision, differences):
        raise AssertionError(wrong)
    bandwidth, peak = _bandwidth(device), _peak_operations(device, dtype)
    print(f"memory bandwidth: {bandwidth / 1e9:.1f} GB/s; {precision.value} products: {peak / 1e12:.2f} TFLOP/s")
    default_batches, default_contexts = default_points()
    points = []
    plan = [(context, batch) for context in contexts or default_contexts for batch in batches or default_batches]
    for context, batch in _with_progress(plan):
        seconds, cache_tokens = _step_seconds(made, batch, context, steps)
        bandwidth_limit = bytes_read(OFFICIAL, dtype, cache_tokens, made.bytes_per_token) / bandwidth
        compute_limit = operations(OFFICIAL, batch, cache_tokens) / peak
        points.append(
            {
                "sequences": batch,
                "context": context,
                "ms/step": 1e3 * seconds,
                "tokens/s": batch / seconds,
                "% of bandwidth limit": 100 * bandwidth_limit / seconds,
                "% of limit": 100 * max(bandwidth_limit, compute_limit) / seconds,
                "bandwidth_limit_ms": 1e3 * bandwidth_limit,
                "compute_limit_ms": 1e3 * compute_limit,
            }
        )
    print(report.table(COLUMNS, [[point[column] for column in COLUMNS] for point in points]))
    settings = {"precision": precision.value, "threads": threads, "steps": steps, "device": str(device)}
    if variant:
        settings["variant"] = " ".join(variant)
    results = {
        "settings": settings,
        "logit_error": differences,
        "bandwidth_gb_s": bandwidth / 1e9,
        "peak_tflop_s": peak / 1e12,
        "points": points,
    }
    path = report.write("engine", results)
    print(f"raw numbers: {path}")
    draw_beside([path])


def _with_progress(plan: list[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    try:
        from tqdm import tqdm  # noqa: PLC0415  # may be missing
    except ImportError:
        print("no progress bar: tqdm is not installed", flush=True)
        return plan
    bar: Iterable[tuple[int, int]] = tqdm(plan, desc="engine", unit="point")
    return bar


class _Maker:
    """Makes runners of one model, as the server would."""

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        device: torch.device,
        precision: Precision,
        threads: int,
        variant: Variant | None = None,
    ) -> None:
        self.reference = GPT(OFFICIAL, weights, device)  # in float32
        self._weights, self._device, self._precision, self._threads = weights, device, precision, threads
        self._variant = variant or Variant()
        self._model = None if device.type == "cpu" else GPT(OFFICIAL, weights, device, precision)

    @property
    def bytes_per_token(self) -> int:
        """Of the cache."""
        if self._model is None:
            return CpuRunner.bytes_per_token(OFFICIAL, self._precision)
        return TorchRunner.bytes_per_token(self._model)

    def engine(self, max_sequences: int, cache_tokens: int) -> Engine:
        """An engine that is warm, with a cache of at least `cache_tokens` tokens."""
        cache_tokens = max(cache_tokens, OFFICIAL.max_position_embeddings) + 1
        runner = self._runner(max_sequences, cache_tokens * self.bytes_per_token / 1e9)
        runner.warm_up()
        return Engine(
            runner,
            max_sequences=max_sequences,
            max_prefill_tokens=PREFILL_TOKENS,
            join_every=self._variant.join_every,
        )

    def _runner(self, max_sequences: int, kv_cache_gb: float) -> Runner:
        if self._model is None:
            return CpuRunner(
                OFFICIAL,
                lambda name: self._weights[name].numpy(),
                precision=self._precision,
                kv_cache_gb=kv_cache_gb,
                num_threads=self._threads,
            )
        return TorchRunner(
            self._model,
            kv_cache_gb=kv_cache_gb,
            max_sequences=max_sequences,
            max_prefill_tokens=PREFILL_TOKENS,
            variant=self._variant,
        )


def _logit_error(made: _Maker) -> dict[str, float]:
    engine = made.engine(len(CHECKED_PROMPTS), len(CHECKED_PROMPTS) * (max(CHECKED_PROMPTS) + CHECKED_TOKENS))
    return logit_error(engine, made.reference)


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that summing a large tensor reads, the best of a few."""
    data = torch.ones(2**27 if device.type == "cpu" else 2**29, device=device)
    best = 0.0
    for _ in range(5):
        _synchronize(device)
        started = time.perf_counter()
        data.sum()
        _synchronize(device)
        best = max(best, data.numel() * 4 / (time.perf_counter() - started))
    return best


def _peak_operations(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of large square matrix products, the best of a few."""
    best = 0.0
    for size in PRODUCT_SIZES[device.type]:
        if dtype is torch.int8:
            a = torch.randint(-127, 128, (size, size), dtype=dtype, device=device)
            product: Callable[..., torch.Tensor] = torch._int_mm
        else:
            a = torch.randn(size, size, device=device).to(dtype)
            product = torch.matmul
        for _ in range(5):
            _synchronize(device)
            started = time.perf_counter()
            product(a, a)
            _synchronize(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _step_seconds(made: _Maker, batch: int, context: int, steps: int) -> tuple[float, int]:
    """Median time of one step of `batch` sequences whose prompts have `context` tokens; tokens in their caches."""
    prefill_steps = math.ceil(batch / max(1, PREFILL_TOKENS // context))
    most = prefill_steps + WARM_STEPS + steps + 2  # more than any sequence comes to: none may end while it is timed
    engine = made.engine(batch, batch * (context + most))
    sequences = [sequence(OFFICIAL, number, context, most) for number in range(batch)]
    for one in sequences:
        engine.add(one)
    while engine.num_waiting:
        engine.step()
    for _ in range(WARM_STEPS):
        engine.step()
    cache_tokens = sum(one.num_tokens for one in sequences) + batch * steps // 2  # half way
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        engine.step()  # waits for the tokens of a step, this one or the one before
        times.append(time.perf_counter() - started)
    if engine.num_running != batch:
        raise AssertionError(f"{engine.num_running} sequences run, not {batch}")
    return statistics.median(times), cache_tokens


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
