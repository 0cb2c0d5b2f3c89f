"""Decode steps alone: official sizes, random weights, no server. Needs torch and safetensors only.

Each point runs a batch of sequences at one length of context and times whole steps, sampling included. The share of the
memory-bandwidth limit compares with the time that reading weights and cache once would take at the bandwidth measured
in the same run.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from bench import report
from chattts_serving.engine.engine import Engine, EngineConfig
from chattts_serving.engine.model_runner import ModelRunner
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from chattts_serving.gpt import GPT, GPTConfig, Precision, weight_shapes

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
WARM_STEPS = 3
BYTES_PER_WEIGHT = {Precision.FP32: 4, Precision.INT8: 1}


def run(*, batches: list[int], contexts: list[int], steps: int, precision: Precision, threads: int) -> None:
    """Check the numbers against float32, measure, print the table, write the JSON."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = _random_weights()
    model = GPT(OFFICIAL, weights, device, precision)
    differences = _logit_error(model, GPT(OFFICIAL, weights, device))
    print(
        "logits differ from float32 by {largest:.2g} at most, {rms:.2g} rms; their size is {size:.2g} rms".format(
            **differences
        )
    )
    bandwidth = _bandwidth(device)
    print(f"memory bandwidth: {bandwidth / 1e9:.1f} GB/s")
    points = []
    for context in contexts:
        for batch in batches:
            seconds = _step_seconds(model, batch, context, steps)
            limit = _bytes_read(precision, batch, context, model) / bandwidth
            points.append((batch, context, 1e3 * seconds, batch / seconds, 100 * limit / seconds))
            print(report.table(COLUMNS, points[-1:]), flush=True)
    print(report.table(COLUMNS, points))
    settings = {"precision": precision.value, "threads": threads, "steps": steps, "device": str(device)}
    results = [dict(zip(COLUMNS, point, strict=True)) for point in points]
    results_of_run = {
        "settings": settings,
        "logit_error": differences,
        "bandwidth_gb_s": bandwidth / 1e9,
        "points": results,
    }
    print(f"raw numbers: {report.write('engine', results_of_run)}")


COLUMNS = ("sequences", "context", "ms/step", "tokens/s", "% of bandwidth limit")


def _random_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 if len(shape) > 1 else torch.ones(shape)
        for name, shape in weight_shapes(OFFICIAL).items()
    }


def _logit_error(model: GPT, reference: GPT) -> dict[str, float]:
    """How far `model`'s audio logits are from those of `reference` over one causal pass of 64 random tokens."""
    codes = torch.randint(0, 625, (64, 4), generator=torch.Generator().manual_seed(1)).to(model.device)
    positions = torch.arange(len(codes), device=model.device)

    def attend(_layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.squeeze(0).transpose(0, 1)

    with torch.inference_mode():
        logits = [one.code_logits(one.forward(one.embed_codes(codes), positions, attend)) for one in (model, reference)]
    difference = logits[0] - logits[1]
    return {
        "largest": difference.abs().max().item(),
        "rms": difference.square().mean().sqrt().item(),
        "size": logits[1].square().mean().sqrt().item(),
    }


def _bandwidth(device: torch.device) -> float:
    """Bytes a second that summing a large tensor reads, the best of a few."""
    data = torch.ones(2**27 if device.type == "cpu" else 2**29, device=device)
    best = 0.0
    for _ in range(5):
        _synchronize(device)
        started = time.perf_counter()
        data.sum()
        _synchronize(device)
        best = max(best, data.numel() * 4 / (time.perf_counter() - started))
    return best


def _step_seconds(model: GPT, batch: int, context: int, steps: int) -> float:
    """Median time of one step of `batch` sequences that start with `context` tokens of prompt."""
    most = WARM_STEPS + steps + 1
    tokens = batch * (context + most)
    gigabytes = (max(tokens, OFFICIAL.max_position_embeddings) + 1) * ModelRunner.bytes_per_token(model) / 1e9
    engine = Engine(model, EngineConfig(max_sequences=batch, max_prefill_tokens=2_048, kv_cache_gb=gigabytes))
    speaker = np.full(OFFICIAL.hidden_size, OFFICIAL.hidden_size**-0.5, np.float32)
    for number in range(batch):
        params = SamplingParams(0.3, 0.7, 20, 1.05, most, most, seed=number, stream=0)
        prompt = tuple((7 * number + 13 * place) % 21_000 for place in range(context))
        engine.add(Sequence(Kind.AUDIO, prompt, params, speaker=speaker))
    while engine.num_waiting:
        engine.step()
    for _ in range(WARM_STEPS):
        engine.step()
    times = []
    for _ in range(steps):
        _synchronize(model.device)
        started = time.perf_counter()
        engine.step()
        _synchronize(model.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _bytes_read(precision: Precision, batch: int, context: int, model: GPT) -> float:
    """What a step cannot do without: every weight of the layers and audio heads, and the cache of each sequence."""
    skipped = ("embed_text", "embed_code", "head_text")
    shapes = [shape for name, shape in weight_shapes(OFFICIAL).items() if name not in skipped]
    weights = sum(BYTES_PER_WEIGHT[precision] * int(np.prod(shape)) for shape in shapes)
    return weights + batch * context * ModelRunner.bytes_per_token(model)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
