"""Many requests at once on the live server: each gets what it gets alone, and the server works on them together."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import pytest
import tritonclient.http
from chattts_client import TTSClient

from tests.oracle import NEAR_ZERO

MODELS = ("dvae_decoder", "vocos")
MAX_ROUNDS = 5  # which sentences end together depends on when their requests arrived
BUSY_TOKENS = 1_024  # of a request that keeps a model busy
TEXTS = [
    "Hello there, how are you?",
    "今天天气真不错。",
    "One sentence. And a second one, a little longer. And a third.",
    "我们一起去公园散步吧。明天再说。",
    "Read me [uv_break] slowly.",
    "The train leaves at 8:45 on platform 12.",
    "价格是三百二十元。",
    "Fine.",
]


def mixed_requests(tokens):
    """Sixteen: eight texts, refined and not, different voices and lengths, the short ones of `tokens` a sentence."""
    return [
        (
            text,
            {
                "seed": 100 + number,
                "skip_refine": skip_refine,
                "temperature": NEAR_ZERO,
                "refine_temperature": NEAR_ZERO,
                "refine_max_new_tokens": 12,
                "min_new_tokens": tokens,
                "max_new_tokens": tokens + 8 * (number % 2),
            },
        )
        for skip_refine in (True, False)
        for number, text in enumerate(TEXTS)
    ]


def largest_batch(server, model):
    """The largest batch that Triton has run `model` with."""
    with tritonclient.http.InferenceServerClient(server.http_url) as triton:
        statistics = triton.get_inference_statistics(model)["model_stats"][0]
    return max(batch["batch_size"] for batch in statistics["batch_stats"])


def endless_use(server, model, is_over):
    """One long request after another, so that others wait for the model and become a batch."""
    with tritonclient.http.InferenceServerClient(server.http_url, network_timeout=60) as triton:
        inputs = triton.get_model_metadata(model)["inputs"]
        tensors = []
        for one in inputs:
            array = np.zeros((1, 1) if one["name"] == "state" else (1, BUSY_TOKENS, *one["shape"][2:]), np.float32)
            tensors.append(tritonclient.http.InferInput(one["name"], array.shape, one["datatype"]))
            tensors[-1].set_data_from_numpy(array)
        while not is_over.is_set():
            triton.infer(model, tensors)


@contextmanager
def busy(server) -> Iterator[None]:
    """Decoder and vocoder are in use throughout."""
    is_over = threading.Event()
    with ThreadPoolExecutor(len(MODELS)) as pool:
        uses = [pool.submit(endless_use, server, model, is_over) for model in MODELS]
        try:
            yield
        finally:
            is_over.set()
        for use in uses:
            use.result()


def check_concurrent_equals_alone(server, tokens):
    requests = mixed_requests(tokens)

    def speak(numbered):
        number, (text, options) = numbered
        protocol, url = [("grpc", server.grpc_url), ("http", server.http_url)][number % 2]
        with TTSClient(url, protocol) as client:
            return client.synthesize(text, **options)

    alone = [speak(one) for one in enumerate(requests)]
    for made_busy in (nullcontext, *[partial(busy, server)] * (MAX_ROUNDS - 1)):
        with made_busy(), ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(speak, enumerate(requests)))
        for first, second in zip(alone, together, strict=True):
            assert first.refined_text == second.refined_text
            assert first.num_tokens == second.num_tokens
            assert first.audio.shape == second.audio.shape
            np.testing.assert_allclose(first.audio, second.audio, atol=1e-4, rtol=0)
        if all(largest_batch(server, model) > 1 for model in MODELS):
            return
    sizes = {model: largest_batch(server, model) for model in MODELS}
    pytest.fail(f"after {MAX_ROUNDS} rounds the largest batches are {sizes}")


def test_sixteen_mixed_requests_get_what_each_gets_alone(tiny):
    check_concurrent_equals_alone(tiny.server, 40)


@pytest.mark.slow
def test_sixteen_mixed_requests_get_what_each_gets_alone_at_official_size(official):
    check_concurrent_equals_alone(official.server, 24)


def test_a_seed_gives_the_same_speech_again_and_is_returned(tiny):
    with TTSClient(tiny.server.grpc_url) as client:
        limits = {"min_new_tokens": 8, "max_new_tokens": 60}
        first = client.synthesize("Say it again.", seed=5, **limits)
        again = client.synthesize("Say it again.", seed=5, **limits)
        drawn = client.synthesize("Say it again.", **limits)
        repeated = client.synthesize("Say it again.", seed=drawn.seed, **limits)
        assert first.seed == 5
        assert drawn.seed != 5
        for one, other in ((first, again), (drawn, repeated)):
            np.testing.assert_allclose(one.audio, other.audio, atol=1e-5, rtol=0)
        assert first.audio.shape != drawn.audio.shape or not np.allclose(first.audio, drawn.audio)


def test_pauses_between_sentences_are_silent_and_sentences_are_not(tiny):
    with TTSClient(tiny.server.grpc_url) as client:
        speech = client.synthesize(
            "First sentence here. Second one here.", seed=3, skip_refine=True, min_new_tokens=20, max_new_tokens=20
        )
    assert speech.num_tokens == 40
    samples = 512
    sounding = np.abs(speech.audio) > 0
    assert speech.audio.shape == (52 * samples - 256,)  # 20 tokens, 12 of pause, 20 tokens
    assert sounding[: 20 * samples - 256].mean() > 0.9
    assert not sounding[20 * samples - 256 : 32 * samples].any()
    assert sounding[32 * samples :].mean() > 0.9
