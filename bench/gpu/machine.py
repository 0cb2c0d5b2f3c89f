"""What phases share: the device, the models on it, engines that are warm, and how long the device takes for something.

This is the one place of the benchmark that knows the inside of `TorchRunner`.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from bench.gpu.counts import Counts
from bench.gpu.phases import OutOfTimeError
from bench.model import random_weights, sequence
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import GPTConfig, Precision, TextHead
from chattts_serving.engine.gpu.gpt import DTYPES, GPT
from chattts_serving.engine.gpu.runner import TorchRunner
from chattts_serving.engine.gpu.torch_ops import TorchOps
from chattts_serving.engine.sequence import Kind, Sequence

WARM = 3  # runs before those that are timed
MEMORY_SHARE = 0.6  # of the free memory, for the cache of one engine
QUEUE_CYCLES = 20_000_000  # of a sleeping GPU: 10 ms
MOST_HEADS = 4  # as `export.text_heads`, whose packages may not be here
CROWD_PREFILL = 512  # prompt tokens of a step of the engines for checks, as in production


class Machine:
    """One device, and what has been made on it.

    Attributes:
        device: the GPU, or the CPU in a dry run without one.
        config: sizes of the GPT, and text heads, of whom nobody knows where they look.
        counts: how much to measure.
        folder: for further files.
        until: when all must be done, s (monotonic).
        precision: what the device serves in.
        bandwidth: that reading memory reached, bytes/s; None before it was measured.
    """

    def __init__(self, device: torch.device, config: GPTConfig, counts: Counts, folder: Path, until: float) -> None:
        """Make nothing yet."""
        self.device, self.counts, self.folder, self.until = device, counts, folder, until
        self.config = replace(config, text_heads=_text_heads(config))
        self.is_gpu = device.type == "cuda"
        self.precision = Precision.BF16 if self.is_gpu else Precision.FP32
        self.bandwidth: float | None = None
        self._models: dict[Precision, GPT] = {}
        self._engines: dict[tuple[str, Precision], Engine] = {}

    @cached_property
    def computes(self) -> bool:
        """Whether the device computes: a stand-in for CUDA, which dry runs may have, only takes what it is told."""
        return torch.ones(4, device=self.device).sum().item() == 4

    @property
    def precisions(self) -> list[Precision]:
        """What the device computes in, the one that it serves in first."""
        return [Precision.BF16, Precision.FP32, Precision.FP16] if self.is_gpu else [Precision.FP32]

    def need(self, seconds: float, what: str) -> None:
        """Stop a phase that cannot go on for `seconds`.

        Raises:
            OutOfTimeError: fewer are left; `what` says how far the phase came.
        """
        if self.until - time.monotonic() < seconds:
            raise OutOfTimeError(what)

    def model(self, precision: Precision) -> GPT:
        """The GPT in `precision`, the same weights in each; it stays."""
        if precision not in self._models:
            self._models[precision] = GPT(self.config, self._weights, self.device, precision)
        return self._models[precision]

    def runner(self, precision: Precision, lanes: int, cache_tokens: int, prefill_tokens: int) -> TorchRunner:
        """A runner of `lanes` sequences, not warm; its cache holds `cache_tokens`, or what fits into the memory.

        One sequence of full length always fits.
        """
        model = self.model(precision)
        size = TorchRunner.bytes_per_token(model)
        if self.is_gpu:
            free = torch.cuda.mem_get_info(self.device)[0]
            cache_tokens = min(cache_tokens, int(MEMORY_SHARE * free / size))
        gigabytes = (max(cache_tokens, self.config.max_position_embeddings) + 1.5) * size / 1e9
        return TorchRunner(model, kv_cache_gb=gigabytes, max_sequences=lanes, max_prefill_tokens=prefill_tokens)

    def crowd_engine(self, precision: Precision) -> Engine:
        """A warm engine for as many sequences as the checks run at once; it stays until `release`."""
        counts = self.counts
        lanes = max(counts.crowd, counts.draws)
        return self._engine("crowd", precision, lanes, lanes * (300 + counts.needle_tokens), CROWD_PREFILL)

    def grid_engine(self) -> Engine:
        """A warm engine for the grid's largest point, in the precision that is served; it stays until `release`."""
        counts = self.counts
        lanes = max(*counts.grid_lanes, *counts.sampled_lanes, counts.join_lanes)
        tokens = lanes * (max(counts.grid_contexts) + counts.steps + 200)
        return self._engine("grid", self.precision, lanes, tokens, counts.prefill_tokens)

    def pytorch_engine(self, precision: Precision, lanes: int, cache_tokens: int) -> Engine:
        """An engine whose steps are PyTorch's operations, one by one: what the kernels are compared with."""
        runner = self.runner(precision, lanes, cache_tokens, CROWD_PREFILL)
        runner._ops = TorchOps(runner._model, runner._buffers)
        return Engine(runner, max_sequences=lanes, max_prefill_tokens=CROWD_PREFILL)

    def release(self) -> None:
        """Forget every engine, and the models in precisions that are not served."""
        self._engines.clear()
        self._models = {one: model for one, model in self._models.items() if one is self.precision}
        self.__dict__.pop("_weights", None)
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def answers(self) -> bool:
        """Whether the device can still be used: an illegal access ends that for the whole process."""
        try:
            self.release()
            if self.is_gpu:
                torch.cuda.synchronize(self.device)
                torch.zeros(1, device=self.device).item()
        except RuntimeError:
            return False
        return True

    def prime(
        self,
        engine: Engine,
        prompts: list[int],
        num_new_tokens: int,
        kind: Kind = Kind.AUDIO,
        watched: tuple[int, int] | None = None,
    ) -> list[Sequence]:
        """Sequences whose prompts have so many tokens, all running, past the first steps."""
        sequences = [
            sequence(self.config, number, prompt, num_new_tokens, kind) for number, prompt in enumerate(prompts)
        ]
        for one in sequences:
            one.watched = watched
            engine.add(one)
        while engine.num_waiting:
            engine.step()
        for _ in range(WARM):
            engine.step()
        return sequences

    def drain(self, engine: Engine, sequences: list[Sequence]) -> None:
        """Take `sequences` out of `engine`, which has no others."""
        for one in sequences:
            engine.remove(one)
        while not engine.is_idle:
            engine.step()

    def device_ms(self, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        """Median time that the device takes for `run`, ms; `before` is done before each, and not timed."""
        repeats = self.counts.repeats
        with torch.inference_mode():
            for _ in range(WARM):
                before()
                run()
            return self._event_ms(run, before, repeats) if self.is_gpu else _wall_ms(run, before, repeats)

    def decode_ms(self, engine: Engine, lanes: int, *, watch: bool = False) -> float:
        """Time of the decode step of the `lanes` sequences that run, ms; the same step over and over.

        With `watch` it is the step that notes where text heads look.
        """
        return self.device_ms(self.decode(engine, lanes, watch=watch), self.same_state(engine))

    def decode(self, engine: Engine, lanes: int, *, watch: bool = False) -> Callable[[], object]:
        """That step once, for a profiler."""
        runner = _runner(engine)
        size = next(bucket for bucket in runner._lane_buckets if bucket >= lanes)
        return lambda: runner._run(runner._decode, size, watch)

    def prompt_ms(self, engine: Engine, size: int) -> float:
        """Time of a pass over a bucket of `size` prompt tokens, those that were computed last, ms."""
        runner = _runner(engine)
        return self.device_ms(lambda: runner._run(runner._compute_prompt, size))

    def prompt_buckets(self, engine: Engine) -> list[int]:
        """Sizes that prompts are filled up to."""
        return list(_runner(engine)._prompt_buckets)

    def cache_bytes_read(self, engine: Engine) -> int:
        """Bytes of keys and values of one token."""
        model = _runner(engine)._model
        return TorchRunner.bytes_per_token(model) - self.config.hidden_size * model.dtype.itemsize

    def same_state(self, engine: Engine) -> Callable[[], object]:
        """What puts the lanes of `engine` back to where they are now."""
        state = _runner(engine)._buffers.state
        saved = state.clone()
        return lambda: state.copy_(saved)

    def heads(self, engine: Engine, lanes: int, kind: Kind) -> tuple[Callable[[], object], Callable[[], object]]:
        """What computes the logits of `lanes` sequences, and what draws from them."""
        runner = _runner(engine)
        model, ops = runner._model, runner._ops
        hidden = torch.randn(lanes, self.config.hidden_size, device=self.device).to(model.dtype)
        head, draw = (
            (model.text_logits, ops.sample_text) if kind is Kind.TEXT else (model.code_logits, ops.sample_codes)
        )
        with torch.inference_mode():
            logits = head(hidden, ops)
        return lambda: head(hidden, ops), lambda: draw(logits)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        return random_weights(self.config, self.device)

    def _engine(self, name: str, precision: Precision, lanes: int, tokens: int, prefill_tokens: int) -> Engine:
        if (name, precision) not in self._engines:
            runner = self.runner(precision, lanes, tokens, prefill_tokens)
            runner.warm_up()
            engine = Engine(runner, max_sequences=lanes, max_prefill_tokens=prefill_tokens)
            self._engines[name, precision] = engine
        return self._engines[name, precision]

    def _event_ms(self, run: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
        pairs = [(_event(), _event()) for _ in range(repeats)]
        # While it sleeps, all that follows is queued: the host's time to launch is no part of what is timed.
        torch.cuda._sleep(QUEUE_CYCLES)  # type: ignore[no-untyped-call]
        for start, end in pairs:
            before()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize(self.device)
        return statistics.median(float(start.elapsed_time(end)) for start, end in pairs)


def _text_heads(config: GPTConfig) -> tuple[TextHead, ...]:
    """As many as an export finds at most, in as many layers as there are."""
    layers = (number * config.num_layers // MOST_HEADS for number in range(MOST_HEADS))
    return tuple(TextHead(layer, number % config.num_heads, 0) for number, layer in enumerate(layers))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _runner(engine: Engine) -> TorchRunner:
    runner = engine._runner
    if not isinstance(runner, TorchRunner):
        raise TypeError(f"the engine's runner is {type(runner).__name__}, not TorchRunner")
    return runner


def _wall_ms(run: Callable[[], object], before: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        before()
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def dtype_of(precision: Precision) -> torch.dtype:
    """Of weights and cache."""
    return DTYPES.get(precision, torch.float32)
