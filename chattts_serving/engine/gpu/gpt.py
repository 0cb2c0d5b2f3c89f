"""The GPT of ChatTTS: a Llama decoder over fused weights, with text and audio embeddings and heads.

It knows nothing of sequences, caches or sampling: the caller hands in how to attend.
Architecture: Touvron et al. 2023 (LLaMA); weight names are those that `python -m export` writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from chattts_serving.engine.gpt_config import GPTConfig, Precision, check_shapes, rope_tables
from chattts_serving.errors import ConfigError

Attend = Callable[[int, torch.Tensor], torch.Tensor]
"""(layer, qkv [num_tokens, 3 * hidden], as `GPT.split_heads` takes it) -> attended, [num_tokens, hidden]."""


DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
"""Of embeddings, hidden states and cache, where that is not float32."""


class LayerOps(Protocol):
    """What a layer does outside attention; x is [num_tokens, hidden], sums are float32."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """RMSNorm of x (Zhang and Sennrich 2019)."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """x [n, in] times weight [out, in], transposed: [n, out]."""

    def logits(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `linear`, in float32: rounded to 16 bits, many logits of a row would be equal."""

    def linear_add_rms_norm(
        self, inner: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + linear(inner, matrix), and its RMSNorm."""

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """gate and up, the halves of linear(x, weight [2 * intermediate, in]) -> silu(gate) * up, [n, intermediate]."""


class TorchLayerOps:
    """`LayerOps` in PyTorch, on any device."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """As `LayerOps`."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        return F.linear(x, weight)

    def logits(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        return float32_linear(x, weight)

    def linear_add_rms_norm(
        self, inner: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `LayerOps`."""
        x = x + F.linear(inner, matrix)
        return x, self.rms_norm(x, weight, eps)

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        gate, up = F.linear(x, weight).chunk(2, dim=-1)
        return F.silu(gate) * up


def float32_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The product of `LayerOps.logits`, by a library."""
    if weight.dtype is torch.float32:
        return F.linear(x, weight)
    return torch.mm(x, weight.T, out_dtype=torch.float32)


TORCH_LAYER_OPS = TorchLayerOps()


class GPT:
    """The decoder stack, embeddings and heads on one device.

    Attributes:
        config: its sizes.
        device: where it lies.
        dtype: of embeddings, hidden states and cache.
        embed_table: the embeddings that are looked up, "embed_text" [num_text_tokens, hidden] and "embed_code"
            [num_codebooks * num_audio_tokens, hidden].
        rope_cos, rope_sin: rotary embedding, float32 [max_positions, head_dim].
    """

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
        check_shapes(config, {name: tuple(tensor.shape) for name, tensor in weights.items()})
        allowed = (Precision.FP32, *DTYPES) if device.type == "cuda" else (Precision.FP32,)
        if precision not in allowed:
            names = ", ".join(one.value for one in allowed)
            raise ConfigError(f"precision is {precision.value}; allowed on {device} is {names}")
        self.config, self.device = config, device
        self.dtype = DTYPES.get(precision, torch.float32)
        self._matrix: dict[str, torch.Tensor] = {}  # each [out, in]
        self._norm: dict[str, torch.Tensor] = {}  # each [hidden]
        self.embed_table: dict[str, torch.Tensor] = {}
        with _stream_of_its_own(device):
            for name, tensor in weights.items():
                moved = tensor.to(device, self.dtype)
                if name.startswith("embed"):
                    self.embed_table[name] = moved
                elif tensor.dim() == 1:
                    self._norm[name] = moved
                else:
                    self._matrix[name] = moved
            self.rope_cos, self.rope_sin = (torch.from_numpy(table).to(device) for table in rope_tables(config))
            self._codebook_offsets = torch.arange(config.num_codebooks, device=device) * config.num_audio_tokens

    @classmethod
    def load(cls, folder: Path, device: torch.device | str, precision: Precision = Precision.FP32) -> GPT:
        """Read `config.json` and `model.safetensors` of `folder`.

        Raises:
            ConfigError: a file is missing or not what the export writes.
        """
        config = GPTConfig.load(folder)
        try:
            weights = load_file(folder / "model.safetensors")
        except Exception as error:  # safetensors raises its own type, which is no OSError
            raise ConfigError(f"cannot read {folder / 'model.safetensors'}: {error}; run python -m export") from error
        return cls(config, weights, torch.device(device), precision)

    def embed_text(self, ids: torch.Tensor) -> torch.Tensor:
        """Text tokens [n] -> embeddings [n, hidden]."""
        return F.embedding(ids, self.embed_table["embed_text"])

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Audio tokens [n, num_codebooks] -> embeddings [n, hidden], the sum over the codebooks."""
        return F.embedding(codes + self._codebook_offsets, self.embed_table["embed_code"]).sum(1)

    def forward(self, x: torch.Tensor, attend: Attend, ops: LayerOps = TORCH_LAYER_OPS) -> torch.Tensor:
        """Run every layer over tokens of any number of sequences, packed without padding.

        Args:
            x: embeddings, [num_tokens, hidden].
            attend: rotary positions, and attention over the sequences' caches.
            ops: what computes between the matrix products.

        Returns:
            Hidden states after the final norm, [num_tokens, hidden].
        """
        num_layers, eps = self.config.num_layers, self.config.rms_norm_eps
        input_norms = [self._norm[f"layers.{layer}.input_norm"] for layer in range(num_layers)]
        next_norms = [*input_norms[1:], self._norm["norm"]]
        normed = ops.rms_norm(x, input_norms[0], eps)
        for layer, next_norm in enumerate(next_norms):
            qkv, o, gate_up, down = (self._matrix[f"layers.{layer}.{name}"] for name in ("qkv", "o", "gate_up", "down"))
            attended = attend(layer, ops.linear(normed, qkv))
            x, normed = ops.linear_add_rms_norm(attended, o, x, self._norm[f"layers.{layer}.post_norm"], eps)
            x, normed = ops.linear_add_rms_norm(ops.gated_linear(normed, gate_up), down, x, next_norm, eps)
        return normed

    def split_heads(
        self, qkv: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, with rotary positions applied to the first two.

        Args:
            qkv: [num_tokens, 3 * hidden].
            positions: place of each token in its own sequence, [num_tokens] int64.

        Returns:
            Three of [num_tokens, num_heads, head_dim].
        """
        cos, sin = self.rope_cos[positions].unsqueeze(1), self.rope_sin[positions].unsqueeze(1)  # [n, 1, head_dim]
        heads = (-1, self.config.num_heads, self.config.head_dim)
        q, k, v = (part.reshape(heads) for part in qkv.chunk(3, dim=-1))
        return _rotate(q, cos, sin).to(qkv.dtype), _rotate(k, cos, sin).to(qkv.dtype), v

    def text_logits(self, hidden: torch.Tensor, ops: LayerOps = TORCH_LAYER_OPS) -> torch.Tensor:
        """Hidden states [n, hidden] -> float32 logits [n, num_text_tokens]."""
        return ops.logits(hidden, self._matrix["head_text"])

    def code_logits(self, hidden: torch.Tensor, ops: LayerOps = TORCH_LAYER_OPS) -> torch.Tensor:
        """Hidden states [n, hidden] -> float32 logits [n, num_codebooks, num_audio_tokens]."""
        logits = ops.logits(hidden, self._matrix["head_code"])
        return logits.view(-1, self.config.num_codebooks, self.config.num_audio_tokens)


@contextmanager
def _stream_of_its_own(device: torch.device) -> Iterator[None]:
    """What is in it uses a new stream of a GPU, not the default one, and is done when it ends."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
