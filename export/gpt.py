"""The GPT's weights as the serving model wants them: fused, weight norm folded, float32 safetensors with a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from chattts_serving.engine.gpt_config import GPTConfig
from chattts_serving.errors import ConfigError
from chattts_serving.request import NUM_AUDIO_TOKENS
from export.checkpoint import Checkpoint, load_tensors
from export.layout import NUM_CODEBOOKS

Tensor = npt.NDArray[np.float32]


def export_gpt(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` into `folder`, which exists.

    Raises:
        ConfigError: the checkpoint is unreadable or its tokenizer lacks one of ChatTTS's tokens.
    """
    config = gpt_config(checkpoint)
    weights = fuse_weights(load_tensors(checkpoint.gpt), load_tensors(checkpoint.embed), config.num_layers)
    save_file(weights, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o644)  # safetensors keeps other users out; the server may be one
    (folder / "config.json").write_text(json.dumps(asdict(config), indent=2) + "\n", encoding="utf-8")


def gpt_config(checkpoint: Checkpoint) -> GPTConfig:
    """Sizes and token ids of the checkpoint's GPT."""
    sizes, ids = checkpoint.sizes.gpt, checkpoint.special_token_ids()
    for token in ("[spk_emb]", "[Ebreak]", "[break_0]"):
        if ids.get(token, sizes.num_text_tokens) >= sizes.num_text_tokens:
            raise ConfigError(
                f"{checkpoint.tokenizer}: token {token} has id {ids.get(token)}; "
                f"allowed is 0 to {sizes.num_text_tokens - 1}, the rows of the text embedding"
            )
    return GPTConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_layers=sizes.num_layers,
        num_heads=sizes.num_heads,
        rms_norm_eps=sizes.rms_norm_eps,
        rope_theta=sizes.rope_theta,
        max_position_embeddings=sizes.max_positions,
        num_text_tokens=sizes.num_text_tokens,
        num_audio_tokens=NUM_AUDIO_TOKENS,
        num_codebooks=NUM_CODEBOOKS,
        spk_emb_id=ids["[spk_emb]"],
        ebreak_id=ids["[Ebreak]"],
        break_0_id=ids["[break_0]"],
    )


def fuse_weights(llama: Mapping[str, Tensor], embed: Mapping[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The serving model's weights from those of `asset/gpt/model.safetensors` and `asset/Embed.safetensors`.

    Matrices that multiply the same input become one, rows below each other: q, k, v [3H, H]; gate, up [2I, H]; the four
    codebooks' embeddings and heads [4 * 626, H].
    """
    weights = {
        "embed_text": embed["emb_text.weight"],
        "embed_code": np.concatenate([embed[f"emb_code.{i}.weight"] for i in range(NUM_CODEBOOKS)]),
        "norm": llama["norm.weight"],
        "head_text": fold_weight_norm(embed, "head_text"),
        "head_code": np.concatenate([fold_weight_norm(embed, f"head_code.{i}") for i in range(NUM_CODEBOOKS)]),
    }
    for layer in range(num_layers):
        prefix = f"layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        weights |= {
            f"{prefix}.input_norm": llama[f"{prefix}.input_layernorm.weight"],
            f"{prefix}.qkv": np.concatenate([llama[f"{attention}.{name}_proj.weight"] for name in "qkv"]),
            f"{prefix}.o": llama[f"{attention}.o_proj.weight"],
            f"{prefix}.post_norm": llama[f"{prefix}.post_attention_layernorm.weight"],
            f"{prefix}.gate_up": np.concatenate([llama[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up")]),
            f"{prefix}.down": llama[f"{mlp}.down_proj.weight"],
        }
    return {name: np.ascontiguousarray(tensor) for name, tensor in weights.items()}


def fold_weight_norm(tensors: Mapping[str, Tensor], head: str) -> Tensor:
    """The weight [rows, hidden] of a weight-normed layer: length times direction (Salimans & Kingma 2016)."""
    length = tensors[f"{head}.parametrizations.weight.original0"]  # [rows, 1]
    direction = tensors[f"{head}.parametrizations.weight.original1"]  # [rows, hidden], of any length
    weight: Tensor = length * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return weight
