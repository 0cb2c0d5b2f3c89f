"""Counter-based random numbers: a draw is a pure function of its address, whatever ran before or beside it.

Philox4x32-10 of Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", in tensor operations.
"""

from __future__ import annotations

import torch

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key each round
_MASK = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Four random 32-bit words for each address.

    Args:
        counter: [n, 4] int64, words 0 to 2**32 - 1.
        key: [n, 2] int64, words 0 to 2**32 - 1.

    Returns:
        [n, 4] int64, words 0 to 2**32 - 1.
    """
    c0, c1, c2, c3 = counter.unbind(1)
    k0, k1 = key.unbind(1)
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), 1)


def uniform(seed: torch.Tensor, step: torch.Tensor, codebook: torch.Tensor, stream: torch.Tensor) -> torch.Tensor:
    """One number in [0, 1) for each address, float64 with 32 random bits; all arguments [n] int64, seed >= 0."""
    counter = torch.stack((step, codebook, stream, torch.zeros_like(step)), 1)
    key = torch.stack((seed & _MASK, seed >> 32), 1)
    return philox4x32(counter, key)[:, 0].double() / 2**32


def _multiply(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low word of the 64-bit product; in two halves, since int64 has a sign."""
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)
    return (high_half + (low_half >> 16)) >> 16, (a * b) & _MASK
