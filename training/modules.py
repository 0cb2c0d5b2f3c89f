"""The models of the official layout as they are trained: their state dicts have the names of `export.layout`.

Serving has modules of its own, which are faster and cannot learn. Sequences are [batch, channels, time] in convolutions
and [batch, time, channels] elsewhere.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from chattts_serving.audio import FRAMES_PER_TOKEN, HOP_LENGTH, N_FFT, NUM_MELS
from chattts_serving.request import NUM_AUDIO_TOKENS
from export.convnext import LAYER_NORM_EPS
from export.dvae import DILATION, LEVELS, MAX_INPUT, MIN_MEL, NUM_RESIDUALS
from export.layout import KERNEL, NUM_BINS, NUM_CODEBOOKS, NUM_GROUPS, NUM_LEVELS, ConvNeXtSizes, GPTSizes, VocosSizes
from export.synthetic_tokenizer import CHATTTS_TOKENS
from export.synthetic_weights import mel_filters
from export.vocos import MAX_MAGNITUDE
from training.table import TextTable
from training.vocabulary import SOUNDS, VOCABULARY


class Block(nn.Module):
    """A ConvNeXt block (Liu et al. 2022) in one dimension; `scale` names its layer scale."""

    def __init__(self, dim: int, intermediate: int, *, scale: str, dilation: int, first_scale: float) -> None:
        """`first_scale` is the layer scale before training."""
        super().__init__()
        padding = dilation * (KERNEL // 2)
        self.dwconv = nn.Conv1d(dim, dim, KERNEL, padding=padding, dilation=dilation, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pwconv1 = nn.Linear(dim, intermediate)
        self.pwconv2 = nn.Linear(intermediate, dim)
        self._scale = scale
        self.register_parameter(scale, nn.Parameter(torch.full((dim,), first_scale)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]."""
        change = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x).transpose(1, 2)))))
        return x + (change * getattr(self, self._scale)).transpose(1, 2)


class Stack(nn.Module):
    """`DVAEDecoder` of ChatTTS: [B, idim, T] -> [B, odim, T]."""

    def __init__(self, sizes: ConvNeXtSizes) -> None:
        """Random weights."""
        super().__init__()
        self.conv_in = nn.Sequential(
            nn.Conv1d(sizes.idim, sizes.bn_dim, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(sizes.bn_dim, sizes.hidden, 3, padding=1),
        )
        first = 1 / math.sqrt(sizes.num_layers)
        self.decoder_block = nn.ModuleList(
            Block(sizes.hidden, 4 * sizes.hidden, scale="weight", dilation=DILATION, first_scale=first)
            for _ in range(sizes.num_layers)
        )
        self.conv_out = nn.Conv1d(sizes.hidden, sizes.odim, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the stack."""
        x = self.conv_in(x)
        for block in self.decoder_block:
            x = block(x)
        return self.conv_out(x)


class MelDecoder(nn.Module):
    """Two frames of features a token -> log mel: Decoder.safetensors, and the second half of DVAE.safetensors."""

    coef: torch.Tensor

    def __init__(self, sizes: ConvNeXtSizes) -> None:
        """Random weights; `coef`, the scale of each band, is set from the corpus."""
        super().__init__()
        self.register_buffer("coef", torch.ones(1, NUM_MELS, 1))
        self.decoder = Stack(sizes)
        self.out_conv = nn.Conv1d(sizes.idim, NUM_MELS, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features [B, T, 2 idim] -> log mel [B, NUM_MELS, 2 T]."""
        frames = features.unflatten(2, (FRAMES_PER_TOKEN, -1)).flatten(1, 2)
        return self.out_conv(self.decoder(frames.transpose(1, 2))) * self.coef


class Quantizer(nn.Module):
    """Grouped residual finite scalar quantization (Mentzer et al. 2023), one group."""

    digits: torch.Tensor

    def __init__(self, features: int) -> None:
        """Random projections of `features` channels to the quantized dimensions and back."""
        super().__init__()
        self.project_in = nn.Linear(features, NUM_LEVELS)
        self.project_out = nn.Linear(NUM_LEVELS, features)
        self.register_buffer("digits", LEVELS ** torch.arange(NUM_LEVELS, dtype=torch.float32), persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, features] -> the same quantized, with the gradient of the bounded; codes int64 [B, T, residuals]."""
        bounded = (self.project_in(x) / MAX_INPUT).tanh() * MAX_INPUT
        left, codes = bounded.detach(), []
        for residual in range(NUM_RESIDUALS):
            scale = LEVELS**-residual
            level = ((LEVELS - 1) * ((left / scale).clamp(-1, 1) + 1) / 2 + 0.5).floor()
            left = left - (level * (2 / (LEVELS - 1)) - 1) * scale
            codes.append((level * self.digits).sum(dim=2).long())
        return self.project_out(bounded - left), torch.stack(codes, dim=2)

    def features(self, codes: torch.Tensor) -> torch.Tensor:
        """What stands for `codes`, int64 [B, T, residuals]: [B, T, features]."""
        levels = (codes[..., None] // self.digits.long()) % LEVELS  # [B, T, residuals, NUM_LEVELS]
        scales = float(LEVELS) ** -torch.arange(NUM_RESIDUALS, device=codes.device)
        return self.project_out(((levels * (2 / (LEVELS - 1)) - 1) * scales[:, None]).sum(dim=2))


class Codec(nn.Module):
    """The DVAE: log mel -> codes -> log mel."""

    coef: torch.Tensor

    def __init__(self, encoder: ConvNeXtSizes, decoder: ConvNeXtSizes) -> None:
        """Random weights."""
        super().__init__()
        self.downsample_conv = nn.Sequential(
            nn.Conv1d(NUM_MELS, encoder.idim, 3, padding=1),
            nn.GELU(),
            nn.Conv1d(encoder.idim, encoder.idim, 4, stride=2, padding=1),
            nn.GELU(),
        )
        self.encoder = Stack(encoder)
        self.quantizers = nn.ModuleList(Quantizer(encoder.odim // NUM_GROUPS) for _ in range(NUM_GROUPS))
        self.tail = MelDecoder(decoder)

    def encode(self, mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log mel [B, NUM_MELS, 2 T] -> features [B, T, odim], codes int64 [B, T, NUM_CODEBOOKS]."""
        x = self.encoder(self.downsample_conv(mel / self.tail.coef)).transpose(1, 2)
        parts = [one(group) for one, group in zip(self.quantizers, x.chunk(NUM_GROUPS, dim=2), strict=True)]
        return torch.cat([features for features, _ in parts], dim=2), torch.cat([codes for _, codes in parts], dim=2)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, T, NUM_CODEBOOKS] -> log mel [B, NUM_MELS, 2 T]."""
        groups = zip(self.quantizers, codes.chunk(NUM_GROUPS, dim=2), strict=True)
        return self.tail(torch.cat([cast(Quantizer, one).features(group) for one, group in groups], dim=2))

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Log mel as the codes have it, [B, NUM_MELS, 2 T]."""
        return self.tail(self.encode(mel)[0])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of DVAE.safetensors."""
        state = {name.removeprefix("tail."): tensor for name, tensor in self.state_dict().items()}
        named = {name.replace("quantizers.", "vq_layer.quantizer.rvqs."): tensor for name, tensor in state.items()}
        return named | mel_buffers("preprocessor_mel")


class Vocoder(nn.Module):
    """Vocos (Siuzdak 2023): log mel -> waveform."""

    window: torch.Tensor

    def __init__(self, sizes: VocosSizes) -> None:
        """Random weights."""
        super().__init__()
        self.embed = nn.Conv1d(NUM_MELS, sizes.dim, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPS)
        self.convnext = nn.ModuleList(
            Block(sizes.dim, sizes.intermediate, scale="gamma", dilation=1, first_scale=1 / sizes.num_layers)
            for _ in range(sizes.num_layers)
        )
        self.final_layer_norm = nn.LayerNorm(sizes.dim, eps=LAYER_NORM_EPS)
        self.out = nn.Linear(sizes.dim, 2 * NUM_BINS)
        self.register_buffer("window", torch.hann_window(N_FFT), persistent=False)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Log mel [B, NUM_MELS, F] -> waveform [B, (F - 1) * HOP_LENGTH]."""
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        magnitude, phase = self.out(self.final_layer_norm(x.transpose(1, 2))).float().transpose(1, 2).chunk(2, dim=1)
        spectrum = torch.polar(magnitude.exp().clamp(max=MAX_MAGNITUDE), phase)
        return torch.istft(spectrum, N_FFT, HOP_LENGTH, N_FFT, self.window, center=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of Vocos.safetensors."""
        state = self.state_dict()
        head = {f"head.{name}": state.pop(name) for name in ("out.weight", "out.bias")}
        backbone = {f"backbone.{name}": tensor for name, tensor in state.items()}
        return backbone | head | {"head.istft.window": self.window} | mel_buffers("feature_extractor")


class Layer(nn.Module):
    """One layer of a Llama (Touvron et al. 2023)."""

    def __init__(self, sizes: GPTSizes) -> None:
        """Random weights, those onto the residual stream smaller the more layers there are."""
        super().__init__()
        hidden = sizes.hidden
        self.num_heads = sizes.num_heads
        self.input_layernorm = nn.RMSNorm(hidden, eps=sizes.rms_norm_eps)
        self.self_attn = nn.ModuleDict({f"{name}_proj": nn.Linear(hidden, hidden, bias=False) for name in "qkvo"})
        self.post_attention_layernorm = nn.RMSNorm(hidden, eps=sizes.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, sizes.intermediate, bias=False),
                "up_proj": nn.Linear(hidden, sizes.intermediate, bias=False),
                "down_proj": nn.Linear(sizes.intermediate, hidden, bias=False),
            }
        )
        for linear in self.modules():
            if isinstance(linear, nn.Linear):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
        with torch.no_grad():
            for weight in (self.self_attn["o_proj"].weight, self.mlp["down_proj"].weight):
                cast(torch.Tensor, weight).div_(math.sqrt(2 * sizes.num_layers))

    def forward(
        self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor], seen: torch.Tensor, num_guided: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B, L, H], `seen` bool [B, 1, L, L] -> [B, L, H], log attention [B, num_guided, L, L] of the first heads.

        Attention is written out: backwards PyTorch's own takes four times as long on a CPU for sentences, and the first
        heads' is needed.
        """
        parts = self.self_attn
        normed = self.input_layernorm(x)
        query, key, value = (
            parts[f"{name}_proj"](normed).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for name in "qkv"
        )
        query, key = _rotate(query, rotation), _rotate(key, rotation)
        scores = (query @ key.transpose(2, 3)).float() / math.sqrt(query.shape[3])
        scores = scores.masked_fill(~seen, -torch.inf)
        attended = scores.softmax(dim=3).to(value.dtype) @ value
        x = x + parts["o_proj"](attended.transpose(1, 2).flatten(2))
        mlp = self.mlp
        normed = self.post_attention_layernorm(x)
        x = x + mlp["down_proj"](F.silu(mlp["gate_proj"](normed)) * mlp["up_proj"](normed))
        return x, scores[:, :num_guided].log_softmax(dim=3) if num_guided else None


class Language(nn.Module):
    """The GPT: text ids and audio codes in, hidden states out, with its embeddings and heads."""

    frequency: torch.Tensor

    def __init__(self, sizes: GPTSizes, num_voices: int) -> None:
        """Random weights, and a random vector for each voice."""
        super().__init__()
        self.sizes = sizes
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.num_layers))
        self.norm = nn.RMSNorm(sizes.hidden, eps=sizes.rms_norm_eps)
        self.text = TextTable([*VOCABULARY, *CHATTTS_TOKENS], SOUNDS, sizes.hidden)
        self.emb_code = nn.ModuleList(nn.Embedding(NUM_AUDIO_TOKENS, sizes.hidden) for _ in range(NUM_CODEBOOKS))
        self.head_code = nn.ModuleList(
            nn.Linear(sizes.hidden, NUM_AUDIO_TOKENS, bias=False) for _ in range(NUM_CODEBOOKS)
        )
        self.voices = nn.Parameter(torch.randn(num_voices, sizes.hidden))
        with torch.no_grad():
            for table in self.emb_code:
                cast(torch.Tensor, table.weight).mul_(0.5 / math.sqrt(NUM_CODEBOOKS))
            for head in self.head_code:
                nn.init.normal_(cast(torch.Tensor, head.weight), std=1 / math.sqrt(sizes.hidden))
        half = sizes.hidden // sizes.num_heads // 2
        frequency = sizes.rope_theta ** (-torch.arange(half) / half)
        self.register_buffer("frequency", frequency, persistent=False)

    def embed_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes [B, T, NUM_CODEBOOKS] -> [B, T, H]."""
        return torch.stack([table(codes[..., i]) for i, table in enumerate(self.emb_code)]).sum(0)

    def voice_vectors(self) -> torch.Tensor:
        """The voices as the served model takes them: of length 1, [voices, H]."""
        return F.normalize(self.voices, dim=1)

    def forward(
        self, x: torch.Tensor, real: torch.Tensor, guided: dict[int, int]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Hidden states, and where some heads look.

        Args:
            x: embedded sequences [B, L, H], flush right or not; only differences of places count.
            real: bool [B, P], which of the first P places are no padding; all others are none.
            guided: layer -> heads.

        Returns:
            Hidden states [B, L, H]; log attentions [B, heads, L, L] of the guided layers, in their order.
        """
        length = x.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None, None]
        seen = seen & F.pad(real, (0, length - real.shape[1]), value=True)[:, None, None]
        seen = seen | torch.eye(length, dtype=torch.bool, device=x.device)  # padding sees itself, or there were NaN
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequency
        rotation = (angle.cos(), angle.sin())
        attentions = []
        for number, layer in enumerate(self.layers):
            x, attention = layer(x, rotation, seen, guided.get(number, 0))
            if attention is not None:
                attentions.append(attention)
        return self.norm(x), attentions

    def gpt_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of gpt/model.safetensors."""
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith(("layers.", "norm."))}

    def embed_tensors(self) -> dict[str, torch.Tensor]:
        """The tensors of Embed.safetensors; heads as weight norm has them, lengths and directions."""
        rows = self.text.rows()
        tensors: dict[str, torch.Tensor] = {"emb_text.weight": rows}
        heads: dict[str, torch.Tensor] = {"head_text": self.text.head_rows(rows)}
        for number, (table, head) in enumerate(zip(self.emb_code, self.head_code, strict=True)):
            tensors[f"emb_code.{number}.weight"] = cast(torch.Tensor, table.weight)
            heads[f"head_code.{number}"] = cast(torch.Tensor, head.weight)
        for name, head_rows in heads.items():
            prefix = f"{name}.parametrizations.weight"
            tensors[f"{prefix}.original0"] = torch.linalg.vector_norm(head_rows, dim=1, keepdim=True)
            tensors[f"{prefix}.original1"] = head_rows
        return {name: tensor.detach() for name, tensor in tensors.items()}


def repeated(module: nn.Module) -> list[Layer | Block]:
    """The layers and blocks of `module`, of which it has many alike."""
    return [one for one in module.modules() if isinstance(one, Layer | Block)]


class LogMel(nn.Module):
    """Waveform -> log mel, as the checkpoint's own buffers make it: [B, N] -> [B, NUM_MELS, 1 + N // HOP_LENGTH]."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self) -> None:
        """The window and the filters."""
        super().__init__()
        self.register_buffer("window", torch.hann_window(N_FFT))
        self.register_buffer("filters", torch.from_numpy(mel_filters()).T.contiguous())

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Transform."""
        spectrum = torch.stft(audio, N_FFT, HOP_LENGTH, N_FFT, self.window, center=True, return_complex=True)
        return (self.filters @ spectrum.abs()).clamp(min=MIN_MEL).log()


def mel_buffers(prefix: str) -> dict[str, torch.Tensor]:
    """What torchaudio's MelSpectrogram below `prefix` keeps."""
    name = f"{prefix}.mel_spec"
    filters = torch.from_numpy(mel_filters())
    return {f"{name}.spectrogram.window": torch.hann_window(N_FFT), f"{name}.mel_scale.fb": filters}


def _rotate(x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary positions (Su et al. 2021), a head's first half with its second: [B, heads, L, D]."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=3)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=3).to(x.dtype)
