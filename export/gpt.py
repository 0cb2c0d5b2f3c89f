"""The GPT's weights as the serving model wants them: fused, weight norm folded, float32 safetensors with a config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from chattts_serving.errors import ConfigError
from chattts_serving.gpt import GPT
from chattts_serving.gpt_config import GPTConfig
from chattts_serving.request import NUM_AUDIO_TOKENS
from export.checkpoint import Checkpoint, load_tensors
from export.layout import NUM_CODEBOOKS
from export.parity import ParityResult

Tensors = dict[str, torch.Tensor]

ALLOWED_HIDDEN_DIFFERENCE = 1e-4  # float32 over 20 layers, hidden states of size 1
ALLOWED_LOGIT_DIFFERENCE = 1e-3  # logits of size 10
PARITY_BATCHES = (1, 2, 5)  # sequences packed into one forward pass
PARITY_MAX_TOKENS = 60  # of one sequence


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


def fuse_weights(llama: Mapping[str, torch.Tensor], embed: Mapping[str, torch.Tensor], num_layers: int) -> Tensors:
    """The serving model's weights from those of `asset/gpt/model.safetensors` and `asset/Embed.safetensors`.

    Matrices that multiply the same input become one, rows below each other: q, k, v [3H, H]; gate, up [2I, H]; the four
    codebooks' embeddings and heads [4 * 626, H].
    """
    weights = {
        "embed_text": embed["emb_text.weight"],
        "embed_code": torch.cat([embed[f"emb_code.{i}.weight"] for i in range(NUM_CODEBOOKS)]),
        "norm": llama["norm.weight"],
        "head_text": fold_weight_norm(embed, "head_text"),
        "head_code": torch.cat([fold_weight_norm(embed, f"head_code.{i}") for i in range(NUM_CODEBOOKS)]),
    }
    for layer in range(num_layers):
        prefix = f"layers.{layer}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        weights |= {
            f"{prefix}.input_norm": llama[f"{prefix}.input_layernorm.weight"],
            f"{prefix}.qkv": torch.cat([llama[f"{attention}.{name}_proj.weight"] for name in "qkv"]),
            f"{prefix}.o": llama[f"{attention}.o_proj.weight"],
            f"{prefix}.post_norm": llama[f"{prefix}.post_attention_layernorm.weight"],
            f"{prefix}.gate_up": torch.cat([llama[f"{mlp}.{name}_proj.weight"] for name in ("gate", "up")]),
            f"{prefix}.down": llama[f"{mlp}.down_proj.weight"],
        }
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def fold_weight_norm(tensors: Mapping[str, torch.Tensor], head: str) -> torch.Tensor:
    """The weight [rows, hidden] of a weight-normed layer: length times direction (Salimans & Kingma 2016)."""
    length = tensors[f"{head}.parametrizations.weight.original0"]  # [rows, 1]
    direction = tensors[f"{head}.parametrizations.weight.original1"]  # [rows, hidden], of any length
    weight: torch.Tensor = length * direction / torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    return weight


@torch.inference_mode()
def check_gpt(chat: Any, folder: Path) -> list[ParityResult]:
    """Compare the serving model over the files in `folder` with ChatTTS: hidden states and logits.

    Sequences of random lengths, text followed by audio tokens, run packed here and each alone in ChatTTS.
    """
    model = GPT.load(folder, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    hidden_difference = logit_difference = 0.0
    for batch in PARITY_BATCHES:
        sequences = [_random_sequence(model.config, generator) for _ in range(batch)]
        expected = torch.cat([_chattts_hidden(chat, *sequence) for sequence in sequences])
        found = _packed_hidden(model, sequences)
        hidden_difference = max(hidden_difference, _difference(found, expected))
        logit_difference = max(
            logit_difference,
            _difference(model.text_logits(found), chat.embed.head_text(expected)),
            _difference(
                model.code_logits(found), torch.stack([head(expected) for head in chat.embed.head_code], dim=1)
            ),
        )
    return [
        ParityResult("gpt_decoder hidden states", hidden_difference, ALLOWED_HIDDEN_DIFFERENCE),
        ParityResult("gpt_decoder logits", logit_difference, ALLOWED_LOGIT_DIFFERENCE),
    ]


def _random_sequence(config: GPTConfig, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Text ids [n] and audio tokens [m, 4]."""
    num_text, num_audio = torch.randint(1, PARITY_MAX_TOKENS, (2,), generator=generator).tolist()
    text = torch.randint(config.num_text_tokens, (num_text,), generator=generator)
    codes = torch.randint(config.num_audio_tokens, (num_audio, config.num_codebooks), generator=generator)
    return text, codes


def _chattts_hidden(chat: Any, text: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """ChatTTS's hidden states [n + m, hidden]."""
    ids = torch.cat([text[:, None].expand(-1, codes.shape[1]), codes])[None]
    is_text = (torch.arange(ids.shape[1]) < len(text))[None]
    hidden: torch.Tensor = chat.gpt.gpt(inputs_embeds=chat.embed(ids, is_text)).last_hidden_state
    return hidden[0]


def _packed_hidden(model: GPT, sequences: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The serving model's hidden states of all sequences, one after another: [sum of n + m, hidden]."""
    lengths = [len(text) + len(codes) for text, codes in sequences]

    def attend(_layer: int, qkv: torch.Tensor) -> torch.Tensor:
        heads = [torch.split(tensor.transpose(0, 1), lengths, dim=1) for tensor in model.split_heads(qkv, positions)]
        attended = [
            F.scaled_dot_product_attention(query, key, value, is_causal=True)
            for query, key, value in zip(*heads, strict=True)
        ]
        return torch.cat(attended, dim=1).transpose(0, 1).flatten(1)

    x = torch.cat([torch.cat([model.embed_text(text), model.embed_codes(codes)]) for text, codes in sequences])
    positions = torch.cat([torch.arange(length) for length in lengths])
    return model.forward(x, attend)


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return (found - expected).abs().max().item()
