"""From logits to tokens: ChatTTS's processors in ChatTTS's order, one draw per row from a counter-based generator.

Order (ChatTTS 0.2.5, `GPT.generate` and `gen_logits`): temperature, repetition penalty over the last 16 tokens,
top-p, top-k (both keep at least 3), end token banned before `min_new_tokens`, draw. The rows of a batch are
independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from chattts_serving.engine.sequence import NO_TOKEN

PENALTY_WINDOW = 16  # tokens that the repetition penalty looks back on
MIN_KEPT = 3  # candidates that top-p and top-k leave at least


@dataclass(frozen=True)
class SamplingBatch:
    """What the rows of one batch are drawn with; every tensor is [rows] unless it says otherwise.

    Attributes:
        temperature, top_p, repetition_penalty: float32.
        top_k: int64.
        history: the row's last tokens, [rows, PENALTY_WINDOW] int64, filled up with NO_TOKEN.
        ban_end: bool; True while the end token must not be drawn.
        seed, step, codebook, stream: int64, the address of the row's random number.
    """

    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    repetition_penalty: torch.Tensor
    history: torch.Tensor
    ban_end: torch.Tensor
    seed: torch.Tensor
    step: torch.Tensor
    codebook: torch.Tensor
    stream: torch.Tensor


def candidate_probabilities(
    logits: torch.Tensor, batch: SamplingBatch, end_token: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each row may become, with what probability.

    Args:
        logits: float32 [rows, vocabulary].
        batch: the rows' parameters.
        end_token: the token that `ban_end` bans.

    Returns:
        Probabilities, float32 [rows, vocabulary], in ascending order of score, and the token of each, int64.
    """
    scores = _penalised(logits / batch.temperature.unsqueeze(1), batch)
    scores, tokens = scores.sort(dim=1, stable=True)
    vocabulary = scores.shape[1]

    is_tail = scores.softmax(1).cumsum(1) <= (1 - batch.top_p.double()).float().unsqueeze(1)
    is_tail[:, -MIN_KEPT:] = False
    scores = scores.masked_fill(is_tail, -torch.inf)

    top_k = batch.top_k.clamp(MIN_KEPT, vocabulary).unsqueeze(1)
    least = scores.gather(1, vocabulary - top_k)
    scores = scores.masked_fill(scores < least, -torch.inf)

    scores = scores.masked_fill((tokens == end_token) & batch.ban_end.unsqueeze(1), -torch.inf)
    return scores.softmax(1), tokens


def draw(probabilities: torch.Tensor, tokens: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """One token a row by inversion of the cumulative distribution, likeliest token first.

    Args:
        probabilities, tokens: as `candidate_probabilities` returns them.
        uniforms: float64 [rows], in [0, 1).

    Returns:
        int64 [rows].
    """
    cumulative = probabilities.flip(1).double().cumsum(1)
    place = torch.searchsorted(cumulative, (uniforms * cumulative[:, -1]).unsqueeze(1), right=True)
    last_possible = (cumulative < cumulative[:, -1:]).sum(1, keepdim=True)  # rounding must not lead past it
    return tokens.flip(1).gather(1, place.minimum(last_possible)).squeeze(1)


def _penalised(scores: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Scores divided (or, below 0, multiplied) by penalty**count, count being the token's place in the history."""
    rows, vocabulary = scores.shape
    counts = scores.new_zeros(rows, vocabulary + 1)  # the last column takes NO_TOKEN
    slots = batch.history.where(batch.history != NO_TOKEN, vocabulary)
    counts.scatter_add_(1, slots, torch.ones_like(slots, dtype=scores.dtype))
    factor = batch.repetition_penalty.unsqueeze(1) ** counts[:, :-1]
    return torch.where(scores < 0, scores * factor, scores / factor)
