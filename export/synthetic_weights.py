"""Random tensors for a checkpoint, scaled so that the model behaves as a trained one does.

Scales follow from variance bookkeeping: a matrix with standard deviation gain / sqrt(fan-in) turns inputs of size 1
into outputs of size `gain`. What comes of it (measured, both sizes): hidden states of size 1, logits of standard
deviation 2.5, sentences that end by themselves after about 3 s, a waveform of rms 0.13 within [-1, 1].
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from chattts_serving.audio import N_FFT, NUM_MELS, SAMPLE_RATE
from chattts_serving.voice import base16384
from export.layout import (
    DECODER_FILE,
    DVAE_FILE,
    EMBED_FILE,
    GPT_FILE,
    NUM_BINS,
    NUM_CODEBOOKS,
    SPEAKER_STATISTICS_FILE,
    VOCOS_FILE,
    ConvNeXtSizes,
    GPTSizes,
    Shape,
    Shapes,
    Sizes,
)
from export.synthetic_tokenizer import BERT_TOKENS, CHATTTS_TOKENS, wordpiece_vocabulary

Array = npt.NDArray[np.float32]

LOGIT_STD = 2.5  # before the temperature: the first of 626 leads the second by about 0.8
EMBEDDING_STD = 1.0
RESIDUAL_GROWTH = 4.0  # variance that all layers together add to the embedding's 1
END_OF_TEXT_GAIN = 2.0  # [Ebreak]'s logit spreads twice as wide, so that refined texts end after some dozen tokens
FIRST_TOKEN_PENALTY = 4.0  # standard deviations that an end token lies low right after the prompt
UNSPEAKABLE_GAIN = 0.01  # keeps [PAD], [UNK], [Stts] ... out of refined texts
PROMPT_ENDS = ("[Pbreak]", *(token for token in CHATTTS_TOKENS if token.startswith(("[break_", "[laugh_", "[oral_"))))
MAGNITUDE_STD = 0.7  # of log magnitudes: +-6 dB
PHASE_STD = 2.0  # radians: phases all round the circle


def make_tensors(sizes: Sizes, file: str, shapes: Shapes, seed: int) -> dict[str, Array]:
    """The tensors of one file of the layout, float32: the same for the same seed, name and shape."""
    make = _MAKERS[file]
    tensors = {name: make(sizes, name, shape, _generator(seed, file, name)) for name, shape in shapes.items()}
    if file == EMBED_FILE:
        _shape_endings(tensors, sizes.gpt)
    return tensors


def make_speaker_statistics(hidden: int, seed: int) -> str:
    """Standard deviation and mean of speaker vectors, spread like the official ones (3.7 and 0 +- 1.7).

    Returns:
        base16384 over float16[2 * hidden].
    """
    rng = _generator(seed, SPEAKER_STATISTICS_FILE, "")
    std = 3.7 + np.abs(_normal(rng, (hidden,), 1.0))
    mean = _normal(rng, (hidden,), 1.7)
    return base16384.encode(np.concatenate([std, mean]).astype(np.float16).tobytes())


def _generator(seed: int, file: str, name: str) -> np.random.Generator:
    """A stream of its own for each tensor, so that one size or one more layer leaves the other tensors as they are."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{file}/{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.PCG64(key))


def _normal(rng: np.random.Generator, shape: Shape, std: float) -> Array:
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(std)
    return values


def _matrix(rng: np.random.Generator, shape: Shape, gain: float) -> Array:
    """A weight [outputs, inputs(, kernel)] that multiplies the size of its input by `gain`."""
    return _normal(rng, shape, gain / math.sqrt(math.prod(shape[1:])))


def _make_gpt(sizes: Sizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    added = math.sqrt(RESIDUAL_GROWTH / (2 * sizes.gpt.num_layers))  # standard deviation that one sublayer adds
    gains = {
        "q_proj": 1.4,  # attention scores of standard deviation 2: sharp enough to tell tokens apart
        "k_proj": 1.4,
        "v_proj": 1.0,
        "o_proj": added / 0.4,  # averaging leaves 0.4 of the values' size
        "gate_proj": 1.0,
        "up_proj": 1.0,
        "down_proj": added / 0.6,  # silu(a) * b of two standard normals has standard deviation 0.6
    }
    kind = name.split(".")[-2]
    if kind in gains:
        return _matrix(rng, shape, gains[kind])
    return 1 + _normal(rng, shape, 0.1)  # RMSNorm


def _make_embed(_sizes: Sizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    if name.endswith("original0"):  # length of each row; the rows themselves are directions
        return LOGIT_STD + _normal(rng, shape, 0.05 * LOGIT_STD)
    if name.startswith("emb_code"):
        return _normal(rng, shape, EMBEDDING_STD / math.sqrt(NUM_CODEBOOKS))  # four of them are added up
    return _normal(rng, shape, EMBEDDING_STD)


def _shape_endings(tensors: dict[str, Array], gpt: GPTSizes) -> None:
    """Let refined texts end after some dozen tokens, consist of text, and nothing end with its first token.

    ChatTTS draws again for ever where a first token ends the sequence and the draw is greedy.
    """
    tokens = [*wordpiece_vocabulary(gpt.num_text_tokens - len(CHATTTS_TOKENS)), *CHATTTS_TOKENS]
    ids = {token: number for number, token in enumerate(tokens)}
    lengths = tensors["head_text.parametrizations.weight.original0"]
    speakable = {"[Ebreak]", "[uv_break]", "[lbreak]", "[laugh]"}
    first_tag = ids["[break_0]"]  # tags from here on are cut out of refined texts by ChatTTS; let some be drawn
    lengths[[ids[token] for token in BERT_TOKENS]] *= UNSPEAKABLE_GAIN
    lengths[[ids[token] for token in CHATTTS_TOKENS if token not in speakable and ids[token] < first_tag]] *= (
        UNSPEAKABLE_GAIN
    )
    lengths[ids["[Ebreak]"]] *= END_OF_TEXT_GAIN
    embedding = tensors["emb_text.weight"]
    directions = tensors["head_text.parametrizations.weight.original1"]
    for token in PROMPT_ENDS:
        _push_away(embedding[ids[token]], directions[ids["[Ebreak]"]])
    for codebook in range(NUM_CODEBOOKS):
        directions = tensors[f"head_code.{codebook}.parametrizations.weight.original1"]
        _push_away(embedding[ids["[Ptts]"]], directions[-1])  # the last audio token ends the audio


def _push_away(vector: Array, direction: Array) -> None:
    """Set the component of `vector` along `direction` to -FIRST_TOKEN_PENALTY, in place."""
    unit = direction / np.linalg.norm(direction)
    vector -= (vector @ unit + FIRST_TOKEN_PENALTY * EMBEDDING_STD) * unit


def _make_decoder(sizes: Sizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    return _make_stack(sizes.decoder, name, shape, rng)


def _make_dvae(sizes: Sizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    if name.startswith("preprocessor_mel"):
        return _mel_buffer(name)
    stack = sizes.dvae_encoder if name.startswith("encoder") else sizes.dvae_decoder
    values = _make_stack(stack, name, shape, rng)
    if name == "downsample_conv.0.weight":  # blind to the level of the log mel, or all recordings get the same codes
        values -= values.mean(axis=(1, 2), keepdims=True)
    return values


def _make_stack(stack: ConvNeXtSizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    if name == "coef":  # standard deviation of each log mel band
        return 2 + _normal(rng, shape, 0.2)
    if name.endswith(".weight") and len(shape) == 1 and ".norm." not in name:  # layer scale
        return np.full(shape, math.sqrt(1 / stack.num_layers), np.float32)
    gains = {
        "out_conv.weight": 0.7,  # the blocks before it have doubled the variance
        "project_in.weight": 0.7,
        "project_out.weight": 0.7,
    }
    return _make_layer(name, shape, rng, next((gain for end, gain in gains.items() if name.endswith(end)), 1.0))


def _make_vocos(sizes: Sizes, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    if name.startswith("feature_extractor"):
        return _mel_buffer(name)
    if name == "head.istft.window":
        return _hann_window()
    if name.endswith("gamma"):
        return np.full(shape, math.sqrt(1 / sizes.vocos.num_layers), np.float32)
    if name == "head.out.weight":
        gain = np.repeat([MAGNITUDE_STD, PHASE_STD], NUM_BINS)[:, None]
        return np.asarray(_matrix(rng, shape, 1.0) * gain, np.float32)
    if name == "head.out.bias":
        return np.concatenate([_log_magnitudes(), np.zeros(NUM_BINS)]).astype(np.float32)
    return _make_layer(name, shape, rng, 1.0)


def _log_magnitudes() -> npt.NDArray[np.float64]:
    """Mean log magnitude of each frequency: pink noise of amplitude about 0.1."""
    frequency = np.maximum(np.arange(NUM_BINS), 4)
    means: npt.NDArray[np.float64] = 3.2 - 0.8 * np.log(frequency / 4)
    return means


def _make_layer(name: str, shape: Shape, rng: np.random.Generator, gain: float) -> Array:
    if name.endswith("bias"):
        return _normal(rng, shape, 0.1)
    if len(shape) == 1:  # LayerNorm
        return 1 + _normal(rng, shape, 0.1)
    if name.endswith(("pwconv2.weight", "conv_in.2.weight", "downsample_conv.2.weight")):
        gain /= 0.65  # behind a GELU, which leaves 0.65 of a standard normal's size
    return _matrix(rng, shape, gain)


def _mel_buffer(name: str) -> Array:
    return mel_filters() if name.endswith("fb") else _hann_window()


def _hann_window() -> Array:
    """Periodic Hann window [N_FFT], as torch.hann_window makes it."""
    window: Array = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return window


def mel_filters() -> Array:
    """Triangular filters [NUM_BINS, NUM_MELS] on the HTK mel scale: torchaudio.functional.melscale_fbanks."""
    frequencies = np.linspace(0, SAMPLE_RATE / 2, NUM_BINS)  # Hz
    mels = np.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE / 2 / 700), NUM_MELS + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)  # Hz
    rising = (frequencies[:, None] - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies[:, None]) / (corners[2:] - corners[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


_MAKERS: Mapping[str, Callable[[Sizes, str, Shape, np.random.Generator], Array]] = {
    GPT_FILE: _make_gpt,
    EMBED_FILE: _make_embed,
    DECODER_FILE: _make_decoder,
    DVAE_FILE: _make_dvae,
    VOCOS_FILE: _make_vocos,
}
