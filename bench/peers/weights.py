"""The model that all systems compute, in a folder that each of their processes reads; needs NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.gpt_config import GPTConfig

Codes = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


class System(Protocol):
    """What computes steps."""

    def begin(self, codes: Codes, room: int) -> None:
        """Forget all sequences and compute the prompts of new ones, `codes` [n, tokens, num_codebooks].

        Each will be continued by up to `room` tokens.
        """

    def step(self, codes: Codes) -> Floats:
        """Continue each sequence by a token, `codes` [n, num_codebooks]; its logits, [n, codebooks * audio tokens]."""


class Weights:
    """Reads what `write` has written.

    Attributes:
        config: sizes; there are no text tokens to speak of.
    """

    def __init__(self, folder: Path) -> None:
        """Of `folder`; tensors are read when they are asked for."""
        self.config = GPTConfig.load(folder)
        self._tensors = np.load(folder / "weights.npz")
        self._embeddings = self.tensor("embed_code")
        self._offsets = self.config.num_audio_tokens * np.arange(self.config.num_codebooks)

    def tensor(self, name: str) -> Floats:
        """The weight called `name` in exports, float32."""
        tensor: Floats = self._tensors[name]
        return tensor

    def embed(self, codes: Codes) -> Floats:
        """Codes [..., num_codebooks] -> the sums of their embeddings, [..., hidden]."""
        embedded: Floats = self._embeddings[codes + self._offsets].sum(-2)
        return embedded


def write(folder: Path, config: GPTConfig, tensors: Mapping[str, Floats]) -> None:
    """Write `tensors`, as `weight_shapes` names them."""
    (folder / "config.json").write_text(json.dumps(asdict(config)))
    np.savez(folder / "weights.npz", **tensors)


def draw_codes(config: GPTConfig, sequences: int, tokens: int) -> Codes:
    """Random codes, the same ones for the same sizes: [sequences, tokens, num_codebooks]."""
    shape = (sequences, tokens, config.num_codebooks)
    return np.random.default_rng(0).integers(config.num_audio_tokens, size=shape, dtype=np.int32)
