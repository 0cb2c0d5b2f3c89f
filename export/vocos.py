"""Vocos in ONNX operators: mel -> waveform, the inverse STFT included."""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt
import spox.opset.ai.onnx.v20 as op
from spox import Var

from chattts_serving.audio import HOP_LENGTH, N_FFT
from export.convnext import Weights, cast, convnext_block, time_slice
from export.fourier import inverse_basis

MAX_MAGNITUDE = 1e2  # ISTFTHead of vocos clips here
QUARTERS = N_FFT // HOP_LENGTH  # a window covers four hops; every hop is the sum of four windows' quarters
FRAMES_BEFORE, FRAMES_AFTER = 1, 2  # the windows that reach into hop j are those of the frames j - 1 to j + 2


def vocos(weights: Weights, mel: Var, mel_mask: Var) -> Var:
    """Backbone of ConvNeXt blocks, a head that predicts the spectrum, and the inverse STFT.

    Args:
        weights: the tensors of Vocos.safetensors. The spectrum and its inverse transform are float32 in any precision:
            small errors of a phase add up there.
        mel: log mel float32 [B, F, NUM_MELS].
        mel_mask: float32 [B, F], 1 = real.

    Returns:
        The waveform float32 [B, F * HOP_LENGTH], 24 kHz.
    """
    mask = op.unsqueeze(mel_mask, op.const([2]))
    magnitude, phase = _spectrum(weights, cast(mel, weights.precision), cast(mask, weights.precision))
    magnitude = op.mul(op.clip(op.exp(magnitude), max=op.const(np.float32(MAX_MAGNITUDE))), mask)
    spectrum = op.concat([op.mul(magnitude, op.cos(phase)), op.mul(magnitude, op.sin(phase))], axis=2)
    window = weights["head.istft.window"]
    return overlap_add(op.matmul(spectrum, op.const(inverse_basis(window))), mask, window)


def overlap_add(windows: Var, mask: Var, window: npt.NDArray[np.float32]) -> Var:
    """Windows -> waveform, as torch.istft(center=True) does for every run of real frames alone.

    Frame f is centred on sample f * HOP_LENGTH, so hop j lies between the frames j and j + 1 and is real where both
    are: a run of the frames [a, b) gives the samples from a * HOP_LENGTH to (b - 1) * HOP_LENGTH. All others are 0.

    Args:
        windows: windowed signals [B, F, N_FFT], 0 where the mask is.
        mask: [B, F, 1].
        window: the synthesis window, [N_FFT].
    """
    around = op.const(np.array([0, FRAMES_BEFORE, 0, 0, FRAMES_AFTER, 0], np.int64))
    windows, mask = op.pad(windows, around), op.pad(mask, around)
    # The first quarter of a hop's sum comes from the latest window, that of the frame j + 2.
    starts = range(QUARTERS - 1, -1, -1)
    quarters = [
        time_slice(windows, start, QUARTERS - 1 - start, slice(quarter * HOP_LENGTH, (quarter + 1) * HOP_LENGTH))
        for quarter, start in enumerate(starts)
    ]
    masks = [time_slice(mask, start, QUARTERS - 1 - start) for start in starts]
    envelope = op.const(np.square(window).reshape(QUARTERS, HOP_LENGTH))
    weight = op.matmul(op.concat(masks, axis=2), envelope)
    real = op.mul(masks[1], masks[2])  # the frames j + 1 and j
    # A Hann window and its neighbour weigh 0.5 together at least, so the bound holds off only divisions by 0.
    hops = op.div(op.mul(reduce(op.add, quarters), real), op.clip(weight, min=op.const(np.float32(0.25))))
    return op.reshape(hops, op.const([0, -1]))


def _spectrum(weights: Weights, mel: Var, mask: Var) -> tuple[Var, Var]:
    """Log magnitude and phase of each frame, float32 [B, F, NUM_BINS]."""
    backbone = weights.below("backbone")
    frames = backbone.layer_norm("norm", backbone.conv("embed", mel, mask))
    for block in backbone.parts("convnext"):
        frames = convnext_block(block, frames, mask, scale="gamma")
    # The mask only keeps the last block's addition and the normalisation apart. ONNX Runtime would make one
    # SkipLayerNormalization of them, which is five times as slow on a CPU.
    spectrum = weights.linear("head.out", backbone.layer_norm("final_layer_norm", op.mul(frames, mask)))
    log_magnitude, phase = op.split(cast(spectrum, np.float32), axis=2, num_outputs=2)
    return log_magnitude, phase
