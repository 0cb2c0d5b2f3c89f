"""Turns sequences into tensors and back: one packed forward pass for prompts and next tokens alike, then the draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from chattts_serving.engine import philox
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.sampler import NO_TOKEN, PENALTY_WINDOW, SamplingBatch, candidate_probabilities, draw
from chattts_serving.engine.sequence import Kind, Sequence
from chattts_serving.gpt import GPT


class ModelRunner:
    """The model, its cache, and what a step does with them."""

    def __init__(self, model: GPT, kv_cache_tokens: int) -> None:
        """Allocate a cache of `kv_cache_tokens` tokens; it never grows."""
        config = model.config
        self._model = model
        shape = (config.num_layers, kv_cache_tokens, config.num_heads, config.head_dim)
        self._keys = torch.empty(shape, dtype=model.dtype, device=model.device)
        self._values = torch.empty(shape, dtype=model.dtype, device=model.device)
        # Hidden states share the slots of the cache, so that they are kept, moved and freed with it.
        self._hidden = torch.empty(kv_cache_tokens, config.hidden_size, dtype=model.dtype, device=model.device)

    @staticmethod
    def bytes_per_token(model: GPT) -> int:
        """Bytes of cache that one token takes: keys and values of every layer, and one hidden state."""
        config = model.config
        return (2 * config.num_layers + 1) * config.hidden_size * model.dtype.itemsize

    @torch.inference_mode()
    def run(self, sequences: list[Sequence]) -> list[tuple[int, ...]]:
        """Compute every uncached token of `sequences` and draw the next token of each, in the order given."""
        counts = [sequence.num_uncached_tokens for sequence in sequences]
        slots = [_slot(sequence) for sequence in sequences]
        device = self._model.device
        positions = torch.cat(
            [torch.arange(sequence.num_cached_tokens, sequence.num_tokens) for sequence in sequences]
        ).to(device)
        starts = torch.tensor([slot.start for slot in slots])
        cache_index = positions + starts.repeat_interleave(torch.tensor(counts)).to(device)
        embeddings = torch.cat([self._embed(sequence) for sequence in sequences])

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self._keys[layer].index_copy_(0, cache_index, k)
            self._values[layer].index_copy_(0, cache_index, v)
            attended = [
                self._attend_one(layer, queries, slot.start, sequence.num_tokens)
                for queries, slot, sequence in zip(torch.split(q, counts), slots, sequences, strict=True)
            ]
            return torch.cat(attended)

        hidden = self._model.forward(embeddings, positions, attend)
        self._hidden.index_copy_(0, cache_index, hidden)
        last = hidden[torch.tensor(counts).cumsum(0).to(device) - 1]
        return self._sample(sequences, last)

    def generated_hidden(self, sequence: Sequence) -> torch.Tensor:
        """The hidden state that each generated token was drawn from, [len(tokens), hidden], a copy on the CPU."""
        first = _slot(sequence).start + sequence.num_prompt_tokens - 1
        return self._hidden[first : first + len(sequence.tokens)].float().cpu().clone()

    def move_cache(self, source: Slot, target: Slot, num_tokens: int) -> None:
        """Copy the first `num_tokens` of slot `source` into slot `target`; the two do not overlap."""
        for pool in (*self._keys, *self._values, self._hidden):
            pool[target.start : target.start + num_tokens] = pool[source.start : source.start + num_tokens]

    def _attend_one(self, layer: int, q: torch.Tensor, start: int, num_tokens: int) -> torch.Tensor:
        """Attention of one sequence's new tokens q [n, heads, head_dim] over its whole cache."""
        keys = self._keys[layer, start : start + num_tokens].transpose(0, 1).unsqueeze(0)
        values = self._values[layer, start : start + num_tokens].transpose(0, 1).unsqueeze(0)
        # Either all tokens are new (a prompt) or one is, so that "causal" needs no offset.
        out = F.scaled_dot_product_attention(q.transpose(0, 1).unsqueeze(0), keys, values, is_causal=q.shape[0] > 1)
        return out.squeeze(0).transpose(0, 1)

    def _embed(self, sequence: Sequence) -> torch.Tensor:
        """Embeddings of the uncached tokens, [num_uncached_tokens, hidden]."""
        model = self._model
        if sequence.num_cached_tokens:
            newest = torch.tensor([sequence.tokens[-1]], device=model.device)
            return model.embed_text(newest[0]) if sequence.kind is Kind.TEXT else model.embed_codes(newest)
        ids = torch.tensor(sequence.prompt_ids, device=model.device)
        embeddings = model.embed_text(ids)
        if sequence.speaker is not None:
            speaker = torch.from_numpy(sequence.speaker).to(model.device, model.dtype)
            embeddings = torch.where((ids == model.config.spk_emb_id).unsqueeze(1), speaker, embeddings)
        parts = [embeddings]
        if sequence.prompt_codes:
            parts.append(model.embed_codes(torch.tensor(sequence.prompt_codes, device=model.device)))
        if sequence.tokens:  # it was preempted and starts again
            tokens = torch.tensor(sequence.tokens, device=model.device)
            parts.append(model.embed_text(tokens[:, 0]) if sequence.kind is Kind.TEXT else model.embed_codes(tokens))
        return torch.cat(parts)

    def _sample(self, sequences: list[Sequence], hidden: torch.Tensor) -> list[tuple[int, ...]]:
        """Draw one token for each sequence from its last hidden state, [sequences, hidden]."""
        config = self._model.config
        drawn: dict[int, tuple[int, ...]] = {}
        for kind in Kind:
            places = [place for place, sequence in enumerate(sequences) if sequence.kind is kind]
            if not places:
                continue
            group = [sequences[place] for place in places]
            rows = hidden[torch.tensor(places, device=hidden.device)]
            if kind is Kind.TEXT:
                logits, width, end = self._model.text_logits(rows), 1, config.ebreak_id
            else:
                logits, width, end = self._model.code_logits(rows).flatten(0, 1), config.num_codebooks, config.eos_code
            batch = _sampling_batch(group, width, hidden.device)
            uniforms = philox.uniform(batch.seed, batch.step, batch.codebook, batch.stream)
            tokens = draw(*candidate_probabilities(logits, batch, end), uniforms)
            drawn.update(zip(places, map(tuple, tokens.view(-1, width).tolist()), strict=True))
        return [drawn[place] for place in range(len(sequences))]


def _slot(sequence: Sequence) -> Slot:
    if sequence.slot is None:
        raise RuntimeError("the sequence has no slot in the cache; only scheduled sequences can run")
    return sequence.slot


def _sampling_batch(sequences: list[Sequence], width: int, device: torch.device) -> SamplingBatch:
    """Parameters of `sequences`, one row for each of the `width` tokens that each draws."""

    def rows(values: list[float] | list[int] | list[bool], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device).repeat_interleave(width)

    params = [sequence.params for sequence in sequences]
    steps = [len(sequence.tokens) for sequence in sequences]
    history = torch.full((len(sequences), width, PENALTY_WINDOW), NO_TOKEN)
    for row, sequence in zip(history, sequences, strict=True):
        recent = sequence.tokens[-PENALTY_WINDOW:]
        if recent:
            row[:, : len(recent)] = torch.tensor(recent).T
    return SamplingBatch(
        temperature=rows([p.temperature for p in params], torch.float32),
        top_p=rows([p.top_p for p in params], torch.float32),
        top_k=rows([p.top_k for p in params], torch.int64),
        repetition_penalty=rows([p.repetition_penalty for p in params], torch.float32),
        history=history.flatten(0, 1).to(device),
        # At least one token: the same distribution as ChatTTS, which starts over when the first token is the end.
        ban_end=rows([step < max(1, p.min_new_tokens) for step, p in zip(steps, params, strict=True)], torch.bool),
        seed=rows([p.seed for p in params], torch.int64),
        step=rows(steps, torch.int64),
        codebook=torch.arange(width, device=device).repeat(len(sequences)),
        stream=rows([p.stream for p in params], torch.int64),
    )
