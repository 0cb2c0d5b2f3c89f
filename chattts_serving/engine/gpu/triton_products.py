"""Products of a few rows with the layers' weights as GPU kernels; wrappers are in `triton_ops`.

Reading the weights is what such products cost, so many programs read a few of their rows each, for a whole block of
rows of x. Sums are float32 and have one order, whatever the number of rows.
"""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: N803, PLR0917

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def linear(
    x,
    weight,
    out,
    num_rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    PART: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """x [num_rows, IN] times weight [OUT, IN], transposed, over PART inputs; `out` is [IN // PART, num_rows, OUT]."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = (row < num_rows)[:, None]
    read = tl.minimum(column, OUT - 1)  # what lies past the last output is computed and left out
    inner = tl.program_id(2) * PART + tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.range(0, PART, BLOCK_K, num_stages=STAGES):
        values = tl.load(x + row[:, None] * IN + inner[None, :], mask=is_row, other=0.0)
        weights = tl.load(weight + read[None, :] * IN + inner[:, None])
        total = tl.dot(values, weights, total, input_precision="ieee")
        inner += BLOCK_K
    place = (tl.program_id(2) * num_rows + row[:, None]) * OUT + column[None, :]
    tl.store(out + place, total, mask=is_row & (column < OUT)[None, :])


@triton.jit(do_not_specialize=["num_rows"])
def gated_linear(
    x,
    weight,
    out,
    num_rows,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """silu(x times gate) * (x times up), each transposed; `weight` is [2, OUT, IN], the gate first."""
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = (row < num_rows)[:, None]
    read = tl.minimum(column, OUT - 1)  # what lies past the last output is computed and left out
    inner = tl.arange(0, BLOCK_K)
    gate = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for _ in tl.range(0, IN, BLOCK_K, num_stages=STAGES):
        values = tl.load(x + row[:, None] * IN + inner[None, :], mask=is_row, other=0.0)
        place = weight + read[None, :] * IN + inner[:, None]
        gate = tl.dot(values, tl.load(place), gate, input_precision="ieee")
        up = tl.dot(values, tl.load(place + OUT * IN), up, input_precision="ieee")
        inner += BLOCK_K
    mask = is_row & (column < OUT)[None, :]
    tl.store(out + row[:, None] * OUT + column[None, :], gate / (1.0 + tl.exp(-gate)) * up, mask=mask)
