"""A step's operations as GPU kernels: sizes, grids and block shapes for `triton_kernels`."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

from chattts_serving.engine.gpu import triton_kernels
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.torch_ops import Buffers

CACHE_BLOCK = 32  # tokens of the cache that a program takes at once
CACHE_WARPS = 2  # with blocks of 32, registers leave room for eight programs on a multiprocessor (compiled for sm_90)
PROMPT_BLOCK = 64  # prompt tokens that a program takes at once
SILU_BLOCK = 1024
MAX_CANDIDATES = 1024  # text tokens that top-k may keep; requests ask for 626 at most, the rest is for equal logits
TEXT_WARPS = 16  # of the program that holds a lane's 21,178 text logits
MAX_SPLITS = 16
PROGRAMS_WANTED = 1024  # about eight for each multiprocessor of an H100: enough loads under way


def num_splits(num_lanes: int, num_heads: int) -> int:
    """Parts that a lane's cache is split into, so that few lanes keep the whole GPU busy; a power of two."""
    splits = 1
    while splits < MAX_SPLITS and 2 * splits * num_lanes * num_heads <= PROGRAMS_WANTED:
        splits *= 2
    return splits


class TritonOps:
    """`StepOps` as GPU kernels."""

    def __init__(self, model: GPT, buffers: Buffers) -> None:
        """The operations of `model` on `buffers`."""
        config = model.config
        self._model, self._buffers, self._config = model, buffers, config
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

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """As `LayerOps`."""
        normed = torch.empty_like(x)
        triton_kernels.rms_norm[(len(x),)](x, weight, normed, eps, HIDDEN=x.shape[1], BLOCK=self._hidden_block)
        return normed

    def add_rms_norm(
        self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `LayerOps`."""
        total, normed = torch.empty_like(x), torch.empty_like(x)
        triton_kernels.add_rms_norm[(len(x),)](
            x, delta, weight, total, normed, eps, HIDDEN=x.shape[1], BLOCK=self._hidden_block
        )
        return total, normed

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        size = gate_up.shape[1] // 2
        out = gate_up.new_empty(len(gate_up), size)
        grid = (len(gate_up), triton.cdiv(size, SILU_BLOCK))
        triton_kernels.silu_mul[grid](gate_up, out, INTERMEDIATE=size, BLOCK=SILU_BLOCK)
        return out

    def embed_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        out = self._new_hidden(len(prompt))
        triton_kernels.embed_prompt[(len(prompt),)](
            prompt, self._buffers.speakers, *self._tables, out, COLUMNS=prompt.shape[1], **self._sizes
        )
        return out

    def attend_prompt(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        model, num_tokens, columns = self._model, len(qkv), prompt.shape[1]
        keys, values = self._buffers.keys[layer], self._buffers.values[layer]
        queries, out = self._new_hidden(num_tokens), self._new_hidden(num_tokens)
        triton_kernels.cache_prompt[(num_tokens, self._config.num_heads)](
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
        triton_kernels.attend_prompt[(triton.cdiv(num_tokens, PROMPT_BLOCK), self._config.num_heads)](
            queries,
            prompt,
            keys,
            values,
            out,
            num_tokens,
            self._scale,
            COLUMNS=columns,
            **self._heads,
            BLOCK_Q=PROMPT_BLOCK,
            BLOCK_K=PROMPT_BLOCK,
        )
        return out

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
        return out

    def attend_lanes(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        model, buffers, num_lanes = self._model, self._buffers, len(qkv)
        num_heads, head_dim = self._config.num_heads, self._config.head_dim
        splits = num_splits(num_lanes, num_heads)
        out = self._new_hidden(num_lanes)
        partial = torch.empty(
            (num_lanes, num_heads, splits, head_dim + 2) if splits > 1 else (1,),
            dtype=torch.float32,
            device=qkv.device,
        )
        sizes = {"WIDTH": self._width, **self._heads, "BLOCK": CACHE_BLOCK, "SPLITS": splits}
        triton_kernels.attend_lanes[(num_lanes, num_heads, splits)](
            qkv,
            buffers.state,
            buffers.rows,
            buffers.keys[layer],
            buffers.values[layer],
            model.rope_cos,
            model.rope_sin,
            out,
            partial,
            self._scale,
            **sizes,
            num_warps=CACHE_WARPS,
        )
        if splits > 1:
            triton_kernels.merge_parts[(num_lanes, num_heads)](
                partial, buffers.state, buffers.rows, out, **sizes, num_warps=1
            )
        return out

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
        triton_kernels.sample_codes[(num_lanes, num_codebooks)](
            logits,
            self._buffers.state,
            self._buffers.rows,
            self._buffers.drawn,
            WIDTH=self._width,
            CODEBOOKS=num_codebooks,
            VOCABULARY=vocabulary,
            BLOCK=triton.next_power_of_2(vocabulary),
        )

    def sample_text(self, logits: torch.Tensor) -> None:
        """As `StepOps`."""
        num_lanes, vocabulary = logits.shape
        block = triton.next_power_of_2(vocabulary)
        num_candidates = min(block, MAX_CANDIDATES)
        triton_kernels.sample_text[(num_lanes,)](
            logits,
            self._buffers.state,
            self._buffers.rows,
            self._buffers.drawn,
            torch.empty(num_lanes, 2, num_candidates, dtype=torch.int32, device=logits.device),
            self._config.ebreak_id,
            WIDTH=self._width,
            CODEBOOKS=self._config.num_codebooks,
            VOCABULARY=vocabulary,
            BLOCK=block,
            CANDIDATES=num_candidates,
            num_warps=TEXT_WARPS,
        )

    def _new_hidden(self, num_tokens: int) -> torch.Tensor:
        return torch.empty(num_tokens, self._config.hidden_size, dtype=self._model.dtype, device=self._model.device)
