"""Small GPTs with seeded random weights, for tests that need no checkpoint."""

from __future__ import annotations

import numpy as np
import torch

from chattts_serving.engine.batch import Batch, StepLog
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import GPTConfig, Precision, weight_shapes
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.runner import TorchRunner
from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.engine.sequence import Sequence

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


def random_weights(config: GPTConfig = CONFIG, seed: int = 0) -> dict[str, torch.Tensor]:
    """A few thousand weights that spread logits enough to make sampling interesting."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape) if "norm" in name else torch.randn(shape, generator=generator) * 2 / shape[-1] ** 0.5
        for name, shape in weight_shapes(config).items()
    }


def random_gpt(
    seed: int = 0, device: str = "cpu", precision: Precision = Precision.FP32, config: GPTConfig = CONFIG
) -> GPT:
    """A GPT with the weights of `random_weights`."""
    return GPT(config, random_weights(config, seed), torch.device(device), precision)


def random_engine(
    cache_tokens: int = 1_000,
    precision: Precision = Precision.FP32,
    max_sequences: int = 64,
    max_prefill_tokens: int = 512,
    steps_ahead: int = 0,
    device: str = "cpu",
    variant: Variant | None = None,
    config: GPTConfig = CONFIG,
) -> Engine:
    """An engine with the model of `random_gpt` and a cache of `cache_tokens` tokens."""
    model = random_gpt(device=device, precision=precision, config=config)
    gigabytes = (cache_tokens + 0.5) * TorchRunner.bytes_per_token(model) / 1e9
    runner = TorchRunner(
        model,
        kv_cache_gb=gigabytes,
        max_sequences=max_sequences,
        max_prefill_tokens=max_prefill_tokens,
        steps_ahead=steps_ahead,
        variant=variant,
    )
    join_every = variant.join_every if variant else 1
    return Engine(runner, max_sequences=max_sequences, max_prefill_tokens=max_prefill_tokens, join_every=join_every)


def seat(sequence: Sequence) -> None:
    """Let a sequence stay in a batch of its own."""
    log = StepLog(num_steps=4_096, num_rows=1, num_codebooks=4)
    Batch(capacity=1).join(sequence, log)


def launch(sequence: Sequence) -> None:
    """Have the next step of a seated sequence launched."""
    sequence.stay.log.num_launched += 1


def read(sequence: Sequence, token: tuple[int, ...] = (1, 2, 3, 4)) -> None:
    """Have the step of a seated sequence that was launched read, which drew `token`."""
    sequence.stay.log.store(np.zeros(1, np.int32), np.array([token], np.int32))
