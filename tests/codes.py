"""Audio codes compared one by one, but for those on an edge between two levels, where any rounding decides."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from export.dvae import LEVELS, NUM_RESIDUALS

# Of the distance between two levels: a value nearer than this to where they part may be rounded to either. Features in
# float32 differ from those in float64 by a tenth of it (4e-5, of residuals).
EDGE = 3e-4

Codes = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]


def chattts_codes(dvae: torch.nn.Module, audio: npt.NDArray[np.float32]) -> tuple[Codes, Flags]:
    """Codes [T, 4] of ChatTTS's encoder in float64, and which of them lie on no edge.

    In float32 its FFT leaves rounding errors of a loud band in the silent ones, above where the mel is clipped; in
    which band, and how much, differs between CPUs. Of constant audio of 1.0 they change 6 of 40 codes on some.
    """
    exact = copy.deepcopy(dvae).double()
    features: list[torch.Tensor] = []  # of each group [1, T, dimensions]
    with ExitStack() as hooks:
        for group in exact.vq_layer.quantizer.rvqs:
            hook = group.layers[0].register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].clone()))
            hooks.callback(hook.remove)
        codes = exact.sample_audio(torch.from_numpy(audio.astype(np.float64))).T.numpy()
    return codes, on_no_edge(torch.cat(features).numpy()[:, np.newaxis])[0]


def on_no_edge(features: npt.NDArray[np.float64]) -> Flags:
    """Which codes [B, T, groups * NUM_RESIDUALS] lie on no edge; `features` [groups, B, T, dimensions] are bent
    softly into the quantizer's range."""
    left, is_sure = features, np.ones(features.shape[:-1], np.bool_)
    found = []
    for residual in range(NUM_RESIDUALS):
        scale = LEVELS**-residual
        level = (LEVELS - 1) * (np.clip(left / scale, -1, 1) + 1) / 2 + 0.5
        # What is left over for a residual depends on those before it.
        is_sure = is_sure & (np.abs(level - np.rint(level)) > EDGE).all(-1)
        found.append(is_sure)
        left = left - (np.floor(level) * 2 / (LEVELS - 1) - 1) * scale
    return np.concatenate([np.stack(group, -1) for group in zip(*found, strict=True)], axis=-1)


def check_codes(found: Codes, expected: Codes, is_sure: Flags) -> None:
    """Each code is the one that is expected, but for those on an edge, which are few."""
    assert found.shape == expected.shape == is_sure.shape
    assert is_sure.mean() >= 0.5  # of a single token one edge spoils a group's two codes
    np.testing.assert_array_equal(found[is_sure], expected[is_sure])
