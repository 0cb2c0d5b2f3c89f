"""The runner for CPUs: hands the batch of a step to the C library, which computes it in one call.

A sequence's numbers are the same bit for bit whatever else is in the batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from chattts_serving.engine.batch import Batch, IntArray
from chattts_serving.engine.cpu import library
from chattts_serving.engine.cpu.library import PANEL, Layer, Memory, Model, Threads, WeightKind, Workspace
from chattts_serving.engine.gpt_config import GPTConfig, Precision, check_shapes, rope_tables
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.runner import DonePending, cache_capacity
from chattts_serving.engine.sequence import NO_TOKEN, Input, Kind, Sequence
from chattts_serving.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_ROWS = 256  # tokens computed in one call, so that what they become stays in the L2 cache; long prompts take several
DRAWS = {Kind.TEXT: 0, Kind.AUDIO: 1}
NO_DRAW, NOTHING_DRAWN = -1, (0,) * library.MAX_CODEBOOKS
NOWHERE = (0, 0)  # no token of the text
SCALE = np.dtype(np.float32)  # of what a cache of 8-bit integers holds
MATRICES, NORMS = ("qkv", "o", "gate_up", "down"), ("input_norm", "post_norm")  # of a layer
PRECISIONS: dict[Precision, tuple[WeightKind, np.dtype[Any]]] = {
    Precision.FP32: (WeightKind.FLOAT32, np.dtype(np.float32)),
    Precision.BF16: (WeightKind.BFLOAT16, np.dtype(np.uint16)),
    Precision.INT8: (WeightKind.INT8, np.dtype(np.int8)),
}
"""What weights are, and what the cache holds: float32, bfloat16, or 8-bit integers."""

Weights = Callable[[str], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Part:
    """Tokens `first` to `end - 1` of a sequence, computed in one call; the last part of a step draws."""

    sequence: Sequence
    first: int
    end: int

    @property
    def draws(self) -> bool:
        return self.end == self.sequence.num_tokens


class CpuRunner:
    """The model, its cache and its threads."""

    steps_ahead = 0  # a step is done when `launch` returns

    def __init__(
        self,
        config: GPTConfig,
        weights: Weights,
        *,
        precision: Precision,
        kv_cache_gb: float,
        num_threads: int,
        instruction_set: str | None = None,
    ) -> None:
        """Take the weights over and allocate the cache.

        Args:
            config: sizes.
            weights: float32 tensors by their name in the export, each asked for once.
            precision: FP32; BF16 (weights and cache; all else is float32); or INT8 (weights scaled per output,
                activations per token, keys and values per token and head).
            kv_cache_gb: memory of the key-value cache, 10**9 bytes.
            num_threads: threads that compute.
            instruction_set: of the C library; None takes the fastest that this CPU does.

        Raises:
            ConfigError: a size or the precision is not for CPUs, or the library is missing.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision.value}; allowed on a CPU is fp32, bf16 or int8")
        library.check_sizes(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            head_dim=config.head_dim,
            num_codebooks=config.num_codebooks,
        )
        self.config, self.text_heads = config, config.text_heads
        self.num_cache_tokens = cache_capacity(kv_cache_gb, self.bytes_per_token(config, precision))
        self._memory = Memory()
        self._threads = Threads(num_threads, instruction_set)
        self._model = self._take_over(weights, precision, num_threads)
        self._work = self._workspace(num_threads)
        instructions = instruction_set or library.instruction_set()
        logger.info("%s on %d threads, %s instructions", precision.value, num_threads, instructions)

    @classmethod
    def load(cls, folder: Path, precision: Precision, kv_cache_gb: float, num_threads: int) -> CpuRunner:
        """Read `config.json` and `model.safetensors` of `folder`.

        Raises:
            ConfigError: as `__init__`, or a file is missing or not what the export writes.
        """
        config, path = GPTConfig.load(folder), folder / "model.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                names = file.keys()
                check_shapes(config, {name: tuple(file.get_slice(name).get_shape()) for name in names})
                return cls(
                    config, file.get_tensor, precision=precision, kv_cache_gb=kv_cache_gb, num_threads=num_threads
                )
        except ConfigError:
            raise
        except Exception as error:  # safetensors raises its own type, which is no OSError
            raise ConfigError(f"cannot read {path}: {error}; run python -m export") from error

    @staticmethod
    def bytes_per_token(config: GPTConfig, precision: Precision) -> int:
        """Bytes of cache that one token takes: keys and values of every layer, a hidden state, the token, and looks."""
        cache_type = PRECISIONS[precision][1]
        numbers = config.head_dim * cache_type.itemsize + (SCALE.itemsize if cache_type == np.int8 else 0)
        keys_and_values = 2 * config.num_layers * config.num_heads * numbers
        return keys_and_values + 4 * (config.hidden_size + config.num_codebooks + len(config.text_heads))

    def launch(self, batch: Batch) -> DonePending:
        """As `Runner`."""
        sequences = batch.sequences
        drawn = np.concatenate([self._compute(parts) for parts in _in_calls(sequences)])
        if not (self.text_heads and batch.num_watched):
            return DonePending(drawn, None)
        return DonePending(drawn, self._looks[[one.cache_start + one.num_tokens - 1 for one in sequences]])

    def generated_hidden(self, sequence: Sequence, first: int, last: int) -> npt.NDArray[np.float32]:
        """As `Runner`."""
        start = sequence.cache_start + sequence.num_prompt_tokens - 1
        return self._hidden[start + first : start + last].copy()

    def move_cache(self, source: Slot, target: Slot, num_tokens: int) -> None:
        """Copy the first `num_tokens` of slot `source` into slot `target`; the two do not overlap."""
        for pool in (self._keys, self._values, self._key_scales, self._value_scales):
            pool[:, :, target.start : target.start + num_tokens] = pool[:, :, source.start : source.start + num_tokens]
        for pool in (self._hidden, self._tokens):
            pool[target.start : target.start + num_tokens] = pool[source.start : source.start + num_tokens]

    def warm_up(self) -> None:
        """Nothing is left to do after loading."""

    def _take_over(self, weights: Weights, precision: Precision, num_threads: int) -> Model:
        config, address, (kind, cache_type) = self.config, self._memory.address, PRECISIONS[precision]

        def vector(name: str) -> int:
            return address(np.ascontiguousarray(weights(name), np.float32))

        def matrix(name: str) -> library.Matrix:
            weight = weights(name)
            return self._memory.matrix(library.gate_and_up(weight) if "gate_up" in name else weight, kind)

        def layer(number: int) -> Layer:
            names = {name: f"layers.{number}.{name}" for name in (*MATRICES, *NORMS)}
            return Layer(**{name: (vector if name in NORMS else matrix)(path) for name, path in names.items()})

        with ThreadPoolExecutor(num_threads) as pool:  # NumPy lets others run while it copies
            self._layers = (Layer * config.num_layers)(*pool.map(layer, range(config.num_layers)))
        shape = (config.num_layers, config.num_heads, self.num_cache_tokens, config.head_dim)
        scaled = (*shape[:2], self.num_cache_tokens if cache_type == np.int8 else 0)
        # Written to once, so that memory which is not there is missed now and not in the middle of a request.
        self._keys, self._values = (np.full(shape, 0, cache_type) for _ in range(2))
        self._key_scales, self._value_scales = (np.full(scaled, 0, SCALE) for _ in range(2))
        self._hidden = np.full((self.num_cache_tokens, config.hidden_size), 0, np.float32)
        self._tokens = np.full((self.num_cache_tokens, config.num_codebooks), NO_TOKEN, np.int32)
        self._looks = np.full((self.num_cache_tokens, len(self.text_heads)), 0, np.int32)
        text_heads = np.full((config.num_layers, config.num_heads), -1, np.int32)
        for place, head in enumerate(self.text_heads):
            text_heads[head.layer, head.head] = place
        cosines, sines = rope_tables(config)
        return Model(
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            num_layers=config.num_layers,
            heads=config.num_heads,
            head_dim=config.head_dim,
            num_codebooks=config.num_codebooks,
            num_text_tokens=config.num_text_tokens,
            num_audio_tokens=config.num_audio_tokens,
            ebreak=config.ebreak_id,
            eos=config.eos_code,
            weights=kind,
            rms_norm_eps=config.rms_norm_eps,
            cache_tokens=self.num_cache_tokens,
            max_positions=config.max_position_embeddings,
            layers=self._layers,
            head_text=matrix("head_text"),
            head_code=matrix("head_code"),
            norm=vector("norm"),
            embed_text=vector("embed_text"),
            embed_code=vector("embed_code"),
            rope_cos=address(cosines),
            rope_sin=address(sines),
            keys=address(self._keys),
            values=address(self._values),
            key_scales=address(self._key_scales),
            value_scales=address(self._value_scales),
            hidden_states=address(self._hidden),
            tokens=address(self._tokens),
            looks=address(self._looks),
            text_heads=address(text_heads),
            num_text_heads=len(self.text_heads),
        )

    def _workspace(self, num_threads: int) -> Workspace:
        config = self.config
        hidden, intermediate = config.hidden_size, config.intermediate_size
        floats = {
            "x": MAX_ROWS * hidden,
            "normed": MAX_ROWS * hidden,
            "qkv": MAX_ROWS * 3 * hidden,
            "attended": MAX_ROWS * hidden,
            "activated": MAX_ROWS * intermediate,
            "bytes": MAX_ROWS * max(hidden, intermediate) // 4,
            "scales": MAX_ROWS,
            "last": MAX_ROWS * hidden,
            "text_logits": MAX_ROWS * self._model.head_text.panels * PANEL,
            "code_logits": MAX_ROWS * self._model.head_code.panels * PANEL,
            "scores": num_threads * 4 * (config.max_position_embeddings + 64),
            "sampling": num_threads * 4 * max(config.num_text_tokens, config.num_audio_tokens),
        }
        return Workspace(**{name: self._memory.address(np.empty(size, np.float32)) for name, size in floats.items()})

    def _compute(self, parts: list[_Part]) -> IntArray:
        """Run one call; the tokens of those that drew, [n, num_codebooks]."""
        audio = [part.draws and part.sequence.kind is Kind.AUDIO for part in parts]
        text = [part.draws and part.sequence.kind is Kind.TEXT for part in parts]
        head_rows = np.where(audio, np.cumsum(audio) - 1, sum(audio) + np.cumsum(text) - 1).tolist()
        speakers = [_floats(part.sequence.speaker) for part in parts]  # keeps alive what C holds the address of
        row, records = 0, []
        for part, head_row, speaker in zip(parts, head_rows, speakers, strict=True):
            records.append(self._record(part, row, head_row, 0 if speaker is None else speaker.ctypes.data))
            row += part.end - part.first
        entries = np.array(records, library.ENTRY)  # at once: field by field takes NumPy six times as long
        tokens = np.array([token for part in parts for token in self._tokens_of(part)], np.int32)
        batch = library.Batch(
            entries=entries.ctypes.data,
            tokens=tokens.ctypes.data,
            num_entries=len(parts),
            num_rows=row,
            num_audio=sum(audio),
            num_text=sum(text),
        )
        self._threads.step(self._model, batch, self._work)
        drawn: IntArray = entries["drawn"][[part.draws for part in parts], : self.config.num_codebooks]
        return drawn

    def _record(self, part: _Part, row: int, head_row: int, speaker: int) -> tuple[float | tuple[int, ...], ...]:
        """`Entry` of gpt.h; `speaker` is an address."""
        sequence, params = part.sequence, part.sequence.params
        text_first, text_end = (sequence.watched if self.text_heads else None) or NOWHERE
        return (
            sequence.cache_start,
            part.first,
            part.end - part.first,
            row,
            text_first,
            text_end,
            params.seed,
            speaker,
            DRAWS[sequence.kind] if part.draws else NO_DRAW,
            params.top_k,
            sequence.num_new_tokens < params.first_end,
            sequence.num_new_tokens,
            params.stream,
            params.temperature,
            params.top_p,
            params.repetition_penalty,
            head_row,
            NOTHING_DRAWN,
        )

    def _tokens_of(self, part: _Part) -> Iterator[tuple[int, ...]]:
        """The tokens to compute, as `Batch.tokens` wants them."""
        missing = (NO_TOKEN,) * (self.config.num_codebooks - 1)
        for position in range(part.first, part.end):
            kind, token = part.sequence.token_at(position, self.config.spk_emb_id)
            if kind is Input.SPEAKER:
                yield (NO_TOKEN, *missing)
            else:
                yield token if kind is Input.AUDIO else (*token, *missing)


def _floats(speaker: npt.NDArray[Any] | None) -> npt.NDArray[np.float32] | None:
    return None if speaker is None else np.ascontiguousarray(speaker, np.float32)


def _in_calls(sequences: list[Sequence]) -> Iterator[list[_Part]]:
    """The uncached tokens of `sequences` in portions of at most MAX_ROWS."""
    parts: list[_Part] = []
    room = MAX_ROWS
    for sequence in sequences:
        first = sequence.num_cached_tokens
        while first < sequence.num_tokens:
            end = min(sequence.num_tokens, first + room)
            parts.append(_Part(sequence, first, end))
            room -= end - first
            first = end
            if not room:
                yield parts
                parts, room = [], MAX_ROWS
    if parts:
        yield parts
