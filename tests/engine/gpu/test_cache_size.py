"""How large the cache of a GPU is made where nobody says; how much memory is free is made up."""

import pytest
import torch

from chattts_serving.engine.gpu.runner import TorchRunner
from tests.engine.models import CONFIG, random_gpt

MAX_SEQUENCES = 4
FULL_TOKENS = MAX_SEQUENCES * CONFIG.max_position_embeddings  # of as many sequences as run at once


def tokens(monkeypatch, free_tokens, kv_cache_gb=None):
    """The tokens of the cache where `free_tokens` of them would fit into the free memory."""
    model = random_gpt()
    free = free_tokens * TorchRunner.bytes_per_token(model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 10 * free))
    runner = TorchRunner(model, kv_cache_gb=kv_cache_gb, max_sequences=MAX_SEQUENCES, max_prefill_tokens=64)
    return runner.num_cache_tokens


@pytest.mark.parametrize(
    ("free_tokens", "num_tokens"),
    [(FULL_TOKENS, FULL_TOKENS // 2), (3 * FULL_TOKENS, FULL_TOKENS), (100 * FULL_TOKENS, FULL_TOKENS)],
)
def test_half_of_the_free_memory_and_no_more_than_can_be_used(monkeypatch, free_tokens, num_tokens):
    assert 0 <= tokens(monkeypatch, free_tokens) - num_tokens <= 1


def test_a_size_that_is_given_is_kept(monkeypatch):
    gigabytes = 100.5 * TorchRunner.bytes_per_token(random_gpt()) / 1e9
    assert tokens(monkeypatch, 10 * FULL_TOKENS, gigabytes) == 100
