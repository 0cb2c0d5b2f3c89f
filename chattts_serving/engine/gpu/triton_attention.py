"""Attention of a decode step over the cache as GPU kernels; wrappers are in `triton_ops`.

What one program sums, and in which order, follows from its sequence alone: the cache is taken in chunks of a fixed
size. So neighbours change no bit of it, and reach it with no NaN.
"""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: N803, PLR0917

import triton
import triton.language as tl

from chattts_serving.engine.gpu import lanes

START = tl.constexpr(lanes.START)
LENGTH = tl.constexpr(lanes.LENGTH)
TEXT_FIRST = tl.constexpr(lanes.TEXT_FIRST)
TEXT_END = tl.constexpr(lanes.TEXT_END)
LOWEST = tl.constexpr(-1e30)  # below every score; its difference with itself is a number, unlike infinity's
NOWHERE = tl.constexpr(1 << 30)  # behind every token
LOG2_E = tl.constexpr(1.4426950408889634)

# Columns of an entry of the list that `list_chunks` makes.
CHUNK_COLUMNS = tl.constexpr(4)
CHUNK_LANE = tl.constexpr(0)  # -1: the list has ended
CHUNK_START = tl.constexpr(1)  # the slot's first token in the cache
CHUNK_CACHED = tl.constexpr(2)  # tokens of the whole sequence, without the one that is being computed
CHUNK_NUMBER = tl.constexpr(3)  # from 0


@triton.jit(do_not_specialize=["num_lanes"])
def list_chunks(
    state,
    rows,
    chunks,
    firsts,
    num_lanes,
    WIDTH: tl.constexpr,
    CHUNK: tl.constexpr,
    LANES: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """List the chunks of CHUNK cached tokens that a step attends over, lane by lane, at least one of each.

    `chunks` ends with PROGRAMS entries that stop whoever meets them; `firsts` is the first entry of each lane.
    """
    lane = tl.arange(0, LANES)
    is_lane = lane < num_lanes
    record = state + tl.load(rows + lane, mask=is_lane, other=0).to(tl.int64) * WIDTH
    start = tl.load(record + START, mask=is_lane, other=0)
    cached = tl.load(record + LENGTH, mask=is_lane, other=1) - 1
    count = tl.where(is_lane, tl.maximum(tl.cdiv(cached, CHUNK), 1), 0)
    first = tl.cumsum(count, 0) - count
    tl.store(firsts + lane, first, mask=is_lane)
    for number in range(tl.max(count, 0)):
        entry = chunks + (first + number) * CHUNK_COLUMNS
        is_there = number < count
        tl.store(entry + CHUNK_LANE, lane, mask=is_there)
        tl.store(entry + CHUNK_START, start, mask=is_there)
        tl.store(entry + CHUNK_CACHED, cached, mask=is_there)
        tl.store(entry + CHUNK_NUMBER, lane * 0 + number, mask=is_there)
    end = tl.sum(count, 0) + tl.arange(0, PROGRAMS)
    tl.store(chunks + end * CHUNK_COLUMNS + CHUNK_LANE, end * 0 - 1)


@triton.jit
def rotated(vector, cos, sin, dimension, HEAD_DIM: tl.constexpr):
    """`vector` points to heads [..., HEAD_DIM] that `dimension` indexes; with rotary positions applied, float32."""
    is_first = dimension < HEAD_DIM // 2
    partner = tl.where(is_first, dimension + HEAD_DIM // 2, dimension - HEAD_DIM // 2)
    turned = tl.load(vector + partner).to(tl.float32)
    turned = tl.where(is_first, -turned, turned)
    return tl.load(vector + dimension).to(tl.float32) * tl.load(cos + dimension) + turned * tl.load(sin + dimension)


@triton.jit
def _attend_cached(
    q,
    keys,
    values,
    start,
    first,
    end,
    head,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Greatest score, sum of weights and weighted sum of values over tokens `first` to `end - 1` of a slot.

    Each row of a block keeps its own maximum and sums, so that warps meet only once, at the end.
    """
    greatest = tl.full([BLOCK], LOWEST, tl.float32)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    value_sum = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
    within = tl.arange(0, BLOCK)
    dimension = tl.arange(0, HEAD_DIM)
    for offset in tl.range(first, end, BLOCK, num_stages=STAGES):
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
def _merged(partial, first, count, head, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, PARTS: tl.constexpr):
    """What one head attended to in all `count` chunks of a lane, PARTS of them at a time; its entries begin at `first`.

    Of each chunk `attend_lanes` left its greatest score, its sum of weights and its weighted sum of values in
    `partial`, [entries, HEADS, HEAD_DIM + 2] (Dao et al. 2023, Flash-Decoding).
    """
    dimension = tl.arange(0, HEAD_DIM)
    greatest = tl.full([], LOWEST, tl.float32)
    weight_sum = tl.full([], 0.0, tl.float32)
    value_sum = tl.zeros([HEAD_DIM], tl.float32)
    for offset in range(0, count, PARTS):
        part = offset + tl.arange(0, PARTS)
        is_there = part < count
        place = partial + ((first + part).to(tl.int64) * HEADS + head) * (HEAD_DIM + 2)
        best = tl.load(place, mask=is_there, other=LOWEST, cache_modifier=".cg")
        weight = tl.load(place + 1, mask=is_there, other=0.0, cache_modifier=".cg")
        value = tl.load(
            place[:, None] + 2 + dimension[None, :], mask=is_there[:, None], other=0.0, cache_modifier=".cg"
        )
        new_greatest = tl.maximum(greatest, tl.max(best, 0))
        old, new = tl.exp2(greatest - new_greatest), tl.exp2(best - new_greatest)
        weight_sum = weight_sum * old + tl.sum(weight * new, 0)
        value_sum = value_sum * old + tl.sum(value * new[:, None], 0)
        greatest = new_greatest
    return value_sum / weight_sum


@triton.jit
def _attend_chunk(
    qkv,
    lane,
    start,
    cached,
    number,
    entry,
    head,
    keys,
    values,
    cos,
    sin,
    out,
    partial,
    arrived,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One head of a chunk; as `attend_lanes`."""
    dimension = tl.arange(0, HEAD_DIM)
    token_stride: tl.constexpr = HEADS * HEAD_DIM
    first = number * CHUNK
    end = tl.minimum(first + CHUNK, cached)
    query_head = qkv + lane.to(tl.int64) * 3 * token_stride + head * HEAD_DIM
    cos_row, sin_row = cos + cached * HEAD_DIM, sin + cached * HEAD_DIM
    q = rotated(query_head, cos_row, sin_row, dimension, HEAD_DIM) * (scale * LOG2_E)
    best, total, attended = _attend_cached(q, keys, values, start, first, end, head, HEADS, HEAD_DIM, BLOCK, STAGES)
    if number == 0:
        k_head, v_head = query_head + token_stride, query_head + 2 * token_stride
        place = (start + cached) * token_stride + head * HEAD_DIM + dimension
        k_new = rotated(k_head, cos_row, sin_row, dimension, HEAD_DIM).to(keys.dtype.element_ty)
        v_new = tl.load(v_head + dimension)
        tl.store(keys + place, k_new)
        tl.store(values + place, v_new)
        score = tl.sum(q * k_new.to(tl.float32), 0)
        new_best = tl.maximum(best, score)
        fade, weight = tl.exp2(best - new_best), tl.exp2(score - new_best)
        total = total * fade + weight
        attended = attended * fade + weight * v_new.to(tl.float32)
        best = new_best

    place = out + (lane.to(tl.int64) * HEADS + head) * HEAD_DIM + dimension
    if cached <= CHUNK:
        tl.store(place, attended / total)
    else:
        part = partial + (entry.to(tl.int64) * HEADS + head) * (HEAD_DIM + 2)
        tl.store(part, best)
        tl.store(part + 1, total)
        tl.store(part + 2 + dimension, attended)
        if PARTS:
            count = tl.cdiv(cached, CHUNK)
            tl.debug_barrier()  # every warp has written its share of the part before it is counted
            before = tl.atomic_add(arrived + lane * HEADS + head, 1, sem="acq_rel")
            if before == count - 1:
                tl.store(arrived + lane * HEADS + head, 0)
                tl.store(place, _merged(partial, entry - number, count, head, HEADS, HEAD_DIM, PARTS))


@triton.jit
def _look(
    qkv,
    lane,
    start,
    cached,
    head,
    keys,
    cos,
    sin,
    scale,
    text,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The token of a lane's text that one head gives the greatest score, the first of several; `text` is its row."""
    dimension = tl.arange(0, HEAD_DIM)
    token_stride: tl.constexpr = HEADS * HEAD_DIM
    query_head = qkv + lane.to(tl.int64) * 3 * token_stride + head * HEAD_DIM
    cos_row, sin_row = cos + cached * HEAD_DIM, sin + cached * HEAD_DIM
    q = rotated(query_head, cos_row, sin_row, dimension, HEAD_DIM) * (scale * LOG2_E)
    first, end = tl.load(text + TEXT_FIRST), tl.load(text + TEXT_END)
    greatest, look = tl.full([BLOCK], LOWEST, tl.float32), tl.full([BLOCK], NOWHERE, tl.int32)
    for offset in range(first, tl.minimum(end, cached), BLOCK):
        token = offset + tl.arange(0, BLOCK)
        mask = (token < end) & (token < cached)
        place = (start + token)[:, None] * token_stride + head * HEAD_DIM + dimension[None, :]
        k = tl.load(keys + place, mask=mask[:, None], other=0.0).to(tl.float32)
        score = tl.where(mask, tl.sum(q[None, :] * k, 1), LOWEST)
        is_more = score > greatest
        greatest, look = tl.where(is_more, score, greatest), tl.where(is_more, token, look)
    best = tl.max(greatest, 0)
    look = tl.min(tl.where(greatest == best, look, NOWHERE), 0)
    # The new token is not in the cache yet, or only just.
    k_new = rotated(query_head + token_stride, cos_row, sin_row, dimension, HEAD_DIM).to(keys.dtype.element_ty)
    is_new = (cached >= first) & (cached < end) & (tl.sum(q * k_new.to(tl.float32), 0) > best)
    return tl.where(is_new, cached, look)


@triton.jit
def attend_lanes(
    qkv,
    chunks,
    keys,
    values,
    cos,
    sin,
    out,
    partial,
    arrived,
    scale,
    state,
    rows,
    text_heads,
    looks,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TEXT_HEADS: tl.constexpr,
):
    """One head of every so many-th chunk of the list; a lane's chunk 0 also takes the new token and caches it.

    A lane of one chunk is done with it. Of others the parts are left in `partial`, and merged by `merge_parts`; or,
    where PARTS is not 0, by the program that finds in `arrived`, [lanes, HEADS], that it is the last of its lane.

    Where TEXT_HEADS is not 0, programs past HEADS are for the layer's text heads: which head, and its place among so
    many, is in `text_heads`, [.., 2]. They write to `looks`, [lanes, TEXT_HEADS], where it looks in a lane's text.
    """
    head, entry = tl.program_id(0), tl.program_id(1)
    lane = tl.load(chunks + entry * CHUNK_COLUMNS + CHUNK_LANE)
    while lane >= 0:
        record = chunks + entry * CHUNK_COLUMNS
        start = tl.load(record + CHUNK_START).to(tl.int64)
        cached, number = tl.load(record + CHUNK_CACHED), tl.load(record + CHUNK_NUMBER)
        if TEXT_HEADS == 0 or head < HEADS:
            _attend_chunk(
                qkv,
                lane,
                start,
                cached,
                number,
                entry,
                head,
                keys,
                values,
                cos,
                sin,
                out,
                partial,
                arrived,
                scale,
                HEADS,
                HEAD_DIM,
                CHUNK,
                BLOCK,
                STAGES,
                PARTS,
            )
        elif number == 0:
            text_head = text_heads + (head - HEADS) * 2
            text = state + tl.load(rows + lane).to(tl.int64) * WIDTH
            # Blocks of half the size take no more registers than attention does (compiled for sm_90).
            look = _look(
                qkv, lane, start, cached, tl.load(text_head), keys, cos, sin, scale, text, HEADS, HEAD_DIM, BLOCK // 2
            )
            tl.store(looks + lane * TEXT_HEADS + tl.load(text_head + 1), look)
        entry += tl.num_programs(1)
        lane = tl.load(chunks + entry * CHUNK_COLUMNS + CHUNK_LANE)


@triton.jit
def merge_parts(
    partial,
    chunks,
    firsts,
    out,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One head of one lane from what `attend_lanes` left of its chunks, where it has several."""
    head, lane = tl.program_id(0), tl.program_id(1)
    first = tl.load(firsts + lane)
    cached = tl.load(chunks + first * CHUNK_COLUMNS + CHUNK_CACHED)
    if cached > CHUNK:
        merged = _merged(partial, first, tl.cdiv(cached, CHUNK), head, HEADS, HEAD_DIM, PARTS)
        tl.store(out + (lane.to(tl.int64) * HEADS + head) * HEAD_DIM + tl.arange(0, HEAD_DIM), merged)
