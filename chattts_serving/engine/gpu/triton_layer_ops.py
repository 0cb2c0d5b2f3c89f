"""What a layer computes outside attention as GPU kernels: sizes, grids and block shapes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]

from chattts_serving.engine.gpu import triton_kernels, triton_products
from chattts_serving.engine.gpu.gpt import float32_linear
from chattts_serving.engine.gpu.variants import Variant

SILU_BLOCK = 1024
# Of our own products. With 64 rows at once tensor cores have enough to do, and three blocks under way fit into the
# shared memory of every GPU. Outputs are taken 32 at a time and inputs in parts, so that 768 outputs make 144 programs.
PRODUCT_ROWS = 64
PRODUCT_COLUMNS = 32
PRODUCT_STAGES = 3
MOST_PARTS = 6
MOST_PRODUCT_ROWS = 256  # a library's products are for more


class TritonLayerOps:
    """`LayerOps` as GPU kernels."""

    def __init__(self, variant: Variant) -> None:
        """As `variant` says."""
        self._own_products = variant.own_products

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """As `LayerOps`."""
        normed, hidden = torch.empty_like(x), x.shape[1]
        triton_kernels.rms_norm[(len(x),)](x, weight, normed, eps, HIDDEN=hidden, BLOCK=triton.next_power_of_2(hidden))
        return normed

    def linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        return self._product(x, weight, x.dtype)[0] if self._is_own(x, weight) else F.linear(x, weight)

    def logits(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        return self._product(x, weight, torch.float32)[0] if self._is_own(x, weight) else float32_linear(x, weight)

    def linear_add_rms_norm(
        self, inner: torch.Tensor, matrix: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `LayerOps`; our own product leaves its parts to be added."""
        if self._is_own(inner, matrix):
            delta = self._product(inner, matrix, torch.float32, MOST_PARTS)
        else:
            delta = F.linear(inner, matrix).unsqueeze(0)
        total, normed, hidden = torch.empty_like(x), torch.empty_like(x), x.shape[1]
        triton_kernels.add_rms_norm[(len(x),)](
            x, delta, weight, total, normed, eps, HIDDEN=hidden, BLOCK=triton.next_power_of_2(hidden), PARTS=len(delta)
        )
        return total, normed

    def gated_linear(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As `LayerOps`."""
        size = len(weight) // 2
        out = x.new_empty(len(x), size)
        if self._is_own(x, weight[:size]):
            triton_products.gated_linear[(triton.cdiv(size, PRODUCT_COLUMNS), triton.cdiv(len(x), PRODUCT_ROWS))](
                x, weight, out, len(x), IN=x.shape[1], OUT=size, **_blocks(x)
            )
        else:
            gate_up = F.linear(x, weight)
            grid = (len(x), triton.cdiv(size, SILU_BLOCK))
            triton_kernels.silu_mul[grid](gate_up, out, INTERMEDIATE=size, BLOCK=SILU_BLOCK)
        return out

    def _is_own(self, x: torch.Tensor, weight: torch.Tensor) -> bool:
        return self._own_products and len(x) <= MOST_PRODUCT_ROWS and weight.shape[1] % 16 == 0

    @staticmethod
    def _product(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype, most_parts: int = 1) -> torch.Tensor:
        """Parts of a product, which have to be added: [parts, n, out]."""
        (num_out, num_in), blocks = weight.shape, _blocks(x)
        num_blocks = num_in // blocks["BLOCK_K"]
        parts = next(parts for parts in range(most_parts, 0, -1) if num_blocks % parts == 0)
        out = torch.empty(parts, len(x), num_out, dtype=dtype, device=x.device)
        grid = (triton.cdiv(num_out, PRODUCT_COLUMNS), triton.cdiv(len(x), PRODUCT_ROWS), parts)
        triton_products.linear[grid](x, weight, out, len(x), IN=num_in, OUT=num_out, PART=num_in // parts, **blocks)
        return out


def _blocks(x: torch.Tensor) -> dict[str, int]:
    """Block sizes of a product; the inputs of a block are a power of two that divides the inputs."""
    num_in = x.shape[1]
    return {
        "BLOCK_M": PRODUCT_ROWS,
        "BLOCK_N": PRODUCT_COLUMNS,
        "BLOCK_K": min(num_in & -num_in, 256 // x.element_size()),
        "STAGES": PRODUCT_STAGES,
    }
