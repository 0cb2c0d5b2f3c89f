"""The two halves of ChatTTS's DVAE that are served, in ONNX operators: hidden states -> mel, and waveform -> codes."""

from __future__ import annotations

import numpy as np
import spox.opset.ai.onnx.v20 as op
from spox import Var

from chattts_serving.audio import FRAMES_PER_TOKEN, HELD_TOKENS, HOP_LENGTH, N_FFT
from export.convnext import Alone, Surroundings, Weights, cast, convnext_block, same_conv, time_slice
from export.fourier import forward_basis
from export.timeline import Timeline

DILATION = 2  # of every ConvNeXt block here; DVAEDecoder's default, which no configuration changes
MIN_MEL = 1e-5  # mel magnitudes are clipped here before the logarithm
LEVELS = 5  # values of one quantized dimension
MAX_INPUT = 1 + 1 / (LEVELS - 1)  # the quantizer bends its input softly into [-1.25, 1.25]
NUM_RESIDUALS = 2  # quantizers of a group; each quantizes what the one before it left over
MIN_ENCODER_SAMPLES = N_FFT // 2 + 1  # the reflection at both ends needs one sample more than it mirrors


def decoder_delay(weights: Weights) -> int:
    """Frames that the decoder's output lies behind its input."""
    stack = weights.below("decoder")
    return 3 + 3 * DILATION * len(stack.parts("decoder_block"))


def dvae_decoder(weights: Weights, hidden: Var, mask: Var, state: Var) -> tuple[Var, Var, Var]:
    """Hidden states of the language model -> log mel: `DVAE.forward` of ChatTTS without a quantizer.

    Args:
        weights: the tensors of Decoder.safetensors; the mel scale `coef` is folded into the last convolution.
        hidden: float32 [B, T, H].
        mask: float32 [B, T or T + 1], 1 = real; the last HELD_TOKENS are not kept where it is longer.
        state: float32 [B, 1 or S].

    Returns:
        mel float32 [B, F, NUM_MELS], 0 where mel_mask float32 [B, F or F + 1] is, and the next state [B, S].
    """
    # The first half of a hidden state is the earlier of its token's two frames.
    channels = weights["decoder.conv_in.0.weight"].shape[1]
    frames = op.reshape(hidden, op.const([0, -1, channels]))
    timeline = Timeline(
        state,
        mask_of_frames(mask, op.shape(hidden, start=1, end=2)),
        op.shape(frames, start=1, end=2),
        most_past=decoder_delay(weights),
        num_guessed=HELD_TOKENS * FRAMES_PER_TOKEN,
    )
    frames = _stack(weights.below("decoder"), cast(frames, weights.precision), timeline)
    mel = same_conv(weights, "out_conv", frames, timeline, scale=weights["coef"].reshape(-1))
    mel = op.mul(cast(mel, np.float32), timeline.mask())
    return mel, timeline.mask_for_the_next_model(), timeline.next_state()


def mask_of_frames(mask: Var, num_tokens: Var) -> Var:
    """The mask of tokens [B, T or T + 1] as one of frames, [B, 2T or 2T + 1]; `num_tokens` is T, int64 [1]."""
    first, step = op.const(np.array([0])), op.const(np.array([1]))
    tokens = op.unsqueeze(op.slice(mask, first, num_tokens, step), op.const([2]))
    frames = op.reshape(op.concat([tokens] * FRAMES_PER_TOKEN, axis=2), op.const([0, -1]))
    return op.concat([frames, op.slice(mask, num_tokens, op.add(num_tokens, step), step)], axis=1)


def dvae_encoder(weights: Weights, audio: Var, num_samples: Var) -> tuple[Var, Var]:
    """Waveform -> audio codes, rows of different lengths: `DVAE.sample_audio` of ChatTTS.

    Args:
        weights: the tensors of DVAE.safetensors.
        audio: float32 [B, N] at 24 kHz.
        num_samples: int32 [B, 1], the true length of each row, MIN_ENCODER_SAMPLES to N.

    Returns:
        Codes int32 [B, T, 4] and num_tokens int32 [B, 1]; codes past a row's tokens are 0.
    """
    lengths = op.cast(num_samples, to=np.int64)
    num_frames = op.add(op.div(lengths, _integer(HOP_LENGTH)), _integer(1))
    num_tokens = op.div(num_frames, _integer(FRAMES_PER_TOKEN))
    mel = op.div(
        _log_mel(weights.below("preprocessor_mel.mel_spec"), audio, lengths), weights.const(weights["coef"].reshape(-1))
    )
    frame_mask = _length_mask(num_frames, mel)
    alone = Alone(frame_mask)
    frames = op.gelu(same_conv(weights, "downsample_conv.0", mel, alone))
    tokens = op.gelu(weights.conv("downsample_conv.2", alone.around(frames, 1, 1), stride=FRAMES_PER_TOKEN))
    token_mask = _length_mask(num_tokens, tokens)
    codes = _quantize(weights.below("vq_layer.quantizer"), _stack(weights.below("encoder"), tokens, Alone(token_mask)))
    codes = op.mul(op.cast(codes, to=np.int32), op.cast(token_mask, to=np.int32))
    return codes, op.cast(num_tokens, to=np.int32)


def _stack(weights: Weights, frames: Var, surroundings: Surroundings) -> Var:
    """`DVAEDecoder` of ChatTTS: [B, F, inputs] -> [B, .., outputs]."""
    frames = op.gelu(same_conv(weights, "conv_in.0", frames, surroundings))
    frames = same_conv(weights, "conv_in.2", frames, surroundings)
    for block in weights.parts("decoder_block"):
        frames = convnext_block(block, frames, surroundings, scale="weight", dilation=DILATION)
    return same_conv(weights, "conv_out", frames, surroundings)


def _log_mel(weights: Weights, audio: Var, lengths: Var) -> Var:
    """Waveform -> log mel, as torchaudio's MelSpectrogram(power=1, center=True) and a clipped logarithm.

    Args:
        weights: the analysis window [N_FFT] and the mel filters [N_FFT / 2 + 1, NUM_MELS].
        audio: [B, N].
        lengths: int64 [B, 1].

    Returns:
        [B, 1 + N // HOP_LENGTH, NUM_MELS], undefined past a row's length.
    """
    hops_around = N_FFT // HOP_LENGTH
    num_samples = op.squeeze(op.shape(audio, start=1, end=2), op.const([0]))
    num_positions = op.mul(
        op.add(op.div(num_samples, _integer(HOP_LENGTH)), _integer(hops_around)), _integer(HOP_LENGTH)
    )
    padded = _reflected(audio, lengths, num_positions)
    hops = op.reshape(padded, op.const([0, -1, HOP_LENGTH]))
    windows = op.concat([time_slice(hops, start, hops_around - 1 - start) for start in range(hops_around)], axis=2)
    # In float64: a sum of 1,024 float32 terms leaves more noise than an FFT in the quiet bands beside a loud one.
    basis = op.const(forward_basis(weights["spectrogram.window"]))
    real, imaginary = op.split(op.matmul(op.cast(windows, to=np.float64), basis), axis=2, num_outputs=2)
    magnitude = op.sqrt(op.add(op.mul(real, real), op.mul(imaginary, imaginary)))
    mel = op.matmul(op.cast(magnitude, to=np.float32), weights.const(weights["mel_scale.fb"]))
    return op.log(op.clip(mel, min=op.const(np.float32(MIN_MEL))))


def _reflected(audio: Var, lengths: Var, num_positions: Var) -> Var:
    """[B, num_positions]: each row with half a window in front and behind, mirrored at its own ends."""
    positions = op.range(_integer(0), num_positions, _integer(1))
    from_start = op.unsqueeze(op.abs(op.sub(positions, _integer(N_FFT // 2))), op.const([0]))
    last = op.sub(lengths, _integer(1))
    source = op.sub(last, op.abs(op.sub(last, from_start)))
    return op.gather_elements(audio, op.clip(source, min=_integer(0)), axis=1)


def _quantize(weights: Weights, features: Var) -> Var:
    """Finite scalar quantization in groups, with residuals: `GroupedResidualFSQ` of vector_quantize_pytorch 1.32.

    Every dimension takes one of LEVELS values; the levels of a group's dimensions are the digits of its code.
    Features [B, T, C] -> float codes [B, T, groups * NUM_RESIDUALS], a group's residuals side by side.
    """
    groups = weights.parts("rvqs")
    parts = op.split(features, axis=2, num_outputs=len(groups))
    return op.concat(
        [code for group, part in zip(groups, parts, strict=True) for code in _codes(group, part)],
        axis=2,
    )


def _codes(weights: Weights, features: Var) -> list[Var]:
    """One group's features [B, T, C] -> NUM_RESIDUALS float codes [B, T, 1]."""
    values = weights.linear("project_in", features)  # [B, T, dimensions]
    digits = op.const(LEVELS ** np.arange(len(weights["project_in.bias"]), dtype=np.float32))
    left = op.mul(op.tanh(op.div(values, _number(MAX_INPUT))), _number(MAX_INPUT))
    codes = []
    for residual in range(NUM_RESIDUALS):
        scale = LEVELS**-residual
        scaled = op.clip(op.div(left, _number(scale)), _number(-1), _number(1))
        level = op.div(op.mul(op.add(scaled, _number(1)), _number(LEVELS - 1)), _number(2))
        level = op.floor(op.add(level, _number(0.5)))
        quantized = op.mul(op.sub(op.mul(level, _number(2 / (LEVELS - 1))), _number(1)), _number(scale))
        left = op.sub(left, quantized)
        codes.append(op.reduce_sum(op.mul(level, digits), op.const([2])))
    return codes


def _length_mask(lengths: Var, frames: Var) -> Var:
    """float32 [B, F, 1]: 1 on the first `lengths` [B, 1] of the F `frames`."""
    num_frames = op.squeeze(op.shape(frames, start=1, end=2), op.const([0]))
    is_real = op.less(op.range(_integer(0), num_frames, _integer(1)), lengths)
    return op.cast(op.unsqueeze(is_real, op.const([2])), to=np.float32)


def _integer(value: int) -> Var:
    return op.const(np.int64(value))


def _number(value: float) -> Var:
    return op.const(np.float32(value))
