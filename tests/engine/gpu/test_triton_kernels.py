"""The GPU kernels in Triton's interpreter, on the CPU, against the same operations in PyTorch.

The interpreter has to be chosen before Triton is imported, so one test runs the others in a process of their own.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from chattts_serving.engine.gpt_config import GPTConfig, TextHead, weight_shapes
from chattts_serving.engine.gpu import lanes
from chattts_serving.engine.gpu.gpt import DTYPES, GPT
from chattts_serving.engine.gpu.sampler import PENALTY_WINDOW
from chattts_serving.engine.gpu.torch_ops import Buffers, TorchOps
from chattts_serving.engine.gpu.variants import Variant
from chattts_serving.engine.sequence import NO_TOKEN
from tests.engine.models import CONFIG, random_engine
from tests.engine.test_engine import alone, check_equal, mixed_sequences

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs where Triton's interpreter was chosen")

HEADS = replace(
    CONFIG,
    hidden_size=96,
    num_heads=3,
    num_layers=1,
    max_position_embeddings=512,
    text_heads=(TextHead(0, 2, 0), TextHead(0, 0, 1)),
)
CACHE_TOKENS = 900


@pytest.fixture(scope="module", autouse=INTERPRETED)
def quick_interpreter():
    from tests.engine.gpu.interpreter import hasten  # noqa: PLC0415  # imports Triton

    with pytest.MonkeyPatch.context() as patch:
        hasten(patch)
        yield


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="is what starts the interpreter")
def test_kernels_in_the_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning", __file__],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def random_model(config, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in weight_shapes(config).items()}
    model = GPT(config, weights, torch.device("cpu"))
    model.dtype = dtype
    model.embed_table = {name: table.to(dtype) for name, table in model.embed_table.items()}
    return model


def random_lanes(config, lengths, seed=0, **columns):
    """State of a lane for each of `lengths`, slots apart; `columns` overwrites by name. Unused is the last row."""
    rng = np.random.default_rng(seed)
    state = np.tile(lanes.unused_row(config.num_codebooks, CACHE_TOKENS), (len(lengths) + 1, 1))
    state[:-1, lanes.START] = np.cumsum([0, *lengths[:-1]])
    state[:-1, lanes.LENGTH] = lengths
    state[:-1, lanes.STEP] = rng.integers(0, 40, len(lengths))
    state[:-1, lanes.TOKENS :] = rng.integers(0, config.num_audio_tokens, state[:-1, lanes.TOKENS :].shape)
    for name, values in columns.items():
        column = np.asarray(values)
        bits = column if column.dtype.kind in "iu" else column.astype(np.float32).view(np.int32)
        state[:-1, getattr(lanes, name)] = bits
    return torch.from_numpy(state)


def noise(*shape, seed=2):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def begin(kernels, reference, num_lanes):
    """Begin a step, at the lengths that the lanes have."""
    for ops in (kernels, reference):
        ops._buffers.state[:-1, lanes.LENGTH] -= 1
        ops.embed_lanes(num_lanes)


def both(model, state, num_lanes, variant=None):
    """The operations in PyTorch and as kernels, each on buffers of their own with equal random content."""
    from chattts_serving.engine.gpu.triton_ops import TritonOps  # noqa: PLC0415  # the interpreter is chosen by now

    config, generator = model.config, torch.Generator().manual_seed(1)

    def content(*shape):
        return torch.randn(shape, generator=generator).to(model.dtype)

    cache = (config.num_layers, CACHE_TOKENS + 1, config.num_heads, config.head_dim)
    rows = torch.full((num_lanes,), len(state) - 1, dtype=torch.int32)
    rows[: len(state) - 1] = torch.arange(len(state) - 1).flip(0)
    drawn = torch.full((num_lanes, config.num_codebooks), -7, dtype=torch.int32)
    hidden = content(CACHE_TOKENS + 1, config.hidden_size)
    keys, values = content(*cache), content(*cache)
    looks = torch.full((num_lanes, len(config.text_heads)), -7, dtype=torch.int32)
    buffers = Buffers(state, rows, content(len(state), config.hidden_size), keys, values, hidden, drawn, looks)
    copy = Buffers(*(tensor.clone() for tensor in vars(buffers).values()))
    return TorchOps(model, buffers), TritonOps(model, copy, variant), buffers, copy


def check_close(found, expected, dtype):
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance, equal_nan=True)


def check_buffers(found, expected, dtype):
    """All but the last token of the cache and the last row, where unused lanes write."""
    for name in ("state", "rows", "drawn"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    for name in ("keys", "values"):
        check_close(getattr(found, name)[:, :-1], getattr(expected, name)[:, :-1], dtype)
    check_close(found.hidden[:-1], expected.hidden[:-1], dtype)


VARIANTS = [Variant(cache_chunk=32), Variant(cache_chunk=64, cache_stages=2, merge_in_place=True)]


@in_the_interpreter
@pytest.mark.parametrize(
    ("num_lanes", "variant", "dtype"),
    [(6, VARIANTS[0], torch.float32), (6, VARIANTS[1], torch.bfloat16), (70, Variant(), torch.float16)],
)
def test_attention_over_ragged_lengths(num_lanes, variant, dtype):
    """Lengths around blocks and chunks; all lanes but six are unused. Each variant attends twice."""
    model = random_model(HEADS, dtype)
    state = random_lanes(HEADS, [1, 2, 32, 33, 66, 300])
    reference, kernels, expected, found = both(model, state, num_lanes, variant)
    begin(kernels, reference, num_lanes)
    for seed in range(2):
        qkv = noise(num_lanes, 3 * HEADS.hidden_size, seed=seed).to(dtype)
        check_close(kernels.attend_lanes(0, qkv)[:6], reference.attend_lanes(0, qkv)[:6], dtype)
    check_buffers(found, expected, dtype)


TEXTS = {1: (0, 1), 20: (2, 9), 66: (20, 61), 70: (0, 0), 128: (30, 34), 290: (5, 280), 300: (290, 300)}  # by length


@in_the_interpreter
@pytest.mark.parametrize(
    ("variant", "dtype"),
    [(VARIANTS[0], torch.float32), (VARIANTS[1], torch.bfloat16), (Variant(), torch.float16)],
)
def test_text_heads_look_where_their_scores_are_highest(variant, dtype):
    """At texts in one chunk, in several, up to the token that is computed, and none; no bit of all else changes."""
    first, end = zip(*TEXTS.values(), strict=True)
    state = random_lanes(HEADS, [*TEXTS], TEXT_FIRST=first, TEXT_END=end)
    reference, kernels, expected, found = both(random_model(HEADS, dtype), state, 8, variant)
    begin(kernels, reference, 8)
    qkv = noise(8, 3 * HEADS.hidden_size).to(dtype)
    plain = kernels.attend_lanes(0, qkv)
    assert (found.looks == -7).all()  # unasked, nothing is noted
    assert torch.equal(kernels.attend_lanes(0, qkv, watch=True)[:7], plain[:7])
    reference.attend_lanes(0, qkv, watch=True)
    watched = [lane for lane, row in enumerate(found.rows[:7].tolist()) if first[row] < end[row]]
    assert len(watched) == 6
    assert torch.equal(found.looks[watched], expected.looks[watched])
    assert len(expected.looks[watched].unique()) > 6
    check_buffers(found, expected, dtype)


@in_the_interpreter
@pytest.mark.parametrize("variant", VARIANTS)
def test_of_equal_scores_the_first_token_is_looked_at(variant):
    """In a block, in another block of the chunk, in another chunk of the lane, and with the token that is computed."""
    length, equals = 150, ((7, 8), (7, 40), (40, 7, 130), (31, 149))
    state = random_lanes(HEADS, [length] * 4, TEXT_FIRST=[3] * 4, TEXT_END=[length] * 4)
    reference, kernels, _, found = both(random_model(HEADS), state, 4, variant)
    begin(kernels, reference, 4)
    qkv = noise(1, HEADS.hidden_size).repeat(4, 3)  # the key of the token that is computed is its query
    query, _, _ = kernels._model.split_heads(qkv, torch.full((4,), length - 1))
    found.keys[0] *= 0.01
    for row, equal in enumerate(equals):
        for token in equal:
            found.keys[0, row * length + token] = (1 if length - 1 in equal else 2) * query[0]
    kernels.attend_lanes(0, qkv, watch=True)
    assert found.looks.flip(0).tolist() == [[min(equal)] * 2 for equal in equals]


@in_the_interpreter
@pytest.mark.parametrize("variant", [Variant(cache_chunk=64), VARIANTS[1]])
def test_neighbours_change_no_bit_of_a_lanes_attention(monkeypatch, variant):
    """Alone, among lanes of all lengths, and where programs take several chunks each."""
    model, length, results = random_model(HEADS), 201, []
    for lengths, programs in (([length], 4096), ([length, 1, 2, 70, 300], 4096), ([length, 300, 1], 9)):
        monkeypatch.setattr("chattts_serving.engine.gpu.triton_ops.CACHE_PROGRAMS", programs)
        reference, kernels, _, _ = both(model, random_lanes(HEADS, lengths), len(lengths), variant)
        begin(kernels, reference, len(lengths))
        qkv = noise(len(lengths), 3 * HEADS.hidden_size)
        qkv[-1] = noise(1, 3 * HEADS.hidden_size, seed=7)[0]  # the first row of the table is the last lane's
        results.append(kernels.attend_lanes(0, qkv)[-1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@in_the_interpreter
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("where", ["cache", "qkv"])
def test_a_lane_of_nan_stays_alone(where, variant):
    """A chunk of one lane holds NaN, or it computes NaN; and all of the cache past everybody's end is NaN."""
    reference, kernels, expected, found = both(random_model(HEADS), random_lanes(HEADS, [40, 70, 90]), 3, variant)
    begin(kernels, reference, 3)
    qkv = noise(3, 3 * HEADS.hidden_size)
    for buffers in (expected, found):
        buffers.values[0, 40 + 70 + 90 :] = buffers.keys[0, 40 + 70 + 90 :] = float("nan")
        if where == "cache":
            buffers.values[0, 40 + 50] = float("nan")
    if where == "qkv":
        qkv[1] = float("nan")
    attended = [ops.attend_lanes(0, qkv).isnan() for ops in (kernels, reference)]
    assert attended[0].all(1).tolist() == attended[0].any(1).tolist() == [False, True, False]
    assert torch.equal(*attended)


@in_the_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cannot multiply bfloat16 matrices
def test_attention_within_packed_prompts(dtype):
    model = random_model(HEADS, dtype)
    reference, kernels, expected, found = both(model, random_lanes(HEADS, [1]), 1)
    prompt = torch.cat([packed((3, 200), (90, 300), (1, 10), (66, 100)), padding(160, 192)])
    qkv = noise(192, 3 * HEADS.hidden_size).to(dtype)
    check_close(kernels.attend_prompt(0, qkv, prompt)[:160], reference.attend_prompt(0, qkv, prompt)[:160], dtype)
    hidden = qkv[:, : HEADS.hidden_size].contiguous()
    kernels.store_prompt(hidden, prompt)
    reference.store_prompt(hidden, prompt)
    check_buffers(found, expected, dtype)


def packed(*sequences):
    """Prompts side by side, each of (tokens, where its cache begins)."""
    parts = []
    for length, start in sequences:
        parts.append(np.zeros((length, lanes.PROMPT_TOKENS + HEADS.num_codebooks), np.int32))
        parts[-1][:, lanes.FIRST] = sum(map(len, parts[:-1]))
        parts[-1][:, lanes.POSITION] = np.arange(length)
        parts[-1][:, lanes.CACHE] = start + np.arange(length)
    return torch.from_numpy(np.concatenate(parts))


def padding(first, end):
    return torch.from_numpy(lanes.unused_prompt_rows(first, end, HEADS.num_codebooks, CACHE_TOKENS, 1))


@in_the_interpreter
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_prompt_of_nan_stays_alone(broken):
    """All of one prompt but its first token; the next one's block of queries, and of keys, is the same."""
    reference, kernels, _, _ = both(random_model(HEADS), random_lanes(HEADS, [1]), 1)
    lengths = (9, 12, 7)
    prompt = packed(*zip(lengths, (100, 200, 300), strict=True))
    qkv = noise(sum(lengths), 3 * HEADS.hidden_size)
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    qkv[(owner == broken) & (prompt[:, lanes.POSITION] > 0)] = float("nan")
    for ops in (kernels, reference):
        attended = ops.attend_prompt(0, qkv, prompt)
        assert attended[owner != broken].isfinite().all()
        assert attended[(owner == broken) & (prompt[:, lanes.POSITION] > 0)].isnan().all()


@in_the_interpreter
def test_neighbours_change_no_bit_of_a_prompts_attention():
    _, kernels, _, _ = both(random_model(HEADS), random_lanes(HEADS, [1]), 1)
    qkv, alone = noise(70, 3 * HEADS.hidden_size), packed((70, 100))
    expected = kernels.attend_prompt(0, qkv, alone)
    before = noise(37, 3 * HEADS.hidden_size, seed=1)
    prompt = torch.cat([packed((37, 300), (70, 100)), padding(107, 128)])
    rows = torch.cat([before, qkv, noise(21, 3 * HEADS.hidden_size)])
    assert torch.equal(kernels.attend_prompt(0, rows, prompt)[37:107], expected)


@in_the_interpreter
@pytest.mark.parametrize(
    ("dtype", "own_products", "num_rows"),
    [
        *((dtype, False, 7) for dtype in (torch.float32, *DTYPES.values())),
        # The interpreter cannot multiply bfloat16 matrices.
        *((dtype, True, num_rows) for dtype in (torch.float32, torch.float16) for num_rows in (1, 70)),
    ],
)
def test_what_a_layer_does_outside_attention(dtype, own_products, num_rows):
    """The sum of a product of six parts, and of one whose inputs cannot be split."""
    variant = Variant(own_products=own_products)
    reference, kernels, _, _ = both(random_model(HEADS), random_lanes(HEADS, [1]), 1, variant)
    x, inner = noise(num_rows, 96).to(dtype), noise(num_rows, 768, seed=3).to(dtype)
    norm = noise(96).to(dtype)
    check_close(kernels.rms_norm(x, norm, 1e-6), reference.rms_norm(x, norm, 1e-6), dtype)
    x[2:3] = float("nan")  # of one row, in whose block are others
    matrix = (noise(192, 96, seed=4) / 10).to(dtype)
    check_close(kernels.linear(x, matrix), reference.linear(x, matrix), dtype)
    check_close(kernels.gated_linear(x, matrix), reference.gated_linear(x, matrix), dtype)
    if own_products or dtype is torch.float32:  # PyTorch's product of 16 bits into 32 is for GPUs
        logits = kernels.logits(x, matrix[:50])
        assert logits.dtype is torch.float32
        check_close(logits, torch.nn.functional.linear(x.float(), matrix[:50].float()), dtype)
    for size in (768, 32):
        down = (noise(96, size, seed=5) / size**0.5).to(dtype)
        results = (
            ops.linear_add_rms_norm(inner[:, :size].contiguous(), down, x, norm, 1e-6) for ops in (kernels, reference)
        )
        for one, other in zip(*results, strict=True):
            check_close(one, other, dtype)


@in_the_interpreter
def test_neighbours_change_no_bit_of_our_own_products():
    _, kernels, _, _ = both(random_model(HEADS), random_lanes(HEADS, [1]), 1, Variant(own_products=True))
    x, inner, norm, matrix = noise(70, 96), noise(70, 768, seed=3), noise(96), noise(192, 96, seed=4)
    down, results = noise(96, 768, seed=5), []
    for rows in (slice(66, 67), slice(0, 70)):
        results.append(
            [
                kernels.linear(x[rows], matrix)[-4:][:1],
                kernels.gated_linear(x[rows], matrix)[-4:][:1],
                *(part[-4:][:1] for part in kernels.linear_add_rms_norm(inner[rows], down, x[rows], norm, 1e-6)),
            ]
        )
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@in_the_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, *DTYPES.values()])
def test_embedding_goes_on_to_the_next_token_and_hidden_states_are_kept(dtype):
    state = random_lanes(
        HEADS, [4, 5, 6, 7], KIND=[0, 1, 0, 1], INPUT=[lanes.CODES, lanes.TEXT, lanes.SPEAKER, lanes.TEXT]
    )
    reference, kernels, expected, found = both(random_model(HEADS, dtype), state, 6)
    embeddings = kernels.embed_lanes(6)
    check_close(embeddings, reference.embed_lanes(6), dtype)
    assert found.state[:4, lanes.LENGTH].tolist() == [5, 6, 7, 8]
    assert found.state[:4, lanes.INPUT].tolist() == [lanes.CODES, lanes.TEXT, lanes.CODES, lanes.TEXT]
    kernels.store_lanes(embeddings)
    reference.store_lanes(embeddings)
    check_buffers(found, expected, dtype)


def sampling_lanes(config, count, kind, seed):
    rng = np.random.default_rng(seed)
    state = random_lanes(
        config,
        [3] * count,
        seed,
        KIND=[kind] * count,
        TEMPERATURE=rng.choice([0.1, 0.3, 1, 2], count),
        TOP_P=rng.choice([0.3, 0.7, 0.95, 1.0], count),
        TOP_K=rng.choice([1, 3, 20, 626], count),
        PENALTY=rng.choice([0.8, 1.0, 1.05, 1.5], count).astype(float),
        MIN_NEW=rng.choice([1, 100], count),
        SEED_LOW=rng.integers(-(2**31), 2**31, count),
        SEED_HIGH=rng.integers(0, 2**31, count),
        STREAM=rng.integers(-(2**31), 2**31, count),
    )
    history = lanes.TOKENS + config.num_codebooks
    state[0, history:] = NO_TOKEN  # a history that has not begun
    assert state.shape[1] == history + PENALTY_WINDOW * config.num_codebooks
    return state


@in_the_interpreter
@pytest.mark.parametrize(("vocabulary", "num_lanes"), [(50, 24), (626, 2)])
def test_codes_are_drawn_as_in_pytorch(vocabulary, num_lanes):
    """Random parameters and logits, in every third lane many of them equal; a lane that draws text is left alone."""
    config = GPTConfig(**(vars(HEADS) | {"num_audio_tokens": vocabulary}))
    state = sampling_lanes(config, num_lanes, lanes.CODES, seed=vocabulary)
    state[1, lanes.KIND] = lanes.TEXT
    reference, kernels, expected, found = both(random_model(config), state, num_lanes)
    logits = torch.randn(num_lanes, 4, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    logits[::3] = logits[::3].round()
    logits[:, :, -1] = 6  # the end token is likely, where it is allowed
    kernels.sample_codes(logits)
    reference.sample_codes(logits)
    assert (found.drawn == -7).all(1).sum() == 1
    check_buffers_but_unused(found, expected)


@in_the_interpreter
@pytest.mark.parametrize("kind", ["codes", "text"])
def test_more_equal_scores_than_are_sorted_as_few_are_all_candidates(kind):
    """Half of the tokens are as likely as the least that top-k keeps."""
    config = GPTConfig(**(vars(HEADS) | {"num_audio_tokens": 200, "num_text_tokens": 200}))
    state = sampling_lanes(config, 6, lanes.CODES if kind == "codes" else lanes.TEXT, seed=5)
    state[:-1, lanes.TOP_K] = 20
    reference, kernels, expected, found = both(random_model(config), state, 6)
    logits = (noise(6, 4, 200) > 0).float() if kind == "codes" else (noise(6, 200) > 0).float()
    for ops in (kernels, reference):
        getattr(ops, f"sample_{kind}")(logits)
    check_buffers_but_unused(found, expected)


@in_the_interpreter
@pytest.mark.parametrize(("vocabulary", "num_lanes"), [(100, 24), (5_000, 2)])
def test_text_is_drawn_as_in_pytorch(vocabulary, num_lanes):
    """As codes; of the larger vocabulary, more tokens are left out than are candidates."""
    config = GPTConfig(**(vars(HEADS) | {"num_text_tokens": vocabulary}))
    state = sampling_lanes(config, num_lanes, lanes.TEXT, seed=vocabulary)
    reference, kernels, expected, found = both(random_model(config), state, num_lanes)
    logits = torch.randn(num_lanes, vocabulary, generator=torch.Generator().manual_seed(0)) * 3
    logits[::3] = (logits[::3] * 8).round() / 8
    logits[:, config.ebreak_id] = 9
    kernels.sample_text(logits)
    reference.sample_text(logits)
    check_buffers_but_unused(found, expected)


@in_the_interpreter
@pytest.mark.parametrize("kind", ["codes", "text"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_no_numbers_draw_nothing_in_one_lane_alone(kind, value):
    state = sampling_lanes(HEADS, 3, lanes.CODES if kind == "codes" else lanes.TEXT, seed=1)
    reference, kernels, expected, found = both(random_model(HEADS), state, 3)
    shape = (3, 4, HEADS.num_audio_tokens) if kind == "codes" else (3, HEADS.num_text_tokens)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits[1][..., 5] = value
    for ops in (kernels, reference):
        getattr(ops, f"sample_{kind}")(logits)
    check_buffers_but_unused(found, expected)
    width = 4 if kind == "codes" else 1
    assert (found.drawn[:3, :width] == NO_TOKEN).all(1).tolist() == [False, True, False]
    assert (found.state[:, lanes.TOKENS : lanes.TOKENS + width] >= 0).all()


def check_buffers_but_unused(found, expected):
    assert torch.equal(found.state[:-1], expected.state[:-1])
    used = len(found.state) - 1
    assert torch.equal(found.drawn[:used], expected.drawn[:used])


@in_the_interpreter
@pytest.mark.parametrize(
    "variant", [Variant(), Variant(cache_chunk=32, merge_in_place=True, own_products=True, one_pass=True)]
)
def test_an_engine_with_the_kernels_draws_the_same_tokens(variant):
    """And notes where text heads look, of one of them."""
    from chattts_serving.engine.gpu.triton_ops import TritonOps  # noqa: PLC0415

    results = []
    for kernels in (True, False):
        config = replace(CONFIG, text_heads=(TextHead(1, 0, 0), TextHead(0, 1, 2), TextHead(1, 1, 0)))
        machine, sequences = random_engine(steps_ahead=1, variant=variant, config=config), mixed_sequences()[1:4]
        sequences[1].watched = (1, 5)
        runner = machine._runner
        if kernels:
            runner._ops = TritonOps(runner._model, runner._buffers, variant)
        for one in sequences:
            machine.add(one)
        finished = {}
        while not machine.is_idle:
            finished |= {one.sequence: one for one in machine.step()}
        check_equal(sequences, {one: ended.hidden for one, ended in finished.items()}, alone()[1:4])
        results.append([finished[one].looks for one in sequences])
    assert [looks is None for looks in results[0]] == [True, False, True]
    assert len(np.unique(results[0][1])) == 4
    assert np.array_equal(results[0][1], results[1][1])
