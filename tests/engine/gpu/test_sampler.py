"""The sampler against ChatTTS's own processors, and the draw against the distribution it is drawn from."""

import numpy as np
import pytest
import torch

from chattts_serving.engine.gpu.sampler import PENALTY_WINDOW, SamplingBatch, candidate_probabilities, draw
from chattts_serving.engine.sequence import NO_TOKEN
from export.chattts_package import import_chattts

VOCABULARY = 626
END = VOCABULARY - 1


def batch(rows, **values):
    defaults = {
        "temperature": 1.0,
        "top_p": 0.7,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "history": [[NO_TOKEN] * PENALTY_WINDOW] * rows,
        "ban_end": False,
        **dict.fromkeys(("seed", "step", "codebook", "stream"), 0),
    }
    tensors = {}
    for name, value in (defaults | values).items():
        tensor = torch.as_tensor(value)
        tensors[name] = tensor if tensor.dim() else tensor.expand(rows)
    return SamplingBatch(**tensors)


def probabilities(logits, parameters):
    """Probabilities in the vocabulary's order, [rows, vocabulary]."""
    values, tokens = candidate_probabilities(logits, parameters, END)
    return torch.zeros_like(values).scatter(1, tokens, values)


def chattts_probabilities(logits, history, temperature, top_p, top_k, penalty, ban_end):
    """One row through ChatTTS's processors, in the order of its `GPT.generate`."""
    gen_logits = import_chattts().model.gen_logits
    warpers, processors = gen_logits(VOCABULARY - 1, top_p, top_k, penalty)
    scores = logits[None] / temperature
    for processor in (*processors, *warpers):
        scores = processor(torch.tensor([history], dtype=torch.int64), scores)
    if ban_end:
        scores[:, END] = -torch.inf
    return scores.softmax(-1)[0]


@pytest.mark.parametrize("seed", range(25))
def test_probabilities_are_those_of_chattts(seed):
    """Random logits, histories and parameters, a different set in each row of one batch."""
    rng = np.random.default_rng(seed)
    rows = 16
    logits = torch.from_numpy(rng.normal(0, rng.uniform(0.5, 4), (rows, VOCABULARY)).astype(np.float32))
    parameters = [
        {
            "temperature": float(np.float32(rng.choice([1e-4, 0.1, 0.3, 0.7, 1, 2]))),
            "top_p": float(rng.choice([0.05, 0.3, 0.7, 0.95, 1.0])),
            "top_k": int(rng.choice([1, 2, 3, 20, 100, 626])),
            "penalty": float(rng.choice([0.8, 1.0, 1.05, 1.5])),
            "ban_end": bool(rng.random() < 0.5),
        }
        for _ in range(rows)
    ]
    # Histories of few tokens, some of them likely ones, so that counts above one and real effects occur.
    likely = logits.argsort(dim=1, descending=True)[:, :6].numpy()
    histories = [rng.choice(likely[row], rng.integers(0, 25)).tolist() for row in range(rows)]
    recent = [history[-PENALTY_WINDOW:] for history in histories]
    ours = probabilities(
        logits,
        batch(
            rows,
            temperature=torch.tensor([p["temperature"] for p in parameters]),
            top_p=torch.tensor([p["top_p"] for p in parameters]),
            top_k=torch.tensor([p["top_k"] for p in parameters]),
            repetition_penalty=torch.tensor([p["penalty"] for p in parameters]),
            history=[h + [NO_TOKEN] * (PENALTY_WINDOW - len(h)) for h in recent],
            ban_end=torch.tensor([p["ban_end"] for p in parameters]),
        ),
    )
    for row in range(rows):
        expected = chattts_probabilities(logits[row], histories[row], **parameters[row])
        torch.testing.assert_close(ours[row], expected, atol=1e-6, rtol=0)


def test_rows_do_not_depend_on_their_neighbours():
    logits = torch.randn(8, VOCABULARY, generator=torch.Generator().manual_seed(0))
    together = probabilities(logits, batch(8))
    for row in range(8):
        assert torch.equal(probabilities(logits[row : row + 1], batch(1))[0], together[row])


def test_draws_follow_the_probabilities():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0, -1.0]])
    parameters = batch(1, top_p=1.0, top_k=5)
    values, tokens = candidate_probabilities(logits, parameters, end_token=4)
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = draw(values.expand(10_000, -1), tokens.expand(10_000, -1), uniforms)
    frequencies = torch.bincount(drawn, minlength=5) / 10_000
    torch.testing.assert_close(frequencies, logits[0].softmax(0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-32])
def test_a_banned_end_token_between_two_candidates_is_never_drawn(uniform):
    """The clamp against rounding once counted the possible tokens and so led to the banned one among them."""
    logits = torch.full((1, VOCABULARY), -50.0)
    logits[0, 3], logits[0, END], logits[0, 4] = 2.0, 1.9, 1.8
    values, tokens = candidate_probabilities(logits, batch(1, top_p=1.0, top_k=3, ban_end=True), END)
    assert draw(values, tokens, torch.tensor([uniform], dtype=torch.float64)).item() in (3, 4)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-32])
def test_the_ends_of_the_unit_interval_are_tokens_that_can_be_drawn(uniform):
    logits = torch.randn(100, VOCABULARY, generator=torch.Generator().manual_seed(1))
    values, tokens = candidate_probabilities(logits, batch(100), END)
    drawn = draw(values, tokens, torch.full((100,), uniform, dtype=torch.float64))
    assert (probabilities(logits, batch(100)).gather(1, drawn[:, None]) > 0).all()
