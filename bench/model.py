"""The GPT that engines are measured with: official sizes, random weights; and how far an engine is from float32."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import GPTConfig, Precision, weight_shapes
from chattts_serving.engine.gpu.gpt import DTYPES as HALF_DTYPES
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.sequence import FinishReason, Kind, SamplingParams, Sequence
from chattts_serving.request import MAX_NEW_TOKENS, GenerationRequest, SamplingOptions

OFFICIAL = GPTConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_layers=20,
    num_heads=12,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    max_position_embeddings=4096,
    num_text_tokens=21_178,
    num_audio_tokens=626,
    num_codebooks=4,
    spk_emb_id=21_143,
    ebreak_id=21_136,
    break_0_id=21_147,
)
PLAIN_TOKENS = 21_000  # text tokens below this one are no control tags
DTYPES = {Precision.FP32: torch.float32, Precision.INT8: torch.int8, **HALF_DTYPES}  # of the weights
CHECKED_PROMPTS = (1, 17, 90)  # tokens of the prompts whose sequences are compared with float32
CHECKED_TOKENS = 16  # that each of them draws
# The most that audio logits may differ from float32, as shares of their rms: the differences' rms, and the largest.
# PyTorch on a CPU, rounding to the same types: bf16 0.019 and 0.075, fp16 0.0025 and 0.012; the C library: int8 0.057
# and 0.27, fp32 3e-6.
LOGIT_TOLERANCE = {
    Precision.FP32: (2e-4, 2e-3),
    Precision.FP16: (0.008, 0.05),
    Precision.BF16: (0.05, 0.25),
    Precision.INT8: (0.1, 0.6),
}


def random_weights(config: GPTConfig, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Weights of unit gain, drawn on `device`, float32."""
    generator = torch.Generator(device).manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator, device=device) / shape[-1] ** 0.5
        if len(shape) > 1
        else torch.ones(shape, device=device)
        for name, shape in weight_shapes(config).items()
    }


def sequence(
    config: GPTConfig, number: int, num_prompt_tokens: int, num_new_tokens: int, kind: Kind = Kind.AUDIO
) -> Sequence:
    """A sequence with the seed `number` and a prompt of its own, which draws exactly `num_new_tokens`."""
    penalty = 1.05 if kind is Kind.AUDIO else 1.0
    params = SamplingParams(0.3, 0.7, 20, penalty, num_new_tokens, num_new_tokens, seed=number, stream=0)
    prompt = tuple((7 * number + 13 * place) % PLAIN_TOKENS for place in range(num_prompt_tokens))
    speaker = np.full(config.hidden_size, config.hidden_size**-0.5, np.float32)
    return Sequence(kind, prompt, params, speaker=speaker)


def logit_error(engine: Engine, reference: GPT) -> dict[str, float]:
    """How far the audio logits of sequences in `engine` are from those in float32, over the same tokens.

    The logits are those of the engine's hidden states and float32 heads. Returns "largest", "rms", and the "size" of
    the logits themselves (rms).

    Raises:
        AssertionError: a sequence ended before it had all its tokens, as where its logits are no finite numbers.
    """
    for number, length in enumerate(CHECKED_PROMPTS):
        engine.add(sequence(reference.config, number, length, CHECKED_TOKENS))
    pairs = []
    while not engine.is_idle:
        for finished in engine.step():
            reason = finished.sequence.finish_reason
            if reason is not FinishReason.LENGTH:
                tokens = len(finished.sequence.tokens)
                raise AssertionError(f"a sequence of {CHECKED_TOKENS} tokens ended after {tokens}: {reason}")
            hidden = torch.from_numpy(finished.hidden).to(reference.device)
            with torch.inference_mode():
                expected = _reference_logits(reference, finished.sequence)
                pairs.append((reference.code_logits(hidden), expected))
    found, expected = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    return distance(found, expected)


def distance(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """How far logits are from those `expected`: "largest", "rms", and the "size" of the expected ones (rms)."""
    difference = found - expected
    return {
        "largest": difference.abs().max().item(),
        "rms": difference.square().mean().sqrt().item(),
        "size": expected.square().mean().sqrt().item(),
    }


def logits_too_far(precision: Precision, error: dict[str, float]) -> str | None:
    """What is wrong with a `logit_error`, in words; None where it is within LOGIT_TOLERANCE. NaN never is."""
    rms, largest = (share * error["size"] for share in LOGIT_TOLERANCE[precision])
    if error["rms"] <= rms and error["largest"] <= largest:
        return None
    return (
        f"{precision.value} logits differ from float32 by {error['rms']:.2g} rms and {error['largest']:.2g} at most; "
        f"allowed are {rms:.2g} and {largest:.2g}"
    )


def step_weights(config: GPTConfig) -> int:
    """Weights that every step multiplies with: those of the layers and of the audio heads."""
    skipped = ("embed_text", "embed_code", "head_text")
    return sum(math.prod(shape) for name, shape in weight_shapes(config).items() if name not in skipped)


def bytes_read(config: GPTConfig, dtype: torch.dtype, cache_tokens: int, bytes_per_token: int) -> float:
    """What a step cannot do without: every weight once, and the cache of each sequence."""
    return step_weights(config) * dtype.itemsize + cache_tokens * bytes_per_token


def operations(config: GPTConfig, batch: int, cache_tokens: int) -> float:
    """Multiplications and additions of a step: products with the weights, and attention's two with the cache."""
    return 2 * batch * step_weights(config) + 4 * cache_tokens * config.num_layers * config.hidden_size


def _reference_logits(reference: GPT, sequence: Sequence) -> torch.Tensor:
    """Logits that each token of `sequence` should have been drawn from, by one causal pass over all of them."""
    prompt = torch.tensor(sequence.prompt_ids, device=reference.device)
    codes = torch.tensor(sequence.tokens[:-1], device=reference.device).view(-1, reference.config.num_codebooks)
    embeddings = torch.cat([reference.embed_text(prompt), reference.embed_codes(codes)])
    return causal_logits(reference, embeddings)[len(prompt) - 1 :]


def causal_logits(reference: GPT, embeddings: torch.Tensor) -> torch.Tensor:
    """Audio logits after each token of one sequence: [tokens, hidden] -> [tokens, num_codebooks, num_audio_tokens]."""
    positions = torch.arange(len(embeddings), device=reference.device)

    def attend(_layer: int, qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in reference.split_heads(qkv, positions))
        with sdpa_kernel(SDPBackend.MATH):  # the others may round on a GPU
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.squeeze(0).transpose(0, 1).flatten(1)

    return reference.code_logits(reference.forward(embeddings, attend))


def sentence_request(seed: int, prompt: tuple[int, ...], sampling: SamplingOptions) -> GenerationRequest:
    """One sentence to speak, as text_frontend would write it; nobody looks at its text."""
    return GenerationRequest(
        prompts=(prompt,),
        texts=("x",),
        pauses=(0, 0),
        fewest_tokens=(0,),
        most_tokens=(MAX_NEW_TOKENS,),
        redraw_long=False,
        refine=False,
        refine_only=False,
        prompt="",
        sample_text="",
        sample_codes=(),
        has_speaker=True,
        seed=seed,
        deadline_ns=None,
        priority="interactive",
        sampling=sampling,
    )
