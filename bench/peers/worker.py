"""The process of one system: `python -m bench.peers.worker` KIND FORMAT FOLDER THREADS TOKENS.

It takes orders as lines of JSON and answers each with one. Its Python needs NumPy, and what its system needs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.weights import System, Weights, draw_codes


def load(kind: str, number_format: str, folder: Path, threads: int, num_tokens: int) -> tuple[Weights, System]:
    """The system of `kind`, "ours", "llama" or "openvino", and its weights; it caches up to `num_tokens` tokens."""
    weights = Weights(folder)
    system: System
    # Each imports what the others need not have.
    if kind == "ours":
        from bench.peers.ours import OurSystem  # noqa: PLC0415

        system = OurSystem(weights, number_format, threads, num_tokens)
    elif kind == "llama":
        from bench.peers.llama import LlamaSystem  # noqa: PLC0415

        system = LlamaSystem(weights, number_format, threads, folder)
    else:
        from bench.peers.openvino import OpenVinoSystem  # noqa: PLC0415

        system = OpenVinoSystem(weights, number_format, threads)
    return weights, system


class Orders:
    """Does what it is ordered to."""

    def __init__(self, weights: Weights, system: System) -> None:
        """Of one system."""
        self._config, self._system = weights.config, system
        self._codes = draw_codes(self._config, 0, 0)
        self._place = 0

    def begin(self, sequences: int, tokens: int, room: int) -> dict[str, Any]:
        """Compute the prompts of so many sequences, of `tokens` tokens each, to be continued by up to `room`."""
        self._codes, self._place = draw_codes(self._config, sequences, tokens + room), tokens
        self._system.begin(self._codes[:, :tokens], room)
        return {}

    def logits(self, steps: int, path: str) -> dict[str, Any]:
        """Take so many steps and write their logits to `path`, [steps, sequences, outputs]."""
        np.save(path, np.stack([self._system.step(codes) for codes in self._next(steps)]))
        return {}

    def steps(self, count: int) -> dict[str, Any]:
        """Take so many steps; the milliseconds that they took, and those of CPU time, in all threads."""
        wall, cpu = [], []
        for codes in self._next(count):
            started, busy = time.perf_counter(), time.process_time()
            self._system.step(codes)
            wall.append(1e3 * (time.perf_counter() - started))
            cpu.append(1e3 * (time.process_time() - busy))
        return {"wall_ms": wall, "cpu_ms": cpu}

    def _next(self, count: int) -> Any:
        first, self._place = self._place, self._place + count
        return [self._codes[:, place].copy() for place in range(first, self._place)]


def main() -> None:
    """Serve until the orders end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    kind, number_format, folder, threads, num_tokens = sys.argv[1:]
    orders = Orders(*load(kind, number_format, Path(folder), int(threads), int(num_tokens)))
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = getattr(orders, order.pop("do"))(**order)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
