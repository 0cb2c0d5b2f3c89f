"""Drawing tokens as GPU kernels, as `sampler` does; wrappers are in `triton_ops`."""

# The language's own conventions: constants of a kernel in capitals, many arguments, no types.
# mypy: ignore-errors
# ruff: noqa: N803, PLR0917

import triton
import triton.language as tl

from chattts_serving.engine import sequence
from chattts_serving.engine.gpu import lanes, sampler

STEP = tl.constexpr(lanes.STEP)
KIND = tl.constexpr(lanes.KIND)
SEED_LOW = tl.constexpr(lanes.SEED_LOW)
SEED_HIGH = tl.constexpr(lanes.SEED_HIGH)
STREAM = tl.constexpr(lanes.STREAM)
MIN_NEW = tl.constexpr(lanes.MIN_NEW)
TOP_K = tl.constexpr(lanes.TOP_K)
TEMPERATURE = tl.constexpr(lanes.TEMPERATURE)
TOP_P = tl.constexpr(lanes.TOP_P)
PENALTY = tl.constexpr(lanes.PENALTY)
TOKENS = tl.constexpr(lanes.TOKENS)
CODES = tl.constexpr(lanes.CODES)
TEXT = tl.constexpr(lanes.TEXT)
PENALTY_WINDOW = tl.constexpr(sampler.PENALTY_WINDOW)
MIN_KEPT = tl.constexpr(sampler.MIN_KEPT)
NO_TOKEN = tl.constexpr(sequence.NO_TOKEN)
LOWEST_ORDER = tl.constexpr(-2147483648)  # below that of every score
NO_CANDIDATE = tl.constexpr(-9223372036854775808)


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
def _keep_orders(
    logits, orders, record, codebook, CODEBOOKS: tl.constexpr, VOCABULARY: tl.constexpr, TILE: tl.constexpr
):
    """Write the order of every token's score to `orders`; the greatest score, and whether all logits are finite."""
    greatest = tl.full([TILE], float("-inf"), tl.float32)
    broken = tl.zeros([TILE], tl.int32)
    for first in range(0, VOCABULARY, TILE):
        token = first + tl.arange(0, TILE)
        is_token = token < VOCABULARY
        logit = tl.load(logits + token, mask=is_token, other=0.0)
        broken |= 1 - (tl.abs(logit) < float("inf")).to(tl.int32)
        score = _penalised(logit, token, record, codebook, CODEBOOKS)
        greatest = tl.maximum(greatest, tl.where(is_token, score, float("-inf")))
        tl.store(orders + token, _order(score), mask=is_token)
    tl.debug_barrier()  # all are written before they are read
    return tl.max(greatest, 0), tl.max(broken, 0) == 0


@triton.jit
def _least_order(orders, greatest, top_k, most, VOCABULARY: tl.constexpr, TILE: tl.constexpr):
    """An order that at least `top_k` tokens reach, and at most `most` where equal scores leave the choice; how many do.

    By bisection, down to the order of the `top_k`-th token if need be.
    """
    low, high = tl.full([], LOWEST_ORDER, tl.int64), _order(greatest).to(tl.int64)
    reached = tl.full([], VOCABULARY, tl.int32)
    while (low < high) & (reached > most):
        middle = (low + high + 1) >> 1
        count = tl.zeros([TILE], tl.int32)
        for first in range(0, VOCABULARY, TILE):
            token = first + tl.arange(0, TILE)
            order = tl.load(orders + token, mask=token < VOCABULARY, other=LOWEST_ORDER)
            count += (order >= middle.to(tl.int32)).to(tl.int32)
        total = tl.sum(count, 0)
        is_reached = total >= top_k
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle - 1)
        reached = tl.where(is_reached, total, reached)
    return low.to(tl.int32), reached


@triton.jit
def _collect(orders, candidates, least, greatest, VOCABULARY: tl.constexpr, TILE: tl.constexpr, MOST: tl.constexpr):
    """Write the first MOST tokens from `least` on to `candidates`; the sum of exp(score - greatest) over all others.

    A candidate is its score by `_order` in the upper and its token in the lower half of an int64.
    """
    rest = tl.zeros([TILE], tl.float32)
    placed = tl.full([], 0, tl.int32)
    for first in range(0, VOCABULARY, TILE):
        token = first + tl.arange(0, TILE)
        is_token = token < VOCABULARY
        order = tl.load(orders + token, mask=is_token, other=LOWEST_ORDER)
        is_candidate = is_token & (order >= least)
        place = placed + tl.cumsum(is_candidate.to(tl.int32), 0) - 1
        placed += tl.sum(is_candidate.to(tl.int32), 0)
        is_candidate &= place < MOST
        tl.store(candidates + place, (order.to(tl.int64) << 32) | token.to(tl.int64), mask=is_candidate)
        rest += tl.where(is_token & ~is_candidate, tl.exp(_score(order) - greatest), 0.0)
    tl.debug_barrier()  # all are written before they are read
    return tl.sum(rest, 0)


@triton.jit
def _draw(candidates, rest, record, codebook, end_token, num_candidates, BLOCK: tl.constexpr):
    """The token drawn from the first `num_candidates` of `candidates`, BLOCK at most, in any order.

    `rest` is the sum of exp(score - greatest score) over all tokens that are no candidates.
    """
    place = tl.arange(0, BLOCK)
    is_candidate = place < num_candidates
    key = tl.sort(tl.load(candidates + place, mask=is_candidate, other=NO_CANDIDATE), descending=True)
    token = (key & 0xFFFFFFFF).to(tl.int32)
    score = tl.where(is_candidate, _score((key >> 32).to(tl.int32)), float("-inf"))
    greatest = tl.max(score, 0)
    weight = tl.exp(score - greatest)
    from_below = (tl.cumsum(weight, 0, reverse=True) + rest) / (tl.sum(weight, 0) + rest)
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
def _sample(
    logits,
    orders,
    candidates,
    record,
    drawn,
    codebook,
    end_token,
    CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TILE: tl.constexpr,
    FEW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Draw a token and keep it. What top-k keeps is selected, and sorted as FEW where it is no more, else as MOST.

    Args:
        logits: float32 [VOCABULARY].
        orders: scratch, int32 [VOCABULARY].
        candidates: scratch, int64 [MOST].
        record: the lane's row.
        drawn: where the host finds the token, or that there is none.
        codebook: whose token it is.
        end_token: banned before the lane's MIN_NEW.
    """
    greatest, is_sound = _keep_orders(logits, orders, record, codebook, CODEBOOKS, VOCABULARY, TILE)
    top_k = tl.minimum(tl.maximum(tl.load(record + TOP_K), MIN_KEPT), VOCABULARY)
    least, count = _least_order(orders, greatest, top_k, tl.where(top_k <= FEW, FEW, MOST), VOCABULARY, TILE)
    rest = _collect(orders, candidates, least, greatest, VOCABULARY, TILE, MOST)
    if count <= FEW:
        token = _draw(candidates, rest, record, codebook, end_token, count, FEW)
    else:
        token = _draw(candidates, rest, record, codebook, end_token, tl.minimum(count, MOST), MOST)
    tl.store(drawn, tl.where(is_sound, token, NO_TOKEN))
    token = tl.where(is_sound, token, 0)  # one that the next step can compute
    tl.debug_barrier()  # the history was read by every warp
    tl.store(record + TOKENS + codebook, token)
    tl.store(record + TOKENS + CODEBOOKS * (1 + tl.load(record + STEP) % PENALTY_WINDOW) + codebook, token)


@triton.jit
def sample_codes(
    logits,
    state,
    rows,
    drawn,
    orders,
    candidates,
    WIDTH: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TILE: tl.constexpr,
    FEW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Draw one codebook's token for one lane, where the lane draws codes."""
    lane, codebook = tl.program_id(0).to(tl.int64), tl.program_id(1)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    place = lane * CODEBOOKS + codebook
    if tl.load(record + KIND) == CODES:
        _sample(
            logits + place * VOCABULARY,
            orders + place * VOCABULARY,
            candidates + place * MOST,
            record,
            drawn + place,
            codebook,
            VOCABULARY - 1,
            CODEBOOKS,
            VOCABULARY,
            TILE,
            FEW,
            MOST,
        )


@triton.jit(do_not_specialize=["end_token"])
def sample_text(
    logits,
    state,
    rows,
    drawn,
    orders,
    candidates,
    end_token,
    WIDTH: tl.constexpr,
    CODEBOOKS: tl.constexpr,
    VOCABULARY: tl.constexpr,
    TILE: tl.constexpr,
    FEW: tl.constexpr,
    MOST: tl.constexpr,
):
    """Draw one lane's token, where the lane draws text."""
    lane = tl.program_id(0).to(tl.int64)
    record = state + tl.load(rows + lane).to(tl.int64) * WIDTH
    if tl.load(record + KIND) == TEXT:
        _sample(
            logits + lane * VOCABULARY,
            orders + lane * VOCABULARY,
            candidates + lane * MOST,
            record,
            drawn + lane * CODEBOOKS,
            tl.program_id(0) * 0,
            end_token,
            CODEBOOKS,
            VOCABULARY,
            TILE,
            FEW,
            MOST,
        )
