"""Mixtures of voices: "slt:2+rms:1" is two parts of one voice and one of another.

Vectors are turned towards each other on the sphere, since their direction is the voice: a straight mean of two would be
shorter than either, and what lies between unlike voices would be none. Lengths are mixed in proportion.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from chattts_serving.voice.base16384 import AROUND
from chattts_serving.voice.speaker import Vector

MAX_PARTS = 8
MAX_WEIGHT = 1_000.0
MIXTURE_SIGNS = frozenset("+:")  # which stand in no name and no speaker string
_PART = re.compile(r"([^+:]+)(?::([0-9]{1,9}(?:\.[0-9]{1,9})?))?")
_OPPOSITE = 1e-3  # rad that two voices must be short of opposite, between which there is no one way


@dataclass(frozen=True)
class Part:
    """One voice of a mixture.

    Attributes:
        voice: its name or speaker string.
        weight: above 0.
    """

    voice: str
    weight: float


def is_mixture(text: str) -> bool:
    """Whether `text` is meant as a mixture, and not as a name or a speaker string."""
    return not MIXTURE_SIGNS.isdisjoint(text)


def parse_mixture(text: str) -> tuple[Part, ...]:
    """The parts of a mixture, 1 to MAX_PARTS.

    Raises:
        ValueError: `text` is none.
    """
    pieces = text.split("+")
    if len(pieces) > MAX_PARTS:
        raise ValueError(f"it mixes {len(pieces)} voices; {MAX_PARTS} are the most")
    parts = []
    for piece in pieces:
        found = _PART.fullmatch(piece.strip(AROUND))
        weight = float(found[2] or 1) if found else 0.0
        if not found or not 0 < weight <= MAX_WEIGHT:
            raise ValueError(
                f"a part of it is {piece!r}, which is no VOICE:WEIGHT with a weight above 0 to {MAX_WEIGHT:g}"
            )
        parts.append(Part(found[1].strip(AROUND), weight))
    return tuple(parts)


def mixed(vectors: list[Vector], weights: list[float]) -> Vector:
    """Vectors, float16 [hidden] each, mixed by `weights`, float16 [hidden]: one after the other joins those before.

    Raises:
        ValueError: one is 0 or not finite, or lies opposite to what it joins.
    """
    result, total = vectors[0].astype(np.float64), weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total += weight
        result = _between(result, vector.astype(np.float64), weight / total)
    return result.astype(np.float16)


def _between(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], share: float) -> npt.NDArray[np.float64]:
    """What lies at `share` of the way from `one` to `other`, on the arc between their directions."""
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    if not np.isfinite(lengths).all() or not all(lengths):
        raise ValueError("the vector of a voice in it is 0 or not finite")
    unit, goal = one / lengths[0], other / lengths[1]
    angle = float(2 * np.arctan2(np.linalg.norm(unit - goal), np.linalg.norm(unit + goal)))
    if angle > np.pi - _OPPOSITE:
        raise ValueError("two voices in it are opposite to each other, so that none lies between them")
    length = (1 - share) * lengths[0] + share * lengths[1]
    direction = unit
    if angle > 1e-6:
        direction = (np.sin((1 - share) * angle) * unit + np.sin(share * angle) * goal) / np.sin(angle)
    between: npt.NDArray[np.float64] = direction * length
    return between
