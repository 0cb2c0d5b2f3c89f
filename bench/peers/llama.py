"""llama.cpp by its C interface: one `llama_decode` a step, for all sequences.

Embeddings are handed in, since it looks up one token where ChatTTS adds four codes; its vocabulary are the codes of all
codebooks, so that its output is the four heads. What it leaves open is as it was quickest on an AMD EPYC with AVX-512:
a cache for each sequence (`kv_unified` off), in float16 with flash attention; for float32 weights in float32 without.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Type

from bench.peers.weights import Codes, Floats, Weights
from chattts_serving.engine.gpt_config import GPTConfig

MOST_ROWS = 512  # tokens of one call, as llama.cpp has it unless told otherwise
HEAD = {"Q4_0": Type.Q8_0}  # the output of such files is not of 4 bits


class LlamaSystem:
    """A `System`."""

    def __init__(self, weights: Weights, kind: str, threads: int, folder: Path) -> None:
        """Load the model of type `kind`, as ggml calls it, from a file in `folder`; where it is missing, write it."""
        self._weights, self._threads = weights, threads
        self._is_float32 = kind == "F32"
        path = folder / f"{kind}.gguf"
        if not path.exists():
            write_gguf(path, weights, Type[kind])
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._context: Any = None
        self._batch: Any = None
        self._length = 0

    def begin(self, codes: Codes, room: int) -> None:
        """As `System`."""
        sequences, tokens = codes.shape[:2]
        if self._context:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = sequences * (tokens + room), sequences, False
        params.n_batch = params.n_ubatch = MOST_ROWS
        params.n_threads = params.n_threads_batch = self._threads
        params.type_k = params.type_v = Type.F32 if self._is_float32 else Type.F16
        params.flash_attn_type = int(not self._is_float32)  # it rounds to float16
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._batch = llama_cpp.llama_batch_init(MOST_ROWS, self._weights.config.hidden_size, 1)
        for sequence, prompt in enumerate(self._weights.embed(codes)):
            for first in range(0, tokens, MOST_ROWS):
                part = prompt[first : first + MOST_ROWS]
                self._decode(part, [sequence] * len(part), range(first, first + len(part)), wanted=False)
        self._length = tokens

    def step(self, codes: Codes) -> Floats:
        """As `System`."""
        count, config = len(codes), self._weights.config
        self._decode(self._weights.embed(codes), range(count), [self._length] * count, wanted=True)
        self._length += 1
        shape = (count, config.num_codebooks * config.num_audio_tokens)
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape).copy()

    def _decode(
        self, embeddings: Floats, sequences: list[int] | range, positions: list[int] | range, *, wanted: bool
    ) -> None:
        batch, count = self._batch, len(embeddings)
        batch.n_tokens = count
        ctypes.memmove(batch.embd, np.ascontiguousarray(embeddings).ctypes.data, embeddings.nbytes)
        for row, (sequence, position) in enumerate(zip(sequences, positions, strict=True)):
            batch.pos[row], batch.n_seq_id[row], batch.seq_id[row][0] = position, 1, sequence
            batch.logits[row] = wanted
        if status := llama_cpp.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode answered {status}")


def write_gguf(path: Path, weights: Weights, kind: Type) -> None:
    """Write the model for llama.cpp, its matrices as `kind`."""
    config = weights.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.num_codebooks * config.num_audio_tokens)
    writer.add_tokenizer_model("none")

    def add(name: str, tensor: Floats, as_type: Type = Type.F32) -> None:
        writer.add_tensor(f"{name}.weight", gguf.quantize(tensor, as_type), raw_dtype=as_type)

    add("token_embd", weights.tensor("embed_code"), kind)  # never looked at
    add("output_norm", weights.tensor("norm"))
    add("output", weights.tensor("head_code"), HEAD.get(kind.name, kind))
    for layer in range(config.num_layers):
        for name, tensor in _layer(weights, layer).items():
            add(f"blk.{layer}.{name}", tensor, kind if tensor.ndim > 1 else Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _layer(weights: Weights, layer: int) -> dict[str, Floats]:
    def tensor(name: str) -> Floats:
        return weights.tensor(f"layers.{layer}.{name}")

    query, key, value = np.split(tensor("qkv"), 3)
    gate, up = np.split(tensor("gate_up"), 2)
    return {
        "attn_norm": tensor("input_norm"),
        "attn_q": _in_pairs(query, weights.config),
        "attn_k": _in_pairs(key, weights.config),
        "attn_v": value,
        "attn_output": tensor("o"),
        "ffn_norm": tensor("post_norm"),
        "ffn_gate": gate,
        "ffn_up": up,
        "ffn_down": tensor("down"),
    }


def _in_pairs(weight: Floats, config: GPTConfig) -> Floats:
    """Rows in the order of llama.cpp's rotary positions, which turn neighbours and not halves of a head."""
    halves = weight.reshape(config.num_heads, 2, config.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
