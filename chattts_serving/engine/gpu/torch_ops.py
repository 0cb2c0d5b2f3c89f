"""A step's operations in PyTorch: what runs on CPUs, and what the GPU kernels are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from chattts_serving.engine.gpu import lanes, philox
from chattts_serving.engine.gpu.gpt import GPT, LayerOps, TorchLayerOps
from chattts_serving.engine.gpu.sampler import PENALTY_WINDOW, SamplingBatch, candidate_probabilities, draw
from chattts_serving.engine.sequence import NO_TOKEN


@dataclass(frozen=True)
class Buffers:
    """Tensors that every step finds at the same place.

    Attributes:
        state: rows of `lanes`, int32 [max_sequences + 1, width]; the last one belongs to no sequence.
        rows: the row of each lane, int32 [max_sequences].
        speakers: the speaker's vector of each row, [max_sequences + 1, hidden].
        keys, values: the cache, [num_layers, num_cache_tokens + 1, num_heads, head_dim]; nothing reads the last token.
        hidden: the hidden state of each cached token, [num_cache_tokens + 1, hidden].
        drawn: the token that each lane drew, int32 [max_sequences, num_codebooks]; NO_TOKEN for none.
        looks: the token of its text that each text head of each lane looked at most, int32 [max_sequences, heads].
    """

    state: torch.Tensor
    rows: torch.Tensor
    speakers: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    hidden: torch.Tensor
    drawn: torch.Tensor
    looks: torch.Tensor


class StepOps(LayerOps, Protocol):
    """What a step does beside matrix products. Lanes are the first n of `Buffers.rows`; text lanes come first."""

    def embed_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """Embeddings of prompt tokens, rows of `lanes` [n, columns] -> [n, hidden]."""

    def attend_prompt(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """Write keys and values of whole prompts into the cache and attend within each, [n, hidden]."""

    def attend_both(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """`attend_lanes` for the first rows of `qkv`, after `attend_prompt` for the others; [len(qkv), hidden]."""

    def store_prompt(self, hidden: torch.Tensor, prompt: torch.Tensor) -> None:
        """Keep hidden states [n, hidden]."""

    def embed_lanes(self, num_lanes: int) -> torch.Tensor:
        """Go on to the next token of each lane; its embedding, [num_lanes, hidden]."""

    def attend_lanes(self, layer: int, qkv: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """Write each lane's key and value into the cache and attend over its whole sequence, [num_lanes, hidden].

        With `watch`, `Buffers.looks` becomes where the layer's text heads look, of lanes that have such a text.
        """

    def store_lanes(self, hidden: torch.Tensor) -> None:
        """Keep hidden states [num_lanes, hidden]."""

    def sample_codes(self, logits: torch.Tensor) -> None:
        """Draw for lanes that draw codes; logits float32 [num_lanes, num_codebooks, num_audio_tokens]."""

    def sample_text(self, logits: torch.Tensor) -> None:
        """Draw for those of the first lanes that draw text; logits float32 [num_lanes, num_text_tokens]."""


class TorchOps(TorchLayerOps):
    """`StepOps` in PyTorch; attention takes the sequences one by one."""

    def __init__(self, model: GPT, buffers: Buffers) -> None:
        """The operations of `model` on `buffers`."""
        self._model, self._buffers, self._config = model, buffers, model.config
        self._unused_row = len(buffers.state) - 1

    def embed_prompt(self, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        return self._embed(
            prompt[:, lanes.PROMPT_INPUT], prompt[:, lanes.PROMPT_TOKENS :], prompt[:, lanes.SPEAKER_ROW]
        )

    def attend_prompt(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
        """As `StepOps`."""
        q, k, v = self._model.split_heads(qkv, prompt[:, lanes.POSITION].long())
        cache_index = prompt[:, lanes.CACHE].long()
        self._buffers.keys[layer].index_copy_(0, cache_index, k)
        self._buffers.values[layer].index_copy_(0, cache_index, v)
        lengths = torch.unique_consecutive(prompt[:, lanes.FIRST], return_counts=True)[1].tolist()
        parts = (torch.split(part, lengths) for part in (q, k, v))
        return torch.cat([_attend(*one, is_causal=True) for one in zip(*parts, strict=True)])

    def attend_both(self, layer: int, qkv: torch.Tensor, prompt: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """As `StepOps`."""
        num_lanes = len(qkv) - len(prompt)
        attended = self.attend_prompt(layer, qkv[num_lanes:], prompt)
        return torch.cat([self.attend_lanes(layer, qkv[:num_lanes], watch=watch), attended])

    def store_prompt(self, hidden: torch.Tensor, prompt: torch.Tensor) -> None:
        """As `StepOps`."""
        self._buffers.hidden.index_copy_(0, prompt[:, lanes.CACHE].long(), hidden)

    def embed_lanes(self, num_lanes: int) -> torch.Tensor:
        """As `StepOps`."""
        rows = self._buffers.rows[:num_lanes].long()
        state = self._buffers.state[rows]
        tokens = state[:, lanes.TOKENS : lanes.TOKENS + self._config.num_codebooks]
        embeddings = self._embed(state[:, lanes.INPUT], tokens, rows)
        used = rows[rows != self._unused_row]
        self._buffers.state[used, lanes.LENGTH] += 1
        self._buffers.state[used, lanes.STEP] += 1
        self._buffers.state[used, lanes.INPUT] = self._buffers.state[used, lanes.KIND]
        return embeddings

    def attend_lanes(self, layer: int, qkv: torch.Tensor, *, watch: bool = False) -> torch.Tensor:
        """As `StepOps`."""
        state = self._lanes(len(qkv))
        starts, lengths = state[:, lanes.START].tolist(), state[:, lanes.LENGTH].tolist()
        q, k, v = self._model.split_heads(qkv, state[:, lanes.LENGTH].long() - 1)
        keys, values = self._buffers.keys[layer], self._buffers.values[layer]
        attended = []
        for lane, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            end = start + length
            keys[end - 1], values[end - 1] = k[lane], v[lane]
            attended.append(_attend(q[lane : lane + 1], keys[start:end], values[start:end], is_causal=False))
            if watch:
                first, text_end = state[lane, lanes.TEXT_FIRST : lanes.TEXT_END + 1].tolist()
                self._note_looks(layer, lane, q[lane], keys[start + first : min(start + text_end, end)], first)
        return torch.cat(attended)

    def _note_looks(self, layer: int, lane: int, q: torch.Tensor, keys: torch.Tensor, first: int) -> None:
        """Where text heads look whose queries are `q` [heads, head_dim]: at `keys` [n, ...], from token `first` on."""
        for place, head in enumerate(self._config.text_heads):
            if head.layer == layer and len(keys):
                scores = keys[:, head.head].float() @ q[head.head].float()
                self._buffers.looks[lane, place] = first + scores.argmax()

    def store_lanes(self, hidden: torch.Tensor) -> None:
        """As `StepOps`."""
        state = self._lanes(len(hidden)).long()
        self._buffers.hidden[state[:, lanes.START] + state[:, lanes.LENGTH] - 1] = hidden

    def sample_codes(self, logits: torch.Tensor) -> None:
        """As `StepOps`."""
        self._sample(lanes.CODES, logits, self._config.eos_code)

    def sample_text(self, logits: torch.Tensor) -> None:
        """As `StepOps`."""
        self._sample(lanes.TEXT, logits.unsqueeze(1), self._config.ebreak_id)

    def _lanes(self, num_lanes: int) -> torch.Tensor:
        """State of the first lanes, [num_lanes, width], a copy."""
        return self._buffers.state[self._buffers.rows[:num_lanes].long()]

    def _embed(self, kinds: torch.Tensor, tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings [n, hidden] of tokens [n, num_codebooks], each of its own kind [n]."""
        embeddings = self._buffers.speakers[rows.long()].clone()
        tokens = tokens.long()
        is_text, is_codes = kinds == lanes.TEXT, kinds == lanes.CODES
        embeddings[is_text] = self._model.embed_text(tokens[is_text, 0])
        embeddings[is_codes] = self._model.embed_codes(tokens[is_codes])
        return embeddings

    def _sample(self, kind: int, logits: torch.Tensor, end_token: int) -> None:
        """Draw for those of the first lanes that draw `kind`; logits [num_lanes, width, vocabulary]."""
        which = (self._lanes(len(logits))[:, lanes.KIND] == kind).nonzero().squeeze(1)
        if not len(which):
            return
        logits, width = logits[which], logits.shape[1]
        rows = self._buffers.rows[which].long()
        state = self._buffers.state[rows]
        batch = _sampling_batch(state, width, self._config.num_codebooks)
        uniforms = philox.uniform(batch.seed, batch.step, batch.codebook, batch.stream)
        are_finite = logits.isfinite().all(2)  # [lanes, width]
        logits = logits.where(are_finite.unsqueeze(2), 0.0)
        tokens = draw(*candidate_probabilities(logits.flatten(0, 1), batch, end_token), uniforms).view(-1, width).int()
        tokens = tokens.where(are_finite, 0)  # one that the next step can compute
        place = lanes.TOKENS + self._config.num_codebooks * (1 + state[:, lanes.STEP].long() % PENALTY_WINDOW)
        for codebook in range(width):
            self._buffers.state[rows, lanes.TOKENS + codebook] = tokens[:, codebook]
            self._buffers.state[rows, place + codebook] = tokens[:, codebook]
        self._buffers.drawn[which, :width] = tokens.where(are_finite, NO_TOKEN)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
    """Attention of q [n, heads, head_dim] over k and v [m, heads, head_dim] -> [n, hidden]."""
    q, k, v = (tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return out.squeeze(0).transpose(0, 1).flatten(1)


def _sampling_batch(state: torch.Tensor, width: int, num_codebooks: int) -> SamplingBatch:
    """Parameters of lanes with rows `state`, one row for each of the `width` tokens that each draws."""

    def column(index: int) -> torch.Tensor:
        return state[:, index].long().repeat_interleave(width)

    def floats(index: int) -> torch.Tensor:
        return state[:, index].contiguous().view(torch.float32).repeat_interleave(width)

    history = state[:, lanes.TOKENS + num_codebooks :].view(-1, PENALTY_WINDOW, num_codebooks)[:, :, :width]
    return SamplingBatch(
        temperature=floats(lanes.TEMPERATURE),
        top_p=floats(lanes.TOP_P),
        top_k=column(lanes.TOP_K),
        repetition_penalty=floats(lanes.PENALTY),
        history=history.transpose(1, 2).flatten(0, 1).long(),
        ban_end=column(lanes.STEP) < column(lanes.MIN_NEW),
        seed=(column(lanes.SEED_HIGH) << 32) | (column(lanes.SEED_LOW) & 0xFFFFFFFF),
        step=column(lanes.STEP),
        codebook=torch.arange(width, device=state.device).repeat(len(state)),
        stream=column(lanes.STREAM) & 0xFFFFFFFF,
    )
