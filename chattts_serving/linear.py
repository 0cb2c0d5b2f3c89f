"""Matrix products of the GPT in the precisions that it can run in; weights are taken over once, at load."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

INT8_MAX = 127
SMALLEST_ROW = 1e-8  # largest magnitude of a row that is still scaled: keeps rows of zeros from dividing by zero


class Linear(Protocol):
    """x [n, in] -> x W^T [n, out]."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product, in the dtype of `x`."""


class FloatLinear:
    """The product in the weights' own floating-point type."""

    def __init__(self, weight: torch.Tensor) -> None:
        """`weight` is [out, in]."""
        self._weight = weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        return F.linear(x, self._weight)


class Int8Linear:
    """The product in 8-bit integers: one scale for each output channel and one for each row of x.

    Integer sums are exact and rows have scales of their own, so that a row's result is the same bit for bit whatever
    rows are beside it. The scheme is that of "vector-wise" quantisation in Dettmers et al. 2022, LLM.int8().
    """

    def __init__(self, weight: torch.Tensor) -> None:
        """Quantise `weight`, float [out, in]."""
        self._weight, self._scale = _quantise_rows(weight.float())
        self._scale = self._scale.squeeze(1)  # [out]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """As `Linear`."""
        rows, scale = _quantise_rows(x)
        return torch._int_mm(rows, self._weight.T).to(x.dtype).mul_(scale).mul_(self._scale)


def _quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, k] as int8 [n, k] and what each row has to be multiplied by, [n, 1]."""
    scale = x.abs().amax(1, keepdim=True).clamp_min_(SMALLEST_ROW).div_(INT8_MAX)
    return (x / scale).round_().to(torch.int8), scale
