"""The GPU kernels of a step, in the Triton language (Tillet et al. 2019). Wrappers are in `triton_ops`.

Sums are float32, whatever tensors hold. A program that writes what it also reads reads all of it first.
"""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: D103, N803, PLR0917

import triton
import triton.language as tl

from chattts_serving.engine import sequence
from chattts_serving.engine.gpu import lanes, sampler

START = tl.constexpr(lanes.START)
LENGTH = tl.constexpr(lanes.LENGTH)
STEP = tl.constexpr(lanes.STEP)
KIND = tl.constexpr(lanes.KIND)
INPUT = tl.constexpr(lanes.INPUT)
SEED_LOW = tl.constexpr(lanes.SEED_LOW)
SEED_HIGH = tl.constexpr(lanes.SEED_HIGH)
STREAM = tl.constexpr(lanes.STREAM)
MIN_NEW = tl.constexpr(lanes.MIN_NEW)
TOP_K = tl.constexpr(lanes.TOP_K)
TEMPERATURE = tl.constexpr(lanes.TEMPERATURE)
TOP_P = tl.constexpr(lanes.TOP_P)
PENALTY = tl.constexpr(lanes.PENALTY)
TOKENS = tl.constexpr(lanes.TOKENS)
POSITION = tl.constexpr(lanes.POSITION)
FIRST = tl.constexpr(lanes.FIRST)
CACHE = tl.constexpr(lanes.CACHE)
SPEAKER_ROW = tl.constexpr(lanes.SPEAKER_ROW)
PROMPT_INPUT = tl.constexpr(lanes.PROMPT_INPUT)
PROMPT_TOKENS = tl.constexpr(lanes.PROMPT_TOKENS)
CODES = tl.constexpr(lanes.CODES)
TEXT = tl.constexpr(lanes.TEXT)
PENALTY_WINDOW = tl.constexpr(sampler.PENALTY_WINDOW)
MIN_KEPT = tl.constexpr(sampler.MIN_KEPT)
NO_TOKEN = tl.constexpr(sequence.NO_TOKEN)
LOWEST = tl.constexpr(-1e30)  # below every score; its difference with itself is a number, unlike infinity's
LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def rms_norm(x, weight, normed, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    tl.store(normed + row + column, value * scale * tl.load(weight + column, mask=mask, other=0.0), mask=mask)


@triton.jit
def add_rms_norm(x, delta, weight, total, normed, eps, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    value = tl.load(x + row + column, mask=mask, other=0.0).to(tl.float32)
    value += tl.load(delta + row + column, mask=mask, other=0.0).to(tl.float32)
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


@triton.jit
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
def store_lanes(hidden, state, rows, kept, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    token = tl.load(record + START).to(tl.int64) + tl.load(record + LENGTH) - 1
    tl.store(kept + token * HIDDEN + column, tl.load(hidden + lane * HIDDEN + column, mask=mask), mask=mask)


@triton.jit
def _rotated(vector, cos, sin, dimension, HEAD_DIM: tl.constexpr):
    """`vector` points to heads [..., HEAD_DIM] that `dimension` indexes; with rotary positions applied, float32."""
    is_first = dimension < HEAD_DIM // 2
    partner = tl.where(is_first, dimension + HEAD_DIM // 2, dimension - HEAD_DIM // 2)
    turned = tl.load(vector + partner).to(tl.float32)
    turned = tl.where(is_first, -turned, turned)
    return tl.load(vector + dimension).to(tl.float32) * tl.load(cos + dimension) + turned * tl.load(sin + dimension)


@triton.jit
def _attend_cached(
    q, keys, values, start, first, end, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """Greatest score, sum of weights and weighted sum of values over tokens `first` to `end - 1` of a slot.

    Each row of a block keeps its own maximum and sums, so that warps meet only once, at the end.
    """
    greatest = tl.full([BLOCK], LOWEST, tl.float32)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    value_sum = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    within = tl.arange(0, BLOCK)
    dimension = tl.arange(0, HEAD_DIM)
    for offset in range(first, end, BLOCK):
        mask = offset + within < end
        place = (start + offset + within)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + dimension[None, :]
        k = tl.load(keys + place, mask=mask[:, None], other=0.0).to(tl.float32)
        v = tl.load(values + place, mask=mask[:, None], other=0.0).to(tl.float32)
        score = tl.where(mask, tl.sum(q[None, :] * k, 1), LOWEST)
        new_greatest = tl.maximum(greatest, score)
        fade = tl.exp2(greatest - new_greatest)
        weight = tl.where(mask, tl.exp2(score - new_greatest), 0.0)
        weight_sum = weight_sum * fade + weight
        value_sum = value_sum * fade[:, None] + weight[:, None] * v
        greatest = new_greatest
    best = tl.max(greatest, 0)
    fade = tl.exp2(greatest - best)
    return best, tl.sum(weight_sum * fade, 0), tl.sum(value_sum * fade[:, None], 0)


@triton.jit
def attend_lanes(
    qkv,
    state,
    rows,
    keys,
    values,
    cos,
    sin,
    out,
    partial,
    scale,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One head of one lane over one part of its cache; part 0 also takes the new token and writes it to the cache.

    With several parts, each leaves its greatest score, its sum of weights and its weighted sum of values in `partial`,
    [lanes, HEADS, SPLITS, HEAD_DIM + 2], for `merge_parts` (Dao et al. 2023, Flash-Decoding).
    """
    lane, head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    start = tl.load(record + START).to(tl.int64)
    cached = tl.load(record + LENGTH) - 1
    chunk = _chunk(cached, BLOCK, SPLITS)
    first = part * chunk
    if (part == 0) | (first < cached):
        end = tl.minimum(first + chunk, cached)
        dimension = tl.arange(0, HEAD_DIM)
        token_stride = HEADS * HEAD_DIM
        query_head = qkv + lane * 3 * token_stride + head * HEAD_DIM
        cos_row, sin_row = cos + cached * HEAD_DIM, sin + cached * HEAD_DIM
        q = _rotated(query_head, cos_row, sin_row, dimension, HEAD_DIM) * (scale * LOG2_E)

        best, total, attended = _attend_cached(q, keys, values, start, first, end, head, HEADS, HEAD_DIM, BLOCK)
        if part == 0:
            k_head, v_head = query_head + token_stride, query_head + 2 * token_stride
            place = (start + cached) * token_stride + head * HEAD_DIM + dimension
            k_new = _rotated(k_head, cos_row, sin_row, dimension, HEAD_DIM).to(keys.dtype.element_ty)
            v_new = tl.load(v_head + dimension)
            tl.store(keys + place, k_new)
            tl.store(values + place, v_new)
            score = tl.sum(q * k_new.to(tl.float32), 0)
            new_best = tl.maximum(best, score)
            fade, weight = tl.exp2(best - new_best), tl.exp2(score - new_best)
            total = total * fade + weight
            attended = attended * fade + weight * v_new.to(tl.float32)
            best = new_best

        if SPLITS == 1:
            tl.store(out + lane * token_stride + head * HEAD_DIM + dimension, attended / total)
        else:
            place = partial + ((lane * HEADS + head) * SPLITS + part) * (HEAD_DIM + 2)
            tl.store(place, best)
            tl.store(place + 1, total)
            tl.store(place + 2 + dimension, attended)


@triton.jit
def _chunk(cached, BLOCK: tl.constexpr, SPLITS: tl.constexpr):
    """Cached tokens of one part: whole blocks, at least one."""
    return tl.maximum(tl.cdiv(tl.cdiv(cached, SPLITS), BLOCK), 1) * BLOCK


@triton.jit
def merge_parts(
    partial,
    state,
    rows,
    out,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """One head of one lane from what `attend_lanes` left of its parts."""
    lane, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    cached = tl.load(record + LENGTH) - 1
    chunk = _chunk(cached, BLOCK, SPLITS)
    part = tl.arange(0, SPLITS)
    dimension = tl.arange(0, HEAD_DIM)
    is_there = (part == 0) | (part * chunk < cached)
    place = partial + ((lane * HEADS + head) * SPLITS + part) * (HEAD_DIM + 2)
    greatest = tl.load(place, mask=is_there, other=LOWEST)
    fade = tl.exp2(greatest - tl.max(greatest, 0))
    total = tl.sum(tl.load(place + 1, mask=is_there, other=0.0) * fade, 0)
    attended = tl.load(place[:, None] + 2 + dimension[None, :], mask=is_there[:, None], other=0.0)
    attended = tl.sum(attended * fade[:, None], 0) / total
    tl.store(out + (lane * HEADS + head) * HEAD_DIM + dimension, attended)


@triton.jit
def cache_prompt(
    qkv,
    prompt,
    keys,
    values,
    cos,
    sin,
    queries,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Rotate one head of one token; key and value go to the cache, the query to `queries` [tokens, HEADS, HEAD_DIM]."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    record = prompt + token * COLUMNS
    position = tl.load(record + POSITION)
    dimension = tl.arange(0, HEAD_DIM)
    token_stride = HEADS * HEAD_DIM
    cos_row, sin_row = cos + position * HEAD_DIM, sin + position * HEAD_DIM
    query_head = qkv + token * 3 * token_stride + head * HEAD_DIM
    here = head * HEAD_DIM + dimension
    place = tl.load(record + CACHE).to(tl.int64) * token_stride + here
    q = _rotated(query_head, cos_row, sin_row, dimension, HEAD_DIM)
    k = _rotated(query_head + token_stride, cos_row, sin_row, dimension, HEAD_DIM)
    tl.store(queries + token * token_stride + here, q)
    tl.store(keys + place, k)
    tl.store(values + place, tl.load(query_head + 2 * token_stride + dimension))


@triton.jit
def attend_prompt(
    queries,
    prompt,
    keys,
    values,
    out,
    num_tokens,
    scale,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One head of a block of tokens over those before them in the same sequence, from the cache."""
    first_query, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1)
    dimension = tl.arange(0, HEAD_DIM)
    token_stride = HEADS * HEAD_DIM
    query = first_query + tl.arange(0, BLOCK_Q)
    is_query = query < num_tokens
    # Queries past the end see themselves alone, which keeps their sums above 0.
    first = tl.load(prompt + query.to(tl.int64) * COLUMNS + FIRST, mask=is_query, other=0)
    first = tl.where(is_query, first, query)
    place = query.to(tl.int64)[:, None] * token_stride + head * HEAD_DIM + dimension[None, :]
    q = tl.load(queries + place, mask=is_query[:, None], other=0.0)
    greatest = tl.full([BLOCK_Q], LOWEST, tl.float32)
    weight_sum = tl.zeros([BLOCK_Q], tl.float32)
    value_sum = tl.zeros([BLOCK_Q, HEAD_DIM], tl.float32)
    for offset in range(tl.min(first, 0) // BLOCK_K * BLOCK_K, first_query + BLOCK_Q, BLOCK_K):
        key = offset + tl.arange(0, BLOCK_K)
        is_key = key < num_tokens
        cached = tl.load(prompt + key.to(tl.int64) * COLUMNS + CACHE, mask=is_key, other=0).to(tl.int64)
        cache_place = cached[:, None] * token_stride + head * HEAD_DIM + dimension[None, :]
        k = tl.load(keys + cache_place, mask=is_key[:, None], other=0.0)
        v = tl.load(values + cache_place, mask=is_key[:, None], other=0.0)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        mask = (key[None, :] >= first[:, None]) & (key[None, :] <= query[:, None])
        score = tl.where(mask, score, LOWEST)
        new_greatest = tl.maximum(greatest, tl.max(score, 1))
        fade = tl.exp2(greatest - new_greatest)
        weight = tl.where(mask, tl.exp2(score - new_greatest[:, None]), 0.0)
        weight_sum = weight_sum * fade + tl.sum(weight, 1)
        value_sum = value_sum * fade[:, None]
        value_sum += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        greatest = new_greatest
    tl.store(out + place, value_sum / weight_sum[:, None], mask=is_query[:, None])


@triton.jit
def store_prompt(hidden, prompt, kept, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < HIDDEN
    place = tl.load(prompt + token * COLUMNS + CACHE).to(tl.int64) * HIDDEN
    tl.store(kept + place + column, tl.load(hidden + token * HIDDEN + column, mask=mask), mask=mask)


@triton.jit
def _as_float(record, COLUMN: tl.constexpr):
    return tl.load(record + COLUMN).to(tl.float32, bitcast=True)


@triton.jit
def _order(score):
    """Integers in the order of float32 scores."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)  # + 0: -0 and 0 are equal
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _score(order):
    """The scores that `_order` made integers of."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def _penalised(logit, token, record, codebook, CODEBOOKS: tl.constexpr):
    """Logits of `token` with temperature and repetition penalty, as `sampler` has them."""
    score = logit / _as_float(record, TEMPERATURE)
    penalty = _as_float(record, PENALTY)
    factor = tl.zeros_like(score) + 1.0
    for back in tl.static_range(PENALTY_WINDOW):
        recent = tl.load(record + TOKENS + CODEBOOKS * (1 + back) + codebook)
        factor = tl.where(token == recent, factor * penalty, factor)
    return tl.where(score < 0, score * factor, score / factor)


@triton.jit
def _draw(key, mass, record, codebook, end_token, num_candidates, BLOCK: tl.constexpr):
    """The token drawn from candidates.

    Args:
        key: scores by `_order` in the upper and tokens in the lower half, int64 [BLOCK], any order; padding is lowest.
        mass: the sum of exp(score - greatest score) over the vocabulary, or 0 when every token is a candidate.
        num_candidates: how many of `key` are no padding.
    """
    key = tl.sort(key, descending=True)
    place = tl.arange(0, BLOCK)
    is_candidate = place < num_candidates
    token = (key & 0xFFFFFFFF).to(tl.int32)
    score = tl.where(is_candidate, _score((key >> 32).to(tl.int32)), float("-inf"))
    greatest = tl.max(score, 0)
    weight = tl.exp(score - greatest)
    listed = tl.sum(weight, 0)
    rest = tl.where(mass > 0, mass - listed, 0.0)  # what lies below every candidate
    from_below = (tl.cumsum(weight, 0, reverse=True) + rest) / (listed + rest)
    top_p = (1.0 - _as_float(record, TOP_P).to(tl.float64)).to(tl.float32)
    score = tl.where((from_below <= top_p) & (place >= MIN_KEPT), float("-inf"), score)
    last = tl.minimum(tl.maximum(tl.load(record + TOP_K), MIN_KEPT), num_candidates) - 1
    least = tl.max(tl.where(place == last, score, float("-inf")), 0)
    score = tl.where(score < least, float("-inf"), score)
    step = tl.load(record + STEP)
    is_banned = step < tl.load(record + MIN_NEW)
    score = tl.where((token == end_token) & is_banned, float("-inf"), score)

    weight = tl.exp(score - tl.max(score, 0))
    cumulative = tl.cumsum((weight / tl.sum(weight, 0)).to(tl.float64), 0)
    total = tl.max(cumulative, 0)
    low, high = tl.load(record + SEED_LOW).to(tl.uint32, bitcast=True), tl.load(record + SEED_HIGH)
    seed = (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint64)
    counter = step.to(tl.uint32, bitcast=True)
    stream = tl.load(record + STREAM).to(tl.uint32, bitcast=True)
    random, _, _, _ = tl.philox(seed, counter, codebook.to(tl.uint32), stream, counter * 0)
    uniform = random.to(tl.float64) / 4294967296.0
    drawn = tl.sum((cumulative <= uniform * total).to(tl.int32), 0)
    last_possible = tl.sum((cumulative < total).to(tl.int32), 0)  # rounding must not lead past it
    return tl.sum(tl.where(place == tl.minimum(drawn, last_possible), token, 0), 0)


@triton.jit
def _are_finite(logit, BLOCK: tl.constexpr):
    return tl.sum((tl.abs(logit) < float("inf")).to(tl.int32), 0) == BLOCK


@triton.jit
def _keep_drawn(token, is_sound, record, drawn, codebook, CODEBOOKS: tl.constexpr):
    """Keep `token`; where it `is_sound` not, tell so in `drawn`, and keep one that the next step can compute."""
    step = tl.load(record + STEP)
    tl.store(drawn + codebook, tl.where(is_sound, token, NO_TOKEN))
    token = tl.where(is_sound, token, 0)
    tl.debug_barrier()  # the history was read by every warp
    tl.store(record + TOKENS + codebook, token)
    tl.store(record + TOKENS + CODEBOOKS * (1 + step % PENALTY_WINDOW) + codebook, token)


@triton.jit
def sample_codes(
    logits,
    state,
    rows,
    drawn,
    WIDTH: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Draw one codebook's token for one lane, where the lane draws codes."""
    lane, codebook = tl.program_id(0).to(tl.int64), tl.program_id(1)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    if tl.load(record + KIND) == CODES:
        token = tl.arange(0, BLOCK)
        is_token = token < VOCABULARY
        logit = tl.load(logits + (lane * CODEBOOKS + codebook) * VOCABULARY + token, mask=is_token, other=0.0)
        score = _penalised(logit, token, record, codebook, CODEBOOKS)
        order = tl.where(is_token, _order(score), -2147483648)
        key = (order.to(tl.int64) << 32) | token.to(tl.int64)
        chosen = _draw(key, 0.0, record, codebook, VOCABULARY - 1, VOCABULARY, BLOCK)
        _keep_drawn(chosen, _are_finite(logit, BLOCK), record, drawn + lane * CODEBOOKS, codebook, CODEBOOKS)


@triton.jit
def _order_of_kth(order, k):
    """The `k`-th greatest of `order`, int32 [BLOCK], by bisection: the greatest value that `k` of them reach."""
    low, high = tl.full([], -2147483648, tl.int64), tl.full([], 2147483647, tl.int64)
    for _ in range(32):
        middle = (low + high + 1) >> 1
        is_reached = tl.sum((order >= middle.to(tl.int32)).to(tl.int32), 0) >= k
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle - 1)
    return low.to(tl.int32)


@triton.jit
def sample_text(
    logits,
    state,
    rows,
    drawn,
    candidates,
    end_token,
    WIDTH: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Draw one lane's token, where the lane draws text.

    Only what top-k keeps is sorted; it is collected in `candidates`, [lanes, 2, CANDIDATES].
    """
    lane = tl.program_id(0).to(tl.int64)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    if tl.load(record + KIND) == TEXT:
        token = tl.arange(0, BLOCK)
        is_token = token < VOCABULARY
        logit = tl.load(logits + lane * VOCABULARY + token, mask=is_token, other=0.0)
        is_sound = _are_finite(logit, BLOCK)
        score = _penalised(logit, token, record, 0, CODEBOOKS)
        order = tl.where(is_token, _order(score), -2147483648)
        greatest = tl.max(tl.where(is_token, score, float("-inf")), 0)
        mass = tl.sum(tl.where(is_token, tl.exp(score - greatest), 0.0), 0)
        top_k = tl.minimum(tl.maximum(tl.load(record + TOP_K), MIN_KEPT), CANDIDATES)
        is_candidate = order >= _order_of_kth(order, tl.minimum(top_k, VOCABULARY))
        place = tl.cumsum(is_candidate.to(tl.int32), 0) - 1
        is_candidate &= place < CANDIDATES
        candidates += lane * 2 * CANDIDATES
        tl.store(candidates + place, order, mask=is_candidate)
        tl.store(candidates + CANDIDATES + place, token, mask=is_candidate)
        tl.debug_barrier()  # all candidates are written before they are read
        num_candidates = tl.minimum(tl.max(place, 0) + 1, CANDIDATES)
        place = tl.arange(0, CANDIDATES)
        order = tl.load(candidates + place, mask=place < num_candidates, other=-2147483648)
        token = tl.load(candidates + CANDIDATES + place, mask=place < num_candidates, other=0)
        key = (order.to(tl.int64) << 32) | token.to(tl.int64)
        chosen = _draw(key, mass, record, tl.program_id(0) * 0, end_token, num_candidates, CANDIDATES)
        _keep_drawn(chosen, is_sound, record, drawn + lane * CODEBOOKS, 0, CODEBOOKS)
