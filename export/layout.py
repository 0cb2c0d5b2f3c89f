"""The official checkpoint layout: which tensors stand in which file, as a function of a handful of sizes.

`checkpoint` checks a folder against it and `synthetic` fills it. Names are those of the modules' state dicts in ChatTTS
0.2.5 and vocos 0.1.0, which both load strictly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from chattts_serving.audio import N_FFT, NUM_MELS
from chattts_serving.request import NUM_AUDIO_TOKENS

NUM_CODEBOOKS = 4  # 2 groups of 2 residual quantizers
NUM_GROUPS = 2
NUM_LEVELS = 4  # dimensions of one quantizer, 5 levels each: 625 codes
KERNEL = 7  # of every depthwise convolution
NUM_BINS = N_FFT // 2 + 1  # frequencies of one STFT frame

DECODER_FILE = "asset/Decoder.safetensors"
DVAE_FILE = "asset/DVAE.safetensors"
EMBED_FILE = "asset/Embed.safetensors"
VOCOS_FILE = "asset/Vocos.safetensors"
GPT_FILE = "asset/gpt/model.safetensors"
GPT_CONFIG_FILE = "asset/gpt/config.json"
TOKENIZER_FILES = (
    "asset/tokenizer/special_tokens_map.json",
    "asset/tokenizer/tokenizer_config.json",
    "asset/tokenizer/tokenizer.json",
)
TENSOR_FILES = (DECODER_FILE, DVAE_FILE, EMBED_FILE, VOCOS_FILE, GPT_FILE)
OFFICIAL_FILES = (*TENSOR_FILES, GPT_CONFIG_FILE, *TOKENIZER_FILES)
SPEAKER_STATISTICS_FILE = "asset/spk_stat.txt"  # ours and optional: the package's constant fits hidden size 768 only

Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # tensor name -> shape


@dataclass(frozen=True)
class GPTSizes:
    """Sizes of the language model: a Llama without its token embedding."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    num_text_tokens: int


@dataclass(frozen=True)
class ConvNeXtSizes:
    """Sizes of one ConvNeXt stack (`DVAEDecoder` of ChatTTS), in channels.

    Attributes:
        idim: input.
        odim: output.
        hidden: residual stream; the MLP is 4 times as wide.
        num_layers: blocks.
        bn_dim: bottleneck between input and residual stream.
    """

    idim: int
    odim: int
    hidden: int
    num_layers: int
    bn_dim: int


@dataclass(frozen=True)
class VocosSizes:
    """Sizes of the vocoder, in channels."""

    dim: int
    intermediate: int
    num_layers: int


@dataclass(frozen=True)
class Sizes:
    """Everything that differs between checkpoints.

    Attributes:
        gpt: language model.
        decoder: hidden states -> mel; takes half a hidden state per mel frame.
        dvae_encoder: downsampled mel -> features to quantize.
        dvae_decoder: quantized features -> mel (loaded by ChatTTS, not served).
        vq: features per quantized frame, `dvae_encoder.odim`.
        vocos: mel -> waveform.
    """

    gpt: GPTSizes
    decoder: ConvNeXtSizes
    dvae_encoder: ConvNeXtSizes
    dvae_decoder: ConvNeXtSizes
    vq: int
    vocos: VocosSizes


def tensor_shapes(sizes: Sizes) -> dict[str, Shapes]:
    """Every tensor that a checkpoint of these sizes must hold: {file: {name: shape}}."""
    return {
        DECODER_FILE: dict(_dvae_tail(sizes.decoder)),
        DVAE_FILE: {**dict(_dvae_head(sizes)), **dict(_dvae_tail(sizes.dvae_decoder))},
        EMBED_FILE: dict(_embed(sizes.gpt)),
        VOCOS_FILE: dict(_vocos(sizes.vocos)),
        GPT_FILE: dict(_gpt(sizes.gpt)),
    }


def _gpt(gpt: GPTSizes) -> Iterator[tuple[str, Shape]]:
    for layer in range(gpt.num_layers):
        prefix = f"layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (gpt.hidden,)
        for name in "qkvo":
            yield f"{prefix}.self_attn.{name}_proj.weight", (gpt.hidden, gpt.hidden)
        yield f"{prefix}.post_attention_layernorm.weight", (gpt.hidden,)
        for name in ("gate", "up"):
            yield f"{prefix}.mlp.{name}_proj.weight", (gpt.intermediate, gpt.hidden)
        yield f"{prefix}.mlp.down_proj.weight", (gpt.hidden, gpt.intermediate)
    yield "norm.weight", (gpt.hidden,)


def _embed(gpt: GPTSizes) -> Iterator[tuple[str, Shape]]:
    yield "emb_text.weight", (gpt.num_text_tokens, gpt.hidden)
    for codebook in range(NUM_CODEBOOKS):
        yield f"emb_code.{codebook}.weight", (NUM_AUDIO_TOKENS, gpt.hidden)
    heads = [("head_text", gpt.num_text_tokens), *((f"head_code.{i}", NUM_AUDIO_TOKENS) for i in range(NUM_CODEBOOKS))]
    for head, rows in heads:  # weight norm: row = original0 * original1 / |original1|
        yield f"{head}.parametrizations.weight.original0", (rows, 1)
        yield f"{head}.parametrizations.weight.original1", (rows, gpt.hidden)


def _convnext_stack(prefix: str, stack: ConvNeXtSizes) -> Iterator[tuple[str, Shape]]:
    yield from _conv(f"{prefix}.conv_in.0", stack.bn_dim, stack.idim, 3)
    yield from _conv(f"{prefix}.conv_in.2", stack.hidden, stack.bn_dim, 3)
    for layer in range(stack.num_layers):
        block = f"{prefix}.decoder_block.{layer}"
        yield f"{block}.weight", (stack.hidden,)
        yield from _convnext_block(block, stack.hidden, 4 * stack.hidden)
    yield f"{prefix}.conv_out.weight", (stack.odim, stack.hidden, 1)


def _convnext_block(block: str, dim: int, intermediate: int) -> Iterator[tuple[str, Shape]]:
    yield from _conv(f"{block}.dwconv", dim, 1, KERNEL)
    yield from _norm(f"{block}.norm", dim)
    yield from _linear(f"{block}.pwconv1", intermediate, dim)
    yield from _linear(f"{block}.pwconv2", dim, intermediate)


def _dvae_tail(stack: ConvNeXtSizes) -> Iterator[tuple[str, Shape]]:
    """What decodes to mel: the whole of `Decoder`, and the second half of `DVAE`."""
    yield "coef", (1, NUM_MELS, 1)
    yield from _convnext_stack("decoder", stack)
    yield "out_conv.weight", (NUM_MELS, stack.idim, 3)


def _dvae_head(sizes: Sizes) -> Iterator[tuple[str, Shape]]:
    """What encodes a waveform, and the quantizer."""
    dim = sizes.dvae_decoder.idim
    yield from _conv("downsample_conv.0", dim, NUM_MELS, 3)
    yield from _conv("downsample_conv.2", dim, dim, 4)
    yield from _mel_buffers("preprocessor_mel")
    yield from _convnext_stack("encoder", sizes.dvae_encoder)
    features = sizes.vq // NUM_GROUPS
    for group in range(NUM_GROUPS):
        quantizer = f"vq_layer.quantizer.rvqs.{group}"
        yield from _linear(f"{quantizer}.project_in", NUM_LEVELS, features)
        yield from _linear(f"{quantizer}.project_out", features, NUM_LEVELS)


def _vocos(vocos: VocosSizes) -> Iterator[tuple[str, Shape]]:
    yield from _mel_buffers("feature_extractor")
    yield from _conv("backbone.embed", vocos.dim, NUM_MELS, KERNEL)
    yield from _norm("backbone.norm", vocos.dim)
    for layer in range(vocos.num_layers):
        block = f"backbone.convnext.{layer}"
        yield f"{block}.gamma", (vocos.dim,)
        yield from _convnext_block(block, vocos.dim, vocos.intermediate)
    yield from _norm("backbone.final_layer_norm", vocos.dim)
    yield from _linear("head.out", 2 * NUM_BINS, vocos.dim)  # log magnitudes, then phases
    yield "head.istft.window", (N_FFT,)


def _mel_buffers(prefix: str) -> Iterator[tuple[str, Shape]]:
    yield f"{prefix}.mel_spec.spectrogram.window", (N_FFT,)
    yield f"{prefix}.mel_spec.mel_scale.fb", (NUM_BINS, NUM_MELS)


def _conv(name: str, outputs: int, inputs: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs, kernel)
    yield f"{name}.bias", (outputs,)


def _linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, dim: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (dim,)
    yield f"{name}.bias", (dim,)
