"""This project's C library, called as the CPU's runner calls it, but up to the logits."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from bench.peers.weights import Codes, Floats, Weights
from chattts_serving.engine.cpu import library
from chattts_serving.engine.cpu.library import PANEL
from chattts_serving.engine.cpu.runner import MAX_ROWS, NO_DRAW, CpuRunner
from chattts_serving.engine.gpt_config import Precision

LOGITS = 2  # no kind of token that gpt.h knows: the heads are computed, and nothing is drawn


class OurSystem(CpuRunner):
    """A `System`."""

    def __init__(self, weights: Weights, precision: str, threads: int, num_tokens: int) -> None:
        """Take the weights over; the cache holds `num_tokens` tokens."""
        config, kind = weights.config, Precision(precision)
        cache_bytes = (num_tokens + config.max_position_embeddings) * self.bytes_per_token(config, kind)
        super().__init__(config, weights.tensor, precision=kind, kv_cache_gb=cache_bytes / 1e9, num_threads=threads)
        self._width = self._model.head_code.panels * PANEL
        floats = ctypes.c_float * (MAX_ROWS * self._width)
        self._logits = np.ctypeslib.as_array(floats.from_address(self._work.code_logits)).reshape(MAX_ROWS, -1)
        self._num_logits = config.num_codebooks * config.num_audio_tokens
        self._starts, self._lengths = (np.zeros(0, np.int64) for _ in range(2))

    def begin(self, codes: Codes, room: int) -> None:
        """As `System`."""
        sequences, tokens = codes.shape[:2]
        self._starts = (tokens + room) * np.arange(sequences)
        self._lengths = np.full(sequences, tokens)
        for start, prompt in zip(self._starts, codes, strict=True):
            for first in range(0, tokens, MAX_ROWS):
                self._run(prompt[first : first + MAX_ROWS], start[None], np.array([first]), NO_DRAW)

    def step(self, codes: Codes) -> Floats:
        """As `System`."""
        self._run(codes, self._starts, self._lengths, LOGITS)
        self._lengths += 1
        return self._logits[: len(codes), : self._num_logits].copy()

    def _run(self, rows: Codes, starts: npt.NDArray[np.int64], cached: npt.NDArray[np.int64], draws: int) -> None:
        """Compute `rows` [n, num_codebooks], as many of each sequence; they begin at `starts`, with `cached` tokens."""
        count = len(starts)
        entries = np.zeros(count, library.ENTRY)
        entries["cache_start"], entries["num_cached"], entries["num_new"] = starts, cached, len(rows) // count
        entries["first_row"] = len(rows) // count * np.arange(count)
        entries["draws"], entries["head_row"] = draws, np.arange(count)
        rows = np.ascontiguousarray(rows)
        num_audio = count if draws == LOGITS else 0
        batch = library.Batch(entries.ctypes.data, rows.ctypes.data, count, len(rows), num_audio, 0)
        self._threads.step(self._model, batch, self._work)
