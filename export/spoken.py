"""Sentences spoken by the exported language model in NumPy, and where each attention head looks meanwhile.

Slow and plain: it runs wherever the export does, and keeps what the server's engines do not, every head's attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.gpt_config import GPTConfig, rope_tables

Array = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

TEMPERATURE, TOP_K = 0.3, 20  # ChatTTS's


@dataclass
class Speaking:
    """A sentence that is spoken.

    Attributes:
        prompt: text ids.
        first, end: of those, the sentence's own.
        cache: keys and values, [layers, 2, heads, tokens, head_dim], of which `num_cached` tokens are there.
        looks: [layers, heads] a step, the place in the prompt that each head looks at most of the sentence's own.
        has_ended: whether it said that it has.
    """

    prompt: Sequence[int]
    first: int
    end: int
    cache: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    num_cached: int = 0
    looks: list[Integers] = field(default_factory=list)
    has_ended: bool = False


class SpeakingModel:
    """The language model."""

    def __init__(self, config: GPTConfig, weights: Mapping[str, Array], voice: Array) -> None:
        """Take what the export wrote, and the vector that stands for the voice, float32 [hidden]."""
        self._config, self._weights, self._voice = config, weights, voice
        self._cosines, self._sines = rope_tables(config)
        codes = weights["embed_code"]
        self._embed_code = codes.reshape(config.num_codebooks, config.num_audio_tokens, -1)

    def speak(self, sentences: Sequence[Speaking], max_tokens: int, seed: int = 0) -> None:
        """Say all `sentences` at once, up to their ends, or `max_tokens` audio tokens of each."""
        rng = np.random.default_rng(seed)
        rows = [self.begin(one, max_tokens) for one in sentences]
        going_on = list(sentences)
        for _ in range(max_tokens):
            hidden = self.step(going_on, rows)
            codes = self._draw(hidden @ self._weights["head_code"].T, rng)
            for one, drawn in zip(going_on, codes, strict=True):
                one.has_ended = bool((drawn == self._config.eos_code).any())
                if one.has_ended:
                    one.looks.pop()  # the end is no token
            rows = [self.code_row(code) for one, code in zip(going_on, codes, strict=True) if not one.has_ended]
            going_on = [one for one in going_on if not one.has_ended]
            if not going_on:
                return

    def begin(self, sentence: Speaking, max_tokens: int) -> Array:
        """The rows of the prompt, [tokens, hidden], of a sentence that gets room for `max_tokens` more."""
        config, room = self._config, len(sentence.prompt) + max_tokens
        sentence.cache = np.zeros((config.num_layers, 2, config.num_heads, room, config.head_dim), np.float32)
        rows = self._weights["embed_text"][list(sentence.prompt)]
        rows[np.array(sentence.prompt) == self._config.spk_emb_id] = self._voice
        return rows

    def code_row(self, codes: Integers) -> Array:
        """The row of an audio token, [1, hidden]."""
        row: Array = self._embed_code[np.arange(self._config.num_codebooks), codes].sum(axis=0, keepdims=True)
        return row

    def _draw(self, logits: Array, rng: np.random.Generator) -> Integers:
        """Codes [sentences, num_codebooks] from logits [sentences, num_codebooks * num_audio_tokens]."""
        config = self._config
        logits = logits.reshape(len(logits), config.num_codebooks, config.num_audio_tokens) / TEMPERATURE
        least = np.partition(logits, -min(TOP_K, config.num_audio_tokens), axis=-1)
        logits = np.where(logits < least[..., -min(TOP_K, config.num_audio_tokens), None], -np.inf, logits)
        drawn: Integers = np.argmax(logits + rng.gumbel(size=logits.shape), axis=-1)
        return drawn

    def step(self, sentences: Sequence[Speaking], rows: Sequence[Array]) -> Array:
        """Compute the new `rows` of each sentence; the last hidden state of each, [sentences, hidden]."""
        config, weights = self._config, self._weights
        x = np.concatenate(rows)
        ends = np.cumsum([len(row) for row in rows])
        for one in sentences:
            one.looks.append(np.zeros((config.num_layers, config.num_heads), np.int64))
        for layer in range(config.num_layers):

            def weight(name: str, layer: int = layer) -> Array:
                return weights[f"layers.{layer}.{name}"]

            qkv = self._normed(x, weight("input_norm")) @ weight("qkv").T
            parts = np.split(qkv, ends[:-1])
            attended = [self._attend(one, layer, part) for one, part in zip(sentences, parts, strict=True)]
            x = x + np.concatenate(attended) @ weight("o").T
            gate, up = np.split(self._normed(x, weight("post_norm")) @ weight("gate_up").T, 2, axis=1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ weight("down").T
        for one, part in zip(sentences, rows, strict=True):
            one.num_cached += len(part)
        return self._normed(x[ends - 1], weights["norm"])

    def _attend(self, sentence: Speaking, layer: int, qkv: Array) -> Array:
        config, first = self._config, sentence.num_cached
        # Each [heads, tokens, head_dim].
        query, key, value = qkv.reshape(len(qkv), 3, config.num_heads, config.head_dim).transpose(1, 2, 0, 3)
        places = np.arange(first, first + len(qkv))
        cache = sentence.cache[layer]
        cache[0, :, places], cache[1, :, places] = self._rotated(key, places).swapaxes(0, 1), value.swapaxes(0, 1)
        keys, values = cache[:, :, : places[-1] + 1]
        scores = self._rotated(query, places) @ keys.swapaxes(1, 2) / np.float32(np.sqrt(config.head_dim))
        sentence.looks[-1][layer] = sentence.first + scores[:, -1, sentence.first : sentence.end].argmax(axis=1)
        scores = np.where(np.arange(keys.shape[1]) <= places[:, None], scores, -np.inf)
        scores = np.exp(scores - scores.max(axis=2, keepdims=True))
        scores /= scores.sum(axis=2, keepdims=True)
        attended: Array = (scores @ values).swapaxes(0, 1).reshape(len(qkv), -1)
        return attended

    def _normed(self, x: Array, weight: Array) -> Array:
        normed: Array = x / np.sqrt((x * x).mean(axis=1, keepdims=True) + self._config.rms_norm_eps) * weight
        return normed

    def _rotated(self, x: Array, places: Integers) -> Array:
        """Rotary positions (Su et al. 2021), [heads, tokens, head_dim]."""
        half = self._config.head_dim // 2
        turned = np.concatenate([-x[..., half:], x[..., :half]], axis=2)
        rotated: Array = x * self._cosines[places] + turned * self._sines[places]
        return rotated
