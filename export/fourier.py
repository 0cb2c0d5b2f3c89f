"""Real Fourier transforms of one window as matrices, so that ONNX needs no complex numbers and no FFT operator.

Spectra are [.., 2 * NUM_BINS]: real parts, then imaginary parts.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import N_FFT
from export.layout import NUM_BINS


def forward_basis(window: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """[N_FFT, 2 * NUM_BINS]: samples @ basis is the spectrum of the windowed samples (torch.stft)."""
    angle = _angles()
    basis: npt.NDArray[np.float64] = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
    basis *= window.astype(np.float64)[:, None]
    return basis


def inverse_basis(window: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[2 * NUM_BINS, N_FFT]: spectrum @ basis is the windowed signal (torch.fft.irfft, times the window).

    Every frequency but the first and the last stands for its mirror image too, hence the factor 2.
    """
    angle = _angles().T
    weight = np.full((NUM_BINS, 1), 2.0 / N_FFT)
    weight[[0, -1]] /= 2
    basis: npt.NDArray[np.float64] = np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)])
    basis *= window.astype(np.float64)
    return basis.astype(np.float32)


def _angles() -> npt.NDArray[np.float64]:
    """[N_FFT, NUM_BINS]; the product is reduced modulo N_FFT first, which keeps large ones exact."""
    turns = np.outer(np.arange(N_FFT), np.arange(NUM_BINS)) % N_FFT
    return turns * (2 * math.pi / N_FFT)
