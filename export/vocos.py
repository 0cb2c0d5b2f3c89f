"""Vocos in ONNX operators: mel -> waveform, the inverse STFT included."""

from __future__ import annotations

from functools import reduce

import numpy as np
import numpy.typing as npt
import spox.opset.ai.onnx.v20 as op
from spox import Var

from chattts_serving.audio import CONTEXT_TOKENS, FRAMES_PER_TOKEN, HELD_TOKENS, HOP_LENGTH, N_FFT
from chattts_serving.errors import ConfigError
from export.convnext import Weights, cast, convnext_block, same_conv, time_slice
from export.fourier import inverse_basis
from export.timeline import Timeline

MAX_MAGNITUDE = 1e2  # ISTFTHead of vocos clips here
QUARTERS = N_FFT // HOP_LENGTH  # a window covers four hops; every hop is the sum of four windows' quarters
FRAMES_BEFORE, FRAMES_AFTER = 1, 2  # the windows that reach into hop j are those of the frames j - 1 to j + 2


def vocos_delay(weights: Weights) -> int:
    """Frames that the waveform lies behind the mel spectrogram."""
    return 3 * (1 + len(weights.below("backbone").parts("convnext"))) + FRAMES_AFTER


def vocos(weights: Weights, mel: Var, mel_mask: Var, state: Var, delay: int) -> tuple[Var, Var]:
    """Backbone of ConvNeXt blocks, a head that predicts the spectrum, and the inverse STFT.

    Args:
        weights: the tensors of Vocos.safetensors. The spectrum and its inverse transform are float32 in any precision:
            small errors of a phase add up there.
        mel: log mel float32 [B, F, NUM_MELS].
        mel_mask: float32 [B, F or F + 1], 1 = real.
        state: float32 [B, 1 or S].
        delay: of the decoder. So many frames at the end, and the held ones, are not kept where its mask was longer.

    Returns:
        The waveform float32 [B, N], 24 kHz, and the next state [B, S].
    """
    timeline = Timeline(
        state,
        mel_mask,
        op.shape(mel, start=1, end=2),
        most_past=CONTEXT_TOKENS * FRAMES_PER_TOKEN - delay + FRAMES_BEFORE,
        num_guessed=delay + HELD_TOKENS * FRAMES_PER_TOKEN,
    )
    waits = CONTEXT_TOKENS * FRAMES_PER_TOKEN - delay - vocos_delay(weights)
    if waits < 0:
        raise ConfigError(f"decoder and vocoder see {-waits} frames more to each side than {CONTEXT_TOKENS} tokens")
    if waits:
        mel = time_slice(timeline.around(mel, 0, waits), 0, waits)
    magnitude, phase = _spectrum(weights, cast(mel, weights.precision), timeline)
    mask = timeline.mask()
    magnitude = op.mul(op.clip(op.exp(magnitude), max=op.const(np.float32(MAX_MAGNITUDE))), mask)
    spectrum = op.concat([op.mul(magnitude, op.cos(phase)), op.mul(magnitude, op.sin(phase))], axis=2)
    window = weights["head.istft.window"]
    mask = timeline.mask(FRAMES_BEFORE, FRAMES_AFTER)
    windows = timeline.around(op.matmul(spectrum, op.const(inverse_basis(window))), FRAMES_BEFORE, FRAMES_AFTER)
    return overlap_add(windows, mask, window), timeline.next_state()


def overlap_add(windows: Var, mask: Var, window: npt.NDArray[np.float32]) -> Var:
    """Windows -> waveform, as torch.istft(center=True) does for every run of real frames alone.

    Frame f is centred on sample f * HOP_LENGTH, so hop j lies between the frames j and j + 1 and is real where both
    are: a run of the frames [a, b) gives the samples from a * HOP_LENGTH to (b - 1) * HOP_LENGTH. All others are 0.

    Args:
        windows: windowed signals [B, FRAMES_BEFORE + F + FRAMES_AFTER, N_FFT], 0 where the mask is.
        mask: [B, FRAMES_BEFORE + F + FRAMES_AFTER, 1].
        window: the synthesis window, [N_FFT].
    """
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


def _spectrum(weights: Weights, mel: Var, timeline: Timeline) -> tuple[Var, Var]:
    """Log magnitude and phase of each frame, float32 [B, .., NUM_BINS]."""
    backbone = weights.below("backbone")
    frames = backbone.layer_norm("norm", same_conv(backbone, "embed", mel, timeline))
    for block in backbone.parts("convnext"):
        frames = convnext_block(block, frames, timeline, scale="gamma")
    mask = cast(timeline.mask(), weights.precision)
    # The mask only keeps the last block's addition and the normalisation apart. ONNX Runtime would make one
    # SkipLayerNormalization of them, which is five times as slow on a CPU.
    spectrum = weights.linear("head.out", backbone.layer_norm("final_layer_norm", op.mul(frames, mask)))
    log_magnitude, phase = op.split(cast(spectrum, np.float32), axis=2, num_outputs=2)
    return log_magnitude, phase
