"""Small GPTs with seeded random weights, for tests that need no checkpoint."""

from __future__ import annotations

import torch

from chattts_serving.gpt import GPT, GPTConfig, Precision, weight_shapes

CONFIG = GPTConfig(
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=2,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    max_position_embeddings=128,
    num_text_tokens=50,
    num_audio_tokens=20,
    num_codebooks=4,
    spk_emb_id=3,
    ebreak_id=4,
    break_0_id=40,
)


def random_gpt(seed: int = 0, device: str = "cpu", precision: Precision = Precision.FP32) -> GPT:
    """A GPT of a few thousand weights whose logits are spread enough to make sampling interesting."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 2 / shape[-1] ** 0.5
        for name, shape in weight_shapes(CONFIG).items()
    }
    return GPT(CONFIG, weights, torch.device(device), precision)
