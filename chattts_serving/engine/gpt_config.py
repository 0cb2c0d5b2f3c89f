"""Sizes of one checkpoint's GPT, names and shapes of its weights, and what they can be computed in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError


class TextHead(NamedTuple):
    """An attention head that looks at the text which is said `lead` audio tokens later."""

    layer: int
    head: int
    lead: int


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and special token ids of one checkpoint, as `config.json` beside the weights holds them.

    `text_heads` are those that the export found; none where no head follows the text, so that words have no times.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    num_text_tokens: int
    num_audio_tokens: int  # entries of one codebook, the end token (the last one) included
    num_codebooks: int
    spk_emb_id: int  # text token that the speaker vector replaces
    ebreak_id: int  # ends refined text
    break_0_id: int  # text tokens from here on are control tags that refined text drops
    text_heads: tuple[TextHead, ...] = ()

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def eos_code(self) -> int:
        """The code that ends an utterance, in any codebook."""
        return self.num_audio_tokens - 1

    @classmethod
    def load(cls, folder: Path) -> GPTConfig:
        """Read `config.json` of `folder`.

        Raises:
            ConfigError: the file is missing, is not JSON, or its keys are not exactly the fields.
        """
        path = folder / "config.json"
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}; run python -m export") from error
        expected, found = {field.name for field in fields(cls)}, set(values)
        if expected != found:
            raise ConfigError(f"{path} has the wrong keys: {sorted(expected ^ found)}; run python -m export again")
        try:
            heads = tuple(TextHead(*map(int, head)) for head in values.pop("text_heads"))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path} has text_heads that are none: {error}; run python -m export again") from error
        return cls(**values, text_heads=heads)


class Precision(Enum):
    """What the model computes in; logits are float32 in each."""

    FP32 = "fp32"
    BF16 = "bf16"  # weights and cache; on a GPU all that is computed with them, too
    FP16 = "fp16"  # GPU only; weights, cache, and all that is computed with them
    INT8 = "int8"  # CPU only; weights scaled per output channel, activations per token, the cache per token and head


def weight_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    codes = config.num_codebooks * config.num_audio_tokens
    shapes: dict[str, tuple[int, ...]] = {
        "embed_text": (config.num_text_tokens, hidden),
        "embed_code": (codes, hidden),
        "norm": (hidden,),
        "head_text": (config.num_text_tokens, hidden),
        "head_code": (codes, hidden),
    }
    for layer in range(config.num_layers):
        shapes |= {
            f"layers.{layer}.input_norm": (hidden,),
            f"layers.{layer}.qkv": (3 * hidden, hidden),
            f"layers.{layer}.o": (hidden, hidden),
            f"layers.{layer}.post_norm": (hidden,),
            f"layers.{layer}.gate_up": (2 * intermediate, hidden),
            f"layers.{layer}.down": (hidden, intermediate),
        }
    return shapes


def check_shapes(config: GPTConfig, found: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of weights with what `config` wants.

    Raises:
        ConfigError: a tensor is missing, is one too many, or has another shape.
    """
    expected = weight_shapes(config)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"weight '{name}' has shape {found.get(name)}, config.json wants {expected.get(name)}; "
                "run python -m export again"
            )


def rope_tables(config: GPTConfig) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Cosines and sines of the rotary embedding (Su et al. 2021), halves laid out as Llama's rotate-half wants.

    Each float32 [max_positions, head_dim].
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.outer(np.arange(config.max_position_embeddings, dtype=np.float32), frequencies)
    angles = np.concatenate([angles, angles], 1)
    return np.cos(angles), np.sin(angles)
