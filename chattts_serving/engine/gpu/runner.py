"""The runner in PyTorch: prompts in one packed pass, then a decode step that takes nothing from the host.

On a GPU both are CUDA graphs, captured for a few sizes at start, and a step is launched before the last one is read.
On a CPU the very same steps run operation by operation.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from chattts_serving.engine.batch import Batch, IntArray
from chattts_serving.engine.gpu import lanes
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.torch_ops import Buffers, StepOps, TorchOps
from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.runner import cache_capacity, share_of_memory_gb
from chattts_serving.engine.sequence import Sequence

logger = logging.getLogger(__name__)

MIN_PROMPT_BUCKET = 64  # tokens; prompts below it cost no less


def lane_buckets(max_sequences: int) -> list[int]:
    """Sizes of the batch that a step is made for, ascending: a smaller batch is filled up with unused lanes."""
    buckets = [1, 2, 4, 8]
    while buckets[-1] < max_sequences:
        step = 8 if buckets[-1] < 32 else 16 if buckets[-1] < 64 else 32 if buckets[-1] < 128 else 64
        buckets.append(buckets[-1] + step)
    return [bucket for bucket in buckets if bucket < max_sequences] + [max_sequences]


def prompt_buckets(max_prefill_tokens: int) -> list[int]:
    """Numbers of prompt tokens that a pass is made for, ascending; longer ones are computed as they are."""
    buckets = [MIN_PROMPT_BUCKET]
    while buckets[-1] < max_prefill_tokens:
        buckets.append(2 * buckets[-1])
    return buckets


class Graph(Protocol):
    """A step that was captured."""

    def replay(self) -> None:
        """Compute it again, on what its tensors now hold."""


@dataclass(frozen=True)
class _Pending:
    """A step on its way.

    Attributes:
        drawn: what each lane draws, int32 [lanes, num_codebooks] on the host; there once `done` has happened.
        looked: where each lane looks, int32 [lanes, heads], likewise; None where it is not noted.
        done: what to wait for.
    """

    drawn: torch.Tensor
    looked: torch.Tensor | None
    done: torch.cuda.Event | None

    def tokens(self) -> IntArray:
        """As `PendingStep`."""
        if self.done is not None:
            self.done.synchronize()
        drawn: IntArray = self.drawn.numpy()
        return drawn

    def looks(self) -> IntArray | None:
        """As `PendingStep`."""
        return None if self.looked is None else self.looked.numpy()


class TorchRunner:
    """The model, its cache, and the table of lanes."""

    def __init__(
        self,
        model: GPT,
        *,
        kv_cache_gb: float | None,
        max_sequences: int,
        max_prefill_tokens: int,
        steps_ahead: int | None = None,
        use_graphs: bool | None = None,
        variant: Variant | None = None,
    ) -> None:
        """Allocate everything that steps need; it never grows.

        On a GPU it belongs to the thread that makes it, whose current stream it sets.

        Args:
            model: the weights.
            kv_cache_gb: memory of the key-value cache, 10**9 bytes; None is what `max_sequences` of full length take,
                or a share of the GPU's free memory where that is less.
            max_sequences: sequences of one step.
            max_prefill_tokens: prompt tokens of one step, a single longer prompt excepted.
            steps_ahead: as `Runner`; None is 1 on a GPU and 0 on a CPU.
            use_graphs: whether `warm_up` captures CUDA graphs; None is where there is a GPU.
            variant: how steps are computed on a GPU; None as by default.

        Raises:
            ConfigError: `kv_cache_gb` is no number above 0.
        """
        config = self.config = model.config
        on_gpu = model.device.type == "cuda"
        if kv_cache_gb is None:
            free_bytes = torch.cuda.mem_get_info(model.device)[0]
            most_tokens = max_sequences * config.max_position_embeddings + 1
            kv_cache_gb = share_of_memory_gb(free_bytes, most_tokens, self.bytes_per_token(model))
        self.num_cache_tokens = cache_capacity(kv_cache_gb, self.bytes_per_token(model))
        self.text_heads = config.text_heads
        self.steps_ahead = int(on_gpu) if steps_ahead is None else steps_ahead
        # Hidden states are copied beside the step that is already under way.
        self._copy_stream = _use_streams(model.device) if on_gpu else None
        self._use_graphs = on_gpu if use_graphs is None else use_graphs
        self._model, self._max_sequences = model, max_sequences
        self._lane_buckets, self._prompt_buckets = lane_buckets(max_sequences), prompt_buckets(max_prefill_tokens)
        self._buffers = self._allocate()
        unused = lanes.unused_prompt_rows(
            0, self._prompt_buckets[-1], config.num_codebooks, self.num_cache_tokens, max_sequences
        )
        self._prompt = self._to_device(unused)
        self._ops = _ops(model, self._buffers, variant)
        self._one_pass = variant is not None and variant.one_pass
        self._graphs: dict[tuple[Any, ...], tuple[Graph, torch.Tensor]] = {}  # by step and sizes
        self._graph_memory: Any = None  # PyTorch's handle of it, which has no public type
        self._last_move: torch.cuda.Event | None = None

    @staticmethod
    def bytes_per_token(model: GPT) -> int:
        """Bytes of cache that one token takes: keys and values of every layer, and one hidden state."""
        config = model.config
        return (2 * config.num_layers + 1) * config.hidden_size * model.dtype.itemsize

    @torch.inference_mode()
    def launch(self, batch: Batch) -> _Pending:
        """As `Runner`."""
        num_lanes = next(bucket for bucket in self._lane_buckets if bucket >= len(batch))
        prompt, watch = self._send(batch, num_lanes), bool(self.text_heads and batch.num_watched)
        hidden = self._compute(num_lanes, prompt, watch=watch)
        if batch.num_text:
            self._ops.sample_text(self._model.text_logits(hidden[: batch.num_text], self._ops))
        return self._tell(len(batch), watch=watch)

    def _tell(self, num_lanes: int, *, watch: bool) -> _Pending:
        """Send what the lanes have drawn, with `watch` also where they look: one copy of what lies side by side."""
        buffers, width = self._buffers, self.config.num_codebooks
        first_look = buffers.drawn.numel()
        told = self._told[: first_look + num_lanes * len(self.text_heads) if watch else num_lanes * width]
        # Into pinned memory, where there is a GPU.
        copy = told.clone() if self._copy_stream is None else told.to("cpu", non_blocking=True)
        looked = copy[first_look:].view(num_lanes, len(self.text_heads)) if watch else None
        done = None if self._copy_stream is None else self._record_event()
        return _Pending(copy[: num_lanes * width].view(num_lanes, width), looked, done)

    @torch.inference_mode()
    def generated_hidden(self, sequence: Sequence, first: int, last: int) -> npt.NDArray[np.float32]:
        """As `Runner`."""
        start = sequence.cache_start + sequence.num_prompt_tokens - 1
        states = self._buffers.hidden[start + first : start + last]
        if self._copy_stream is None:
            return states.numpy().copy()
        # The step that drew the last token was waited for; only a move of the slot may still be under way.
        if self._last_move is not None:
            self._copy_stream.wait_event(self._last_move)
        with torch.cuda.stream(self._copy_stream):
            on_host = states.cpu()
        return on_host.float().numpy()

    @torch.inference_mode()
    def move_cache(self, source: Slot, target: Slot, num_tokens: int) -> None:
        """As `Runner`."""
        buffers = self._buffers
        for pool in (buffers.keys, buffers.values, buffers.hidden.unsqueeze(0)):
            pool[:, target.start : target.start + num_tokens] = pool[:, source.start : source.start + num_tokens]
        if self._copy_stream is not None:
            self._last_move = self._record_event()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture a graph of every step and prompt size; on a CPU there is nothing to do."""
        if not self._use_graphs:
            return
        started = time.monotonic()
        # The largest first: the others fit into its memory.
        lane_sizes, prompt_sizes = self._lane_buckets[::-1], self._prompt_buckets[::-1]
        watches = (False, True) if self.text_heads else (False,)
        steps: list[tuple[Any, ...]] = [(self._decode, *sizes) for sizes in product(lane_sizes, watches)]
        steps += [(self._compute_prompt, size) for size in prompt_sizes]
        if self._one_pass:
            steps += [(self._decode_and_prompt, *sizes) for sizes in product(lane_sizes, prompt_sizes, watches)]
        for step in steps:
            self._graphs[step] = self._capture(*step)
        self._warm_up_text()
        logger.info("%d CUDA graphs captured in %.1f s", len(self._graphs), time.monotonic() - started)

    def _capture(self, step: Callable[..., torch.Tensor], *sizes: int) -> tuple[Graph, torch.Tensor]:
        """A graph of `step(*sizes)`, and what the step returns; all graphs share their memory."""
        step(*sizes)  # compiles kernels and lets cuBLAS choose, which must not happen in a capture
        torch.cuda.synchronize(self._model.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graph_memory):
            hidden = step(*sizes)
        self._graph_memory = graph.pool()
        return graph, hidden

    def _warm_up_text(self) -> None:
        """Compile what draws text, which is no part of a graph; the lanes are unused ones."""
        hidden = torch.zeros(1, self.config.hidden_size, dtype=self._model.dtype, device=self._model.device)
        self._ops.sample_text(self._model.text_logits(hidden, self._ops))

    def _run(self, step: Callable[..., torch.Tensor], *sizes: int) -> torch.Tensor:
        """Replay the graph of `step(*sizes)`, or compute it where there is none; its hidden states."""
        key = (step, *sizes)
        if key not in self._graphs:
            return step(*sizes)
        graph, hidden = self._graphs[key]
        graph.replay()
        return hidden

    def _decode(self, num_lanes: int, watch: bool) -> torch.Tensor:
        """Compute the newest token of each lane and draw the next audio codes; hidden states [num_lanes, hidden]."""
        attend = partial(self._ops.attend_lanes, watch=watch)
        hidden = self._model.forward(self._ops.embed_lanes(num_lanes), attend, self._ops)
        self._ops.store_lanes(hidden)
        self._ops.sample_codes(self._model.code_logits(hidden, self._ops))
        return hidden

    def _decode_and_prompt(self, num_lanes: int, num_tokens: int, watch: bool) -> torch.Tensor:
        """As `_decode` and `_compute_prompt` of the two sizes, with each weight read once."""
        ops, prompt = self._ops, self._prompt[:num_tokens]
        attend = partial(ops.attend_both, prompt=prompt, watch=watch)
        embeddings = torch.cat([ops.embed_lanes(num_lanes), ops.embed_prompt(prompt)])
        hidden = self._model.forward(embeddings, attend, ops)
        ops.store_prompt(hidden[num_lanes:], prompt)
        hidden = hidden[:num_lanes]
        ops.store_lanes(hidden)
        ops.sample_codes(self._model.code_logits(hidden, ops))
        return hidden

    def _compute_prompt(self, num_tokens: int) -> torch.Tensor:
        """Fill the cache with the first tokens of `_prompt`; hidden states [num_tokens, hidden]."""
        return self._compute_tokens(self._prompt[:num_tokens])

    def _compute_tokens(self, prompt: torch.Tensor) -> torch.Tensor:
        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            return self._ops.attend_prompt(layer, qkv, prompt)

        hidden = self._model.forward(self._ops.embed_prompt(prompt), attend, self._ops)
        self._ops.store_prompt(hidden, prompt)
        return hidden

    def _send(self, batch: Batch, num_lanes: int) -> IntArray | None:
        """Send what `batch` changes; the prompts of those that join, up to their last token, or None."""
        config, buffers = self.config, self._buffers
        if batch.is_changed:
            rows_of_lanes = np.full(num_lanes, self._max_sequences, np.int32)
            rows_of_lanes[: len(batch)] = batch.rows
            buffers.rows[:num_lanes].copy_(self._to_device(rows_of_lanes))
        if batch.moved:
            changes = [(row, sequence.cache_start) for sequence, row in batch.moved.items()]
            moved = self._to_device(np.array(changes, np.int32)).long()
            buffers.state[moved[:, 0], lanes.START] = moved[:, 1].int()
        if not batch.joined:
            return None
        rows = self._to_device(np.array([*batch.joined.values()], np.int32)).long()
        filled = [lanes.lane_row(one, config.num_codebooks, config.spk_emb_id) for one in batch.joined]
        buffers.state.index_copy_(0, rows, self._to_device(np.stack(filled)))
        nobody = np.zeros(config.hidden_size, np.float32)
        speakers = [nobody if one.speaker is None else one.speaker for one in batch.joined]
        buffers.speakers.index_copy_(0, rows, self._to_device(np.stack(speakers)).to(buffers.speakers.dtype))
        prompt = lanes.prompt_rows(batch.joined.items(), config.num_codebooks, config.spk_emb_id)
        return prompt if len(prompt) else None

    def _compute(self, num_lanes: int, prompt: IntArray | None, *, watch: bool) -> torch.Tensor:
        """Compute prompt tokens and the lanes' tokens; hidden states of these, [num_lanes, hidden]."""
        if prompt is not None and self._one_pass and len(prompt) <= self._prompt_buckets[-1]:
            return self._run(self._decode_and_prompt, num_lanes, self._fill(prompt), watch)
        if prompt is not None:
            self._prefill(prompt)
        return self._run(self._decode, num_lanes, watch)

    def _prefill(self, prompt: IntArray) -> None:
        """Compute prompt tokens, filled up to a size that a graph or at least its kernels were made for."""
        largest = self._prompt_buckets[-1]
        if not self._graphs:
            self._compute_tokens(self._to_device(prompt))
        elif len(prompt) > largest:
            self._compute_tokens(self._to_device(self._padded(prompt, -(-len(prompt) // largest) * largest)))
        else:
            self._run(self._compute_prompt, self._fill(prompt))

    def _fill(self, prompt: IntArray) -> int:
        """Write `prompt` to `_prompt`, filled up to a size that a graph was made for; that size."""
        size = next(bucket for bucket in self._prompt_buckets if bucket >= len(prompt))
        self._prompt[:size].copy_(self._to_device(self._padded(prompt, size)))
        return size

    def _padded(self, prompt: IntArray, size: int) -> IntArray:
        padding = lanes.unused_prompt_rows(
            len(prompt), size, self.config.num_codebooks, self.num_cache_tokens, self._max_sequences
        )
        return np.concatenate([prompt, padding])

    def _allocate(self) -> Buffers:
        config, dtype, device = self.config, self._model.dtype, self._model.device
        cache = (config.num_layers, self.num_cache_tokens + 1, config.num_heads, config.head_dim)
        state = np.tile(lanes.unused_row(config.num_codebooks, self.num_cache_tokens), (self._max_sequences + 1, 1))
        width = config.num_codebooks + len(self.text_heads)
        self._told = torch.zeros(self._max_sequences * width, dtype=torch.int32, device=device)
        num_drawn = self._max_sequences * config.num_codebooks
        return Buffers(
            state=self._to_device(state),
            rows=torch.full((self._max_sequences,), self._max_sequences, dtype=torch.int32, device=device),
            speakers=torch.zeros(self._max_sequences + 1, config.hidden_size, dtype=dtype, device=device),
            keys=torch.zeros(cache, dtype=dtype, device=device),
            values=torch.zeros(cache, dtype=dtype, device=device),
            hidden=torch.zeros(self.num_cache_tokens + 1, config.hidden_size, dtype=dtype, device=device),
            drawn=self._told[:num_drawn].view(self._max_sequences, config.num_codebooks),
            looks=self._told[num_drawn:].view(self._max_sequences, len(self.text_heads)),
        )

    def _to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """A copy on the device; on a GPU it is under way, from pinned memory that the allocator keeps for so long."""
        tensor = torch.from_numpy(array)
        if self._model.device.type == "cuda":
            return tensor.pin_memory().to(self._model.device, non_blocking=True)
        return tensor.clone()

    def _record_event(self) -> torch.cuda.Event:
        # Waiting sleeps rather than spins: a step is ahead, so that waking up late costs nothing but frees a core.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._model.device))
        return event


def _use_streams(device: torch.device) -> torch.cuda.Stream:
    """Give this thread a stream of its own for steps; the stream for copies.

    The default stream is shared with whatever else this process has the GPU do. Steps go first where both have work.
    """
    if device.index is not None:
        torch.cuda.set_device(device)
    steps = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]
    steps.wait_stream(torch.cuda.current_stream(device))
    torch.cuda.set_stream(steps)
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _ops(model: GPT, buffers: Buffers, variant: Variant | None) -> StepOps:
    if model.device.type == "cuda":
        from chattts_serving.engine.gpu.triton_ops import TritonOps  # noqa: PLC0415  # only there is Triton installed

        return TritonOps(model, buffers, variant)
    return TorchOps(model, buffers)
