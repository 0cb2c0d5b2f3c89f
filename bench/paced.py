"""A runner that computes nothing: it draws at random, and takes as long as it is told, waiting as for a GPU.

`bench.host` puts this file beside the model.py that is to use it, so it imports nothing of `bench`.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.batch import Batch
from chattts_serving.engine.gpt_config import GPTConfig, TextHead
from chattts_serving.engine.gpu import lanes
from chattts_serving.engine.kv_slots import Slot
from chattts_serving.engine.runner import Runner
from chattts_serving.engine.sequence import Kind, Sequence

PACE_FILE = "pace.json"  # beside model.py
SLOT_TOKENS = 768  # of the cache, for each sequence that may run: more than a sentence of usual length takes
NUM_DRAWS = 2**16  # in the table that all draws come from


@dataclass(frozen=True)
class Pace:
    """What the runner pretends.

    Attributes:
        tokens: of each sentence; the draw after them is the end.
        steps: (sequences, milliseconds) of a step, ascending; between two of them in proportion.
    """

    tokens: int
    steps: tuple[tuple[int, float], ...]

    def seconds(self, num_sequences: int) -> float:
        """Of a step of so many sequences."""
        sizes, milliseconds = zip(*self.steps, strict=True)
        return float(np.interp(num_sequences, sizes, milliseconds)) / 1e3

    def write(self, folder: Path) -> None:
        """Leave it in `folder`."""
        (folder / PACE_FILE).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Pace:
        """What `write` left."""
        values = json.loads((folder / PACE_FILE).read_text())
        return cls(values["tokens"], tuple((size, ms) for size, ms in values["steps"]))


class PacedStep:
    """A step on its way: what each lane draws, and when that is there (`time.perf_counter`)."""

    def __init__(self, drawn: npt.NDArray[np.int32], done: float) -> None:
        """It is launched."""
        self._drawn, self._done = drawn, done

    def tokens(self) -> npt.NDArray[np.int32]:
        """As `PendingStep`."""
        left = self._done - time.perf_counter()
        if left > 0:
            time.sleep(left)
        return self._drawn

    def looks(self) -> None:
        """As `PendingStep`: there are no heads."""


class PacedRunner:
    """`Runner` whose draws depend on seed, stream and number alone."""

    steps_ahead = 1
    text_heads: tuple[TextHead, ...] = ()

    def __init__(self, config: GPTConfig, pace: Pace, max_sequences: int) -> None:
        """Nothing is launched."""
        self.config = config
        self.num_cache_tokens = max_sequences * SLOT_TOKENS + config.max_position_embeddings
        self._pace = pace
        generator = np.random.default_rng(0)
        most = min(config.eos_code, config.ebreak_id)
        self._draws = generator.integers(0, most, (NUM_DRAWS, config.num_codebooks), np.int32)
        self._hidden = generator.standard_normal((config.max_position_embeddings, config.hidden_size), np.float32)
        self._ends = {Kind.TEXT: config.ebreak_id, Kind.AUDIO: config.eos_code}
        # By row of the table of lanes: where its sequence's draws begin, which is the next, and what ends it.
        self._first, self._next, self._end = (np.zeros(max_sequences, np.int32) for _ in range(3))
        self._is_free_at = 0.0

    def launch(self, batch: Batch) -> PacedStep:
        """As `Runner`."""
        for sequence, row in batch.joined.items():
            self._join(row, sequence)
        if batch.joined:  # what a GPU would be sent
            lanes.prompt_rows(batch.joined.items(), self.config.num_codebooks, self.config.spk_emb_id)
        return PacedStep(self._draw(batch.rows), self._done(len(batch)))

    def generated_hidden(self, _sequence: Sequence, first: int, last: int) -> npt.NDArray[np.float32]:
        """As `Runner`: those of every sequence are alike."""
        return self._hidden[first:last].copy()

    def move_cache(self, source: Slot, target: Slot, num_tokens: int) -> None:
        """As `Runner`: there is no cache."""

    def warm_up(self) -> None:
        """As `Runner`."""

    def _join(self, row: int, sequence: Sequence) -> None:
        params = sequence.params
        lanes.lane_row(sequence, self.config.num_codebooks, self.config.spk_emb_id)  # as above
        self._first[row] = (params.seed * 2_654_435_761 + params.stream * 40_503) % NUM_DRAWS
        self._next[row], self._end[row] = sequence.num_generated_tokens, self._ends[sequence.kind]

    def _draw(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        number = self._next[rows]
        drawn: npt.NDArray[np.int32] = self._draws[(self._first[rows] + number) % NUM_DRAWS]
        for lane in np.flatnonzero(number >= self._pace.tokens):
            drawn[lane] = self._end[rows[lane]]
        self._next[rows] = number + 1
        return drawn

    def _done(self, num_sequences: int) -> float:
        """When a step launched now is done: steps follow each other, as on a GPU."""
        self._is_free_at = max(self._is_free_at, time.perf_counter()) + self._pace.seconds(num_sequences)
        return self._is_free_at


def make_runner(folder: Path, _device: str, config: Any) -> Runner:
    """As `chattts_serving.triton.decoder.runner_of`, at the pace that `folder` names."""
    return PacedRunner(GPTConfig.load(folder), Pace.read(folder), config.max_sequences)
