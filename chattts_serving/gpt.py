"""The GPT of ChatTTS: a Llama decoder over fused weights, with text and audio embeddings and heads.

It knows nothing of sequences, caches or sampling: the caller hands in how to attend.
Architecture: Touvron et al. 2023 (LLaMA); weight names are those that `python -m export` writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from chattts_serving.errors import ConfigError
from chattts_serving.linear import FloatLinear, Int8Linear, Linear

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(layer, q, k, v), each [num_tokens, num_heads, head_dim] with rotary positions applied -> the same shape."""


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and special token ids of one checkpoint, as `config.json` beside the weights holds them."""

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
        return cls(**values)


class Precision(Enum):
    """What the matrix products are computed in; everything between them is float32."""

    FP32 = "fp32"
    INT8 = "int8"  # CPU only; weights scaled per output channel, activations per token


class GPT:
    """The decoder stack, embeddings and heads on one device."""

    dtype = torch.float32  # of embeddings, hidden states and cache

    def __init__(
        self,
        config: GPTConfig,
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        precision: Precision = Precision.FP32,
    ) -> None:
        """Take over `weights` (names as in the export), moved to `device` and `precision`.

        Raises:
            ConfigError: a tensor is missing, is one too many, or has another shape than `config` wants; or the device
                does not do `precision`.
        """
        _check_shapes(config, weights)
        if precision is Precision.INT8 and device.type != "cpu":
            raise ConfigError(f"precision is int8 on {device}; int8 is for the CPU: choose fp32")
        self.config, self.device = config, device
        linear = Int8Linear if precision is Precision.INT8 else FloatLinear
        self._linear: dict[str, Linear] = {}
        self._table: dict[str, torch.Tensor] = {}  # weights that are looked up or multiplied element by element
        for name, tensor in weights.items():
            if name.startswith("embed") or tensor.dim() == 1:
                self._table[name] = tensor.to(device, self.dtype)
            else:
                self._linear[name] = linear(tensor.to(device, self.dtype))
        self._rope_cos, self._rope_sin = _rope_tables(config, device)  # each [max_positions, head_dim], float32
        self._codebook_offsets = torch.arange(config.num_codebooks, device=device) * config.num_audio_tokens

    @classmethod
    def load(cls, folder: Path, device: torch.device, precision: Precision = Precision.FP32) -> GPT:
        """Read `config.json` and `model.safetensors` of `folder`.

        Raises:
            ConfigError: a file is missing or not what the export writes.
        """
        config = GPTConfig.load(folder)
        try:
            weights = load_file(folder / "model.safetensors")
        except Exception as error:  # safetensors raises its own type, which is no OSError
            raise ConfigError(f"cannot read {folder / 'model.safetensors'}: {error}; run python -m export") from error
        return cls(config, weights, device, precision)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Text tokens [n] -> embeddings [n, hidden]."""
        return F.embedding(ids, self._table["embed_text"])

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Audio tokens [n, num_codebooks] -> embeddings [n, hidden], the sum over the codebooks."""
        return F.embedding(codes + self._codebook_offsets, self._table["embed_code"]).sum(1)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        """Run every layer over tokens of any number of sequences, packed without padding.

        Args:
            x: embeddings, [num_tokens, hidden].
            positions: place of each token in its own sequence, [num_tokens] int64.
            attend: attention over the sequences' caches.

        Returns:
            Hidden states after the final norm, [num_tokens, hidden].
        """
        config, linear, table = self.config, self._linear, self._table
        cos, sin = self._rope_cos[positions].unsqueeze(1), self._rope_sin[positions].unsqueeze(1)  # [n, 1, head_dim]
        heads = (-1, config.num_heads, config.head_dim)
        for layer in range(config.num_layers):
            prefix = f"layers.{layer}."
            normed = self._norm(x, table[prefix + "input_norm"])
            q, k, v = linear[prefix + "qkv"](normed).chunk(3, dim=-1)
            attended = attend(layer, _rotate(q.view(heads), cos, sin), _rotate(k.view(heads), cos, sin), v.view(heads))
            x = x + linear[prefix + "o"](attended.reshape(x.shape))
            normed = self._norm(x, table[prefix + "post_norm"])
            gate, up = linear[prefix + "gate_up"](normed).chunk(2, dim=-1)
            x = x + linear[prefix + "down"](F.silu(gate) * up)
        return self._norm(x, table["norm"])

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, hidden] -> float32 logits [n, num_text_tokens]."""
        return self._linear["head_text"](hidden)

    def code_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states [n, hidden] -> float32 logits [n, num_codebooks, num_audio_tokens]."""
        return self._linear["head_code"](hidden).view(-1, self.config.num_codebooks, self.config.num_audio_tokens)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)


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


def _check_shapes(config: GPTConfig, weights: Mapping[str, torch.Tensor]) -> None:
    expected = weight_shapes(config)
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"weight '{name}' has shape {found.get(name)}, config.json wants {expected.get(name)}; "
                "run python -m export again"
            )


def _rope_tables(config: GPTConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the rotary embedding (Su et al. 2021), halves laid out as Llama's rotate-half wants."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / config.rope_theta**exponents).repeat(1, 2)
    return angles.cos().to(device), angles.sin().to(device)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
