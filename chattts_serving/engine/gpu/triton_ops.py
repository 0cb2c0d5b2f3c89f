"""A step's operations as GPU kernels: sizes, grids and block shapes."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

from chattts_serving.engine.gpu import triton_attention, triton_kernels, triton_prompts, triton_sampling
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.torch_ops import Buffers
from chattts_serving.engine.gpu.triton_layer_ops import TritonLayerOps
from chattts_serving.engine.gpu.variants import Variant

CACHE_BLOCK = 32  # tokens of the cache that a program takes at once
CACHE_WARPS = 2  # with blocks of 32, registers leave room for ten programs on a multiprocessor (compiled for sm_90)
CACHE_PROGRAMS = 4096  # that attend at most, so that one that ends is followed by another; longer lists go round
PARTS = 16  # chunks that are merged at once
PROMPT_BLOCK = 64  # prompt tokens that a program takes at once, in 16 bits
PROMPT_BLOCK_FP32 = 32
TILE = 2048  # tokens of a vocabulary that a program takes at once
FEW_CANDIDATES = 64  # as most requests leave: top-k is 20 by default
MOST_CANDIDATES = 1024  # requests may ask for 626; the rest is for equal logits
CODE_WARPS, TEXT_WARPS = 4, 8


class TritonOps(TritonLayerOps):
    """`StepOps` as GPU kernels."""

    def __init__(self, model: GPT, buffers: Buffers, variant: Variant | None = None) -> None:
        """The operations of `model` on `buffers`; `variant` says how to compute them, None as by default."""
        config = model.config
        self._model, self._buffers, self._config = model, buffers, config
        self._variant = variant or Variant()
        super().__init__(self._variant)
        self._hidden_block = triton.next_power_of_2(config.hidden_size)
        self._scale = config.head_dim**-0.5
        self._heads = {"HEADS": config.num_heads, "HEAD_DIM": config.head_dim}
        self._tables = (model.embed_table["embed_text"], model.embed_table["embed_code"])
        self._sizes = {
            "HIDDEN": config.hidden_size,
            "CODEBOOKS": config.num_codebooks,
            "CODES_IN_BOOK": config.num_audio_tokens,
            "BLOCK": self._hidden_block,
        }
        self._width = buffers.state.shape[1]
        self._num_cache_tokens = len(buffers.hidden) - 1
        self._most_programs = max(1, CACHE_PROGRAMS // config.num_heads)  # of one head
        self._allocate_lists(len(buffers.rows))

    def _allocate_lists(self, max_lanes: int) -> None:
        """What `triton_attention` counts chunks with, and where it leaves what is merged later."""
        heads, head_dim = self._config.num_heads, self._config.head_dim
        most = self._most_chunks(max_lanes)

        def ints(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=self._model.device)

        self._chunks = ints(most + triton.next_power_of_2(self._most_programs), 4)
        self._firsts = ints(max_lanes)
        self._arrived = ints(max_lanes, heads)
        self._partial = torch.empty((most, heads, head_dim + 2), dtype=torch.float32, device=self._model.device)
        text_heads: dict[int, list[tuple[int, int]]] = {}  # by layer: heads, and their places among all of them
        for place, head in enumerate(self._config.text_heads):
            text_heads.setdefault(head.layer, []).append((head.head, place))
        self._text_heads = {
            layer: torch.tensor(pairs, dtype=torch.int32, device=self._model.device)
            for layer, pairs in text_heads.items()
        }

    def _most_chunks(self, num_lanes: int) -> int:
        """Chunks that a step can have, each lane being one token longer than what it has in the cache."""
        chunk = self._variant.cache_chunk
        by_length = num_lanes * -(-self._config.max_position_embeddings // chunk)
        return min(by_length, num_lanes + (self._num_cache_tokens + num_lanes) // chunk)

    def embed_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        out = self._new_hidden(len(prompt))
        triton_kernels.embed_prompt[(len(prompt),)](
            prompt, self._buffers.speakers, *self._tables, out, COLUMNS=prompt.shape[1], **self._sizes
        )
        return out

    def attend_prompt(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        out = self._new_hidden(len(qkv))
        self._attend_prompt(layer, qkv, prompt, out)
        return out

    def attend_both(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """As `StepOps`."""
        out, num_lanes = self._new_hidden(len(qkv)), len(qkv) - len(prompt)
        self._attend_prompt(layer, qkv[num_lanes:], prompt, out[num_lanes:])
        self._attend_lanes(layer, qkv[:num_lanes], out[:num_lanes], watch=watch)
        return out

    def _attend_prompt(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor, out: torch.Tensor) -> None:
        model, num_tokens, columns = self._model, len(qkv), prompt.shape[1]
        keys, values = self._buffers.keys[layer], self._buffers.values[layer]
        queries = self._new_hidden(num_tokens)
        block = PROMPT_BLOCK_FP32 if qkv.dtype == torch.float32 else PROMPT_BLOCK
        triton_prompts.cache_prompt[(num_tokens, self._config.num_heads)](
            qkv,
            prompt,
            keys,
            values,
            model.rope_cos,
            model.rope_sin,
            queries,
            COLUMNS=columns,
            **self._heads,
            num_warps=1,
        )
        triton_prompts.attend_prompt[(triton.cdiv(num_tokens, block), self._config.num_heads)](
            queries, prompt, keys, values, out, num_tokens, self._scale, COLUMNS=columns, **self._heads, BLOCK=block
        )

    def store_prompt(self, hidden: torch.Tensor, prompt: torch.Tensor) -> None:
        """As `StepOps`."""
        triton_kernels.store_prompt[(len(hidden),)](
            hidden,
            prompt,
            self._buffers.hidden,
            COLUMNS=prompt.shape[1],
            HIDDEN=self._config.hidden_size,
            BLOCK=self._hidden_block,
        )

    def embed_lanes(self, num_lanes: int) -> torch.Tensor:
        """As `StepOps`."""
        buffers, out = self._buffers, self._new_hidden(num_lanes)
        triton_kernels.embed_lanes[(num_lanes,)](
            buffers.state,
            buffers.rows,
            buffers.speakers,
            *self._tables,
            out,
            len(buffers.state) - 1,
            WIDTH=self._width,
            **self._sizes,
        )
        triton_attention.list_chunks[(1,)](
            buffers.state,
            buffers.rows,
            self._chunks,
            self._firsts,
            num_lanes,
            WIDTH=self._width,
            CHUNK=self._variant.cache_chunk,
            LANES=triton.next_power_of_2(len(buffers.rows)),
            PROGRAMS=triton.next_power_of_2(self._most_programs),
        )
        return out

    def attend_lanes(self, layer: int, qkv: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """As `StepOps`."""
        out = self._new_hidden(len(qkv))
        self._attend_lanes(layer, qkv, out, watch=watch)
        return out

    def _attend_lanes(self, layer: int, qkv: torch.Tensor, out: torch.Tensor, *, watch: bool) -> None:
        model, buffers, num_lanes = self._model, self._buffers, len(qkv)
        text_heads = self._text_heads.get(layer) if watch else None
        looks = (None,) * 4 if text_heads is None else (buffers.state, buffers.rows, text_heads, buffers.looks)
        num_watched = 0 if text_heads is None else len(text_heads)
        num_heads, in_place = self._config.num_heads, self._variant.merge_in_place
        chunk = {**self._heads, "CHUNK": self._variant.cache_chunk}
        triton_attention.attend_lanes[
            (num_heads + num_watched, min(self._most_chunks(num_lanes), self._most_programs))
        ](
            qkv,
            self._chunks,
            buffers.keys[layer],
            buffers.values[layer],
            model.rope_cos,
            model.rope_sin,
            out,
            self._partial,
            self._arrived,
            self._scale,
            *looks,
            **chunk,
            BLOCK=CACHE_BLOCK,
            STAGES=self._variant.cache_stages,
            PARTS=PARTS if in_place else 0,
            WIDTH=self._width,
            TEXT_HEADS=len(self._config.text_heads) if num_watched else 0,
            num_warps=CACHE_WARPS,
        )
        if not in_place:
            triton_attention.merge_parts[(num_heads, num_lanes)](
                self._partial, self._chunks, self._firsts, out, **chunk, PARTS=PARTS, num_warps=1
            )

    def store_lanes(self, hidden: torch.Tensor) -> None:
        """As `StepOps`."""
        buffers = self._buffers
        triton_kernels.store_lanes[(len(hidden),)](
            hidden,
            buffers.state,
            buffers.rows,
            buffers.hidden,
            WIDTH=self._width,
            HIDDEN=self._config.hidden_size,
            BLOCK=self._hidden_block,
        )

    def sample_codes(self, logits: torch.Tensor) -> None:
        """As `StepOps`."""
        num_lanes, num_codebooks, vocabulary = logits.shape
        triton_sampling.sample_codes[(num_lanes, num_codebooks)](
            logits, *self._drawing(logits), **self._drawing_sizes(vocabulary), num_warps=CODE_WARPS
        )

    def sample_text(self, logits: torch.Tensor) -> None:
        """As `StepOps`."""
        num_lanes, vocabulary = logits.shape
        triton_sampling.sample_text[(num_lanes,)](
            logits,
            *self._drawing(logits),
            self._config.ebreak_id,
            **self._drawing_sizes(vocabulary),
            num_warps=TEXT_WARPS,
        )

    def _drawing(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is drawn for, where to, and scratch."""
        buffers, most = self._buffers, self._drawing_sizes(logits.shape[-1])["MOST"]
        orders = torch.empty_like(logits, dtype=torch.int32)
        candidates = torch.empty((*logits.shape[:-1], most), dtype=torch.int64, device=logits.device)
        return buffers.state, buffers.rows, buffers.drawn, orders, candidates

    def _drawing_sizes(self, vocabulary: int) -> dict[str, int]:
        most = max(triton.next_power_of_2(vocabulary), 2 * FEW_CANDIDATES)  # Triton 3.6 compiles no equal sizes
        return {
            "WIDTH": self._width,
            "CODEBOOKS": self._config.num_codebooks,
            "VOCABULARY": vocabulary,
            "TILE": min(TILE, most),
            "FEW": FEW_CANDIDATES,
            "MOST": min(MOST_CANDIDATES, most),
        }

    def _new_hidden(self, num_tokens: int) -> torch.Tensor:
        return torch.empty(num_tokens, self._config.hidden_size, dtype=self._model.dtype, device=self._model.device)
