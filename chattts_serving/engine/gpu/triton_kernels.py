"""The small GPU kernels of a step, in the Triton language (Tillet et al. 2019). Wrappers are in `triton_ops`.

`triton_attention` and `triton_sampling` have the others.
Sums are float32, whatever tensors hold. A program that writes what it also reads reads all of it first.
"""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: D103, N803, PLR0917

import triton
import triton.language as tl

from chattts_serving.engine.gpu import lanes

START = tl.constexpr(lanes.START)
LENGTH = tl.constexpr(lanes.LENGTH)
STEP = tl.constexpr(lanes.STEP)
KIND = tl.constexpr(lanes.KIND)
INPUT = tl.constexpr(lanes.INPUT)
TOKENS = tl.constexpr(lanes.TOKENS)
CACHE = tl.constexpr(lanes.CACHE)
SPEAKER_ROW = tl.constexpr(lanes.SPEAKER_ROW)
PROMPT_INPUT = tl.constexpr(lanes.PROMPT_INPUT)
PROMPT_TOKENS = tl.constexpr(lanes.PROMPT_TOKENS)
CODES = tl.constexpr(lanes.CODES)
TEXT = tl.constexpr(lanes.TEXT)


@triton.jit
def rms_norm(x, weight, normed, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    tl.store(normed + row + column, value * scale * tl.load(weight + column, mask=mask, other=0.0), mask=mask)


@triton.jit
def add_rms_norm(x, delta, weight, total, normed, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """`delta` is [PARTS, rows, HIDDEN]."""
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        place = part * tl.num_programs(0).to(tl.int64) * HIDDEN + row + column
        value += tl.load(delta + place, mask=mask, other=0.0).to(tl.float32)
    rounded = value.to(total.dtype.element_ty)
    tl.store(total + row + column, rounded, mask=mask)
    value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    tl.store(normed + row + column, value * scale * tl.load(weight + column, mask=mask, other=0.0), mask=mask)


@triton.jit
def silu_mul(gate_up, out, INTERMEDIATE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = column < INTERMEDIATE
    gate = tl.load(gate_up + row * 2 * INTERMEDIATE + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * INTERMEDIATE + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * INTERMEDIATE + column, gate / (1.0 + tl.exp(-gate)) * up, mask=mask)


@triton.jit
def _embedding(kind, tokens, speaker, text_table, code_table, column, mask, HIDDEN, CODEBOOKS, CODES_IN_BOOK):
    """The embedding of one token, float32 [BLOCK]; `tokens` points to its ids, `speaker` to its speaker's vector."""
    value = tl.zeros_like(column).to(tl.float32)
    if kind == CODES:
        for codebook in tl.static_range(CODEBOOKS):
            place = (tl.load(tokens + codebook) + codebook * CODES_IN_BOOK).to(tl.int64)
            value += tl.load(code_table + place * HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    elif kind == TEXT:
        place = tl.load(tokens).to(tl.int64)
        value += tl.load(text_table + place * HIDDEN + column, mask=mask, other=0.0).to(tl.float32)
    else:
        value += tl.load(speaker + column, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def embed_prompt(
    prompt,
    speakers,
    text_table,
    code_table,
    out,
    COLUMNS: tl.constexpr,
    HIDDEN: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    CODES_IN_BOOK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    record = prompt + token * COLUMNS
    speaker = speakers + tl.load(record + SPEAKER_ROW).to(tl.int64) * HIDDEN
    value = _embedding(
        tl.load(record + PROMPT_INPUT),
        record + PROMPT_TOKENS,
        speaker,
        text_table,
        code_table,
        column,
        mask,
        HIDDEN,
        CODEBOOKS,
        CODES_IN_BOOK,
    )
    tl.store(out + token * HIDDEN + column, value, mask=mask)


@triton.jit(do_not_specialize=["unused_row"])
def embed_lanes(
    state,
    rows,
    speakers,
    text_table,
    code_table,
    out,
    unused_row,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    CODES_IN_BOOK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    row = tl.load(rows + lane).to(tl.int64)
    record = state + row * WIDTH
    kind = tl.load(record + KIND)
    length, step = tl.load(record + LENGTH), tl.load(record + STEP)
    value = _embedding(
        tl.load(record + INPUT),
        record + TOKENS,
        speakers + row * HIDDEN,
        text_table,
        code_table,
        column,
        mask,
        HIDDEN,
        CODEBOOKS,
        CODES_IN_BOOK,
    )
    tl.store(out + lane * HIDDEN + column, value, mask=mask)
    tl.debug_barrier()  # every warp has read the row before one writes it
    is_used = row != unused_row
    tl.store(record + LENGTH, length + 1, mask=is_used)
    tl.store(record + STEP, step + 1, mask=is_used)
    tl.store(record + INPUT, kind, mask=is_used)


@triton.jit
def store_prompt(hidden, prompt, kept, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    place = tl.load(prompt + token * COLUMNS + CACHE).to(tl.int64) * HIDDEN
    tl.store(kept + place + column, tl.load(hidden + token * HIDDEN + column, mask=mask), mask=mask)


@triton.jit
def store_lanes(hidden, state, rows, kept, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    token = tl.load(record + START).to(tl.int64) + tl.load(record + LENGTH) - 1
    tl.store(kept + token * HIDDEN + column, tl.load(hidden + lane * HIDDEN + column, mask=mask), mask=mask)
