"""Real Fourier transforms of one window as matrices, so that ONNX needs no complex numbers and no FFT operator.

Spectra are [.., 2 * NUM_BINS]: real parts, then imaginary parts.
"""

from __future__ import annotations

import math

import torch

from chattts_serving.audio import N_FFT
from export.layout import NUM_BINS


def forward_basis(window: torch.Tensor) -> torch.Tensor:
    """[N_FFT, 2 * NUM_BINS] float64: samples @ basis is the spectrum of the windowed samples (torch.stft)."""
    angle = _angles()
    basis = torch.cat([torch.cos(angle), -torch.sin(angle)], dim=1)
    return window.double()[:, None] * basis


def inverse_basis(window: torch.Tensor) -> torch.Tensor:
    """[2 * NUM_BINS, N_FFT] float32: spectrum @ basis is the windowed signal (torch.fft.irfft, times the window).

    Every frequency but the first and the last stands for its mirror image too, hence the factor 2.
    """
    angle = _angles().T
    weight = torch.full((NUM_BINS, 1), 2.0 / N_FFT, dtype=torch.float64)
    weight[[0, -1]] /= 2
    basis = torch.cat([weight * torch.cos(angle), -weight * torch.sin(angle)])
    return (basis * window.double()).float()


def _angles() -> torch.Tensor:
    """[N_FFT, NUM_BINS] float64; the product is reduced modulo N_FFT first, which keeps large ones exact."""
    turns = torch.outer(torch.arange(N_FFT), torch.arange(NUM_BINS)) % N_FFT
    return turns.double() * (2 * math.pi / N_FFT)
