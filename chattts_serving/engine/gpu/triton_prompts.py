"""Attention within prompts as GPU kernels; wrappers are in `triton_ops`.

Prompts are taken apart into their sequences, so that neighbours change no bit of one, and reach it with no NaN.
"""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: N803, PLR0917

import triton
import triton.language as tl

from chattts_serving.engine.gpu import lanes
from chattts_serving.engine.gpu.triton_attention import LOG2_E, LOWEST, rotated

POSITION = tl.constexpr(lanes.POSITION)
FIRST = tl.constexpr(lanes.FIRST)
CACHE = tl.constexpr(lanes.CACHE)


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
    q = rotated(query_head, cos_row, sin_row, dimension, HEAD_DIM)
    k = rotated(query_head + token_stride, cos_row, sin_row, dimension, HEAD_DIM)
    tl.store(queries + token * token_stride + here, q)
    tl.store(keys + place, k)
    tl.store(values + place, tl.load(query_head + 2 * token_stride + dimension))


@triton.jit(do_not_specialize=["num_tokens"])
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
    BLOCK: tl.constexpr,
):
    """One head of a block of tokens over those before them in the same sequence, from the cache.

    The block's sequences are taken one after another: a token of weight 0 does harm where its value is NaN.
    """
    first_query, head = tl.program_id(0) * BLOCK, tl.program_id(1)
    dimension = tl.arange(0, HEAD_DIM)
    token_stride = HEADS * HEAD_DIM
    query = first_query + tl.arange(0, BLOCK)
    is_query = query < num_tokens
    place = query.to(tl.int64)[:, None] * token_stride + head * HEAD_DIM + dimension[None, :]
    q = tl.load(queries + place, mask=is_query[:, None], other=0.0)
    firsts = tl.load(prompt + query.to(tl.int64) * COLUMNS + FIRST, mask=is_query, other=-1)
    done, last = first_query, tl.minimum(first_query + BLOCK, num_tokens)
    while done < last:
        first = tl.load(prompt + done.to(tl.int64) * COLUMNS + FIRST)
        is_mine = firsts == first
        done += tl.sum(is_mine.to(tl.int32), 0)
        greatest = tl.full([BLOCK], LOWEST, tl.float32)
        weight_sum = tl.zeros([BLOCK], tl.float32)
        value_sum = tl.zeros([BLOCK, HEAD_DIM], tl.float32)
        for offset in range(first, done, BLOCK):
            key = offset + tl.arange(0, BLOCK)
            is_key = key < done
            cached = tl.load(prompt + key.to(tl.int64) * COLUMNS + CACHE, mask=is_key, other=0).to(tl.int64)
            cache_place = cached[:, None] * token_stride + head * HEAD_DIM + dimension[None, :]
            k = tl.load(keys + cache_place, mask=is_key[:, None], other=0.0)
            v = tl.load(values + cache_place, mask=is_key[:, None], other=0.0)
            score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
            mask = is_mine[:, None] & is_key[None, :] & (key[None, :] <= query[:, None])
            score = tl.where(mask, score, LOWEST)
            new_greatest = tl.maximum(greatest, tl.max(score, 1))
            fade = tl.exp2(greatest - new_greatest)
            weight = tl.where(mask, tl.exp2(score - new_greatest[:, None]), 0.0)
            weight_sum = weight_sum * fade + tl.sum(weight, 1)
            value_sum = value_sum * fade[:, None]
            value_sum += tl.dot(weight.to(v.dtype), v, input_precision="ieee")
            greatest = new_greatest
        tl.store(out + place, value_sum / weight_sum[:, None], mask=is_mine[:, None])
