"""A checkpoint folder in the official layout: where its files are and which sizes they have.

Sizes are read from the tensors' shapes and `asset/gpt/config.json`, never from constants, so that a small checkpoint
and the official one differ in nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches NumPy, and so safetensors, bfloat16
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from chattts_serving.audio import FRAMES_PER_TOKEN
from chattts_serving.errors import ConfigError, shown
from export.layout import (
    DECODER_FILE,
    DVAE_FILE,
    EMBED_FILE,
    GPT_CONFIG_FILE,
    GPT_FILE,
    NUM_GROUPS,
    OFFICIAL_FILES,
    SPEAKER_STATISTICS_FILE,
    TENSOR_FILES,
    VOCOS_FILE,
    ConvNeXtSizes,
    GPTSizes,
    Shape,
    Shapes,
    Sizes,
    VocosSizes,
    tensor_shapes,
)

# What LlamaConfig of transformers takes where config.json says nothing.
DEFAULT_RMS_NORM_EPS = 1e-6
DEFAULT_ROPE_THETA = 10_000.0
DEFAULT_MAX_POSITIONS = 2_048


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose files are all present and fit each other; made by `Checkpoint.load`.

    Attributes:
        directory: the folder that holds `asset/`.
        sizes: what its tensors' shapes and the GPT's config say.
    """

    directory: Path
    sizes: Sizes

    @classmethod
    def load(cls, directory: Path) -> Checkpoint:
        """Read the sizes of the checkpoint in `directory` and check every tensor's shape against them.

        Only the headers of the tensor files are read.

        Raises:
            ConfigError: a file or tensor is missing, unreadable, or does not fit the others.
        """
        for name in OFFICIAL_FILES:
            if not (directory / name).is_file():
                raise ConfigError(f"checkpoint {directory} has no {name}")
        shapes = {name: _read_shapes(directory / name) for name in TENSOR_FILES}
        sizes = _read_sizes(directory, shapes)
        _check_joints(directory, sizes)
        for file, expected in tensor_shapes(sizes).items():
            for tensor, shape in expected.items():
                found = _shape(shapes, file, tensor)
                if found != shape:
                    raise ConfigError(
                        f"{directory / file}: tensor '{tensor}' has shape {list(found)}; "
                        f"the checkpoint's other sizes ask for {list(shape)}"
                    )
        return cls(directory, sizes)

    @property
    def decoder(self) -> Path:
        """Hidden states -> mel."""
        return self.directory / DECODER_FILE

    @property
    def dvae(self) -> Path:
        """Waveform -> codes, and codes -> mel."""
        return self.directory / DVAE_FILE

    @property
    def embed(self) -> Path:
        """Embeddings and heads of the GPT."""
        return self.directory / EMBED_FILE

    @property
    def vocos(self) -> Path:
        """Mel -> waveform."""
        return self.directory / VOCOS_FILE

    @property
    def gpt(self) -> Path:
        """Weights of the GPT's layers; `config.json` stands beside them."""
        return self.directory / GPT_FILE

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer's three files."""
        return self.directory / "asset/tokenizer"

    def files(self) -> list[Path]:
        """Every file of the checkpoint."""
        paths = [self.directory / name for name in OFFICIAL_FILES]
        statistics = self.directory / SPEAKER_STATISTICS_FILE
        return [*paths, statistics] if statistics.is_file() else paths

    def speaker_statistics(self) -> str | None:
        """The checkpoint's own speaker statistics (base16384 over float16[2 * hidden]: std, mean), if it has any."""
        path = self.directory / SPEAKER_STATISTICS_FILE
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def special_token_ids(self) -> dict[str, int]:
        """Ids of the tokens that were added to the WordPiece vocabulary: {"[Ebreak]": 21136, ...}.

        Raises:
            ConfigError: tokenizer.json is not a `tokenizers` file.
        """
        path = self.tokenizer / "tokenizer.json"
        try:
            return {token["content"]: int(token["id"]) for token in _read_json(path)["added_tokens"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path} has no list of added tokens: {error!r}") from error


def load_tensors(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """All tensors of a safetensors file, as float32.

    Raises:
        ConfigError: the file is unreadable.
    """
    try:
        return {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _read_shapes(path: Path) -> Shapes:
    try:
        with safe_open(path, framework="np") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; allowed is one JSON object")
    return values


def _shape(shapes: Mapping[str, Shapes], file: str, tensor: str) -> Shape:
    try:
        return shapes[file][tensor]
    except KeyError:
        raise ConfigError(f"{file} has no tensor '{tensor}'") from None


def _read_sizes(directory: Path, shapes: Mapping[str, Shapes]) -> Sizes:
    dvae_encoder = _read_stack(shapes, DVAE_FILE, "encoder")
    return Sizes(
        gpt=_read_gpt_sizes(directory / GPT_CONFIG_FILE, shapes),
        decoder=_read_stack(shapes, DECODER_FILE, "decoder"),
        dvae_encoder=dvae_encoder,
        dvae_decoder=_read_stack(shapes, DVAE_FILE, "decoder"),
        vq=NUM_GROUPS * _axis(shapes, DVAE_FILE, "vq_layer.quantizer.rvqs.0.project_in.weight", 1),
        vocos=_read_vocos_sizes(shapes),
    )


def _check_joints(directory: Path, sizes: Sizes) -> None:
    """What comes out of one part must be as wide as what goes into the next; no tensor's shape tells by itself."""
    joints = {
        "decoder input, half a hidden state": (sizes.decoder.idim, sizes.gpt.hidden / FRAMES_PER_TOKEN),
        "decoder output": (sizes.decoder.odim, sizes.decoder.idim),
        "DVAE encoder input": (sizes.dvae_encoder.idim, sizes.dvae_decoder.idim),
        "DVAE encoder output": (sizes.dvae_encoder.odim, sizes.vq),
        "DVAE decoder input, half the quantized features": (sizes.dvae_decoder.idim, sizes.vq / FRAMES_PER_TOKEN),
        "DVAE decoder output": (sizes.dvae_decoder.odim, sizes.dvae_decoder.idim),
    }
    for joint, (found, needed) in joints.items():
        if found != needed:
            raise ConfigError(f"checkpoint {directory}: {joint} has {found} channels; allowed is {needed:g}")


def _read_stack(shapes: Mapping[str, Shapes], file: str, prefix: str) -> ConvNeXtSizes:
    return ConvNeXtSizes(
        idim=_axis(shapes, file, f"{prefix}.conv_in.0.weight", 1),
        odim=_axis(shapes, file, f"{prefix}.conv_out.weight", 0),
        hidden=_axis(shapes, file, f"{prefix}.conv_out.weight", 1),
        num_layers=_count_layers(shapes, file, f"{prefix}.decoder_block."),
        bn_dim=_axis(shapes, file, f"{prefix}.conv_in.0.weight", 0),
    )


def _read_vocos_sizes(shapes: Mapping[str, Shapes]) -> VocosSizes:
    return VocosSizes(
        dim=_axis(shapes, VOCOS_FILE, "backbone.embed.weight", 0),
        intermediate=_axis(shapes, VOCOS_FILE, "backbone.convnext.0.pwconv1.weight", 0),
        num_layers=_count_layers(shapes, VOCOS_FILE, "backbone.convnext."),
    )


def _read_gpt_sizes(config_path: Path, shapes: Mapping[str, Shapes]) -> GPTSizes:
    config = _read_json(config_path)
    hidden = _axis(shapes, EMBED_FILE, "emb_text.weight", 1)
    num_layers = _count_layers(shapes, GPT_FILE, "layers.")
    num_heads = _integer(config_path, config, "num_attention_heads")
    # Values that the tensors fix as well, and choices that the serving model does not know.
    expected = {
        "hidden_size": hidden,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_heads,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    for key, value in expected.items():
        if config.get(key, value) not in (value, None):
            raise ConfigError(f"{config_path}: '{key}' is {shown(config[key])}; allowed is {shown(value)}")
    if hidden % (2 * num_heads):
        raise ConfigError(
            f"{config_path}: 'num_attention_heads' is {num_heads}; allowed is what divides {hidden} into even parts"
        )
    return GPTSizes(
        hidden=hidden,
        intermediate=_axis(shapes, GPT_FILE, "layers.0.mlp.gate_proj.weight", 0),
        num_layers=num_layers,
        num_heads=num_heads,
        max_positions=_integer(config_path, config, "max_position_embeddings", DEFAULT_MAX_POSITIONS),
        rms_norm_eps=_number(config_path, config, "rms_norm_eps", DEFAULT_RMS_NORM_EPS),
        rope_theta=_read_rope_theta(config_path, config),
        num_text_tokens=_axis(shapes, EMBED_FILE, "emb_text.weight", 0),
    )


def _read_rope_theta(config_path: Path, config: Mapping[str, object]) -> float:
    """Base of the rotary embedding: transformers 5 writes `rope_parameters`, older ones `rope_theta`."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
        raise ConfigError(f"{config_path}: rotary embedding is {shown(parameters)}; allowed is rope_type 'default'")
    if "rope_theta" in parameters:
        return _number(config_path, parameters, "rope_theta")
    return _number(config_path, config, "rope_theta", DEFAULT_ROPE_THETA)


def _number(path: Path, values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value: float = values.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ConfigError(f"{path}: '{key}' is {shown(value)}; allowed is a finite number above 0")
    return value


def _integer(path: Path, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ConfigError(f"{path}: '{key}' is {shown(value)}; allowed is an integer above 0")
    return value


def _axis(shapes: Mapping[str, Shapes], file: str, tensor: str, axis: int) -> int:
    shape = _shape(shapes, file, tensor)
    if axis >= len(shape):
        raise ConfigError(f"{file}: tensor '{tensor}' has shape {list(shape)}; it needs {axis + 1} axes or more")
    return shape[axis]


def _count_layers(shapes: Mapping[str, Shapes], file: str, prefix: str) -> int:
    """Number of consecutive layers from 0 on under `prefix`."""
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in shapes[file] if name.startswith(prefix)}
    count = len(numbers)
    if not count or numbers != {str(number) for number in range(count)}:
        raise ConfigError(f"{file} has layers {sorted(numbers)} under '{prefix}'; allowed is 0, 1, 2 ... without a gap")
    return count
