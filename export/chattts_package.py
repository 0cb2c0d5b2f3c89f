"""The one place that imports the ChatTTS package: the oracle of export parity, tests and benchmark.

ChatTTS is AGPL-3.0 and no part of what is served. It imports torchaudio, whose compiled extension does not load beside
a CPU-only torch; only torchaudio's pure-torch parts are needed, so a stand-in takes the extension's place in this
process.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import json
import logging
import runpy
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chattts_serving.errors import ConfigError
from export.checkpoint import Checkpoint
from export.layout import GPT_CONFIG_FILE, OFFICIAL_FILES, ConvNeXtSizes

PACKAGE = "ChatTTS"


def load_chat(checkpoint_dir: Path, device: str = "cpu") -> Any:
    """ChatTTS itself (`ChatTTS.Chat`) with the checkpoint's weights.

    Sizes are set on a copy of ChatTTS's configuration, whose nested defaults are shared between instances.

    Raises:
        ConfigError: the checkpoint is incomplete, or the package is missing.
    """
    import torch  # noqa: PLC0415 - what else is in here does without

    checkpoint = Checkpoint.load(checkpoint_dir)
    module = import_chattts()
    with _quiet(), _no_progress_bars():
        chat = module.Chat(logging.getLogger(PACKAGE))
        chat.config = _config(chat.config, checkpoint)
        loaded = chat._load(
            vocos_ckpt_path=str(checkpoint.vocos),
            dvae_ckpt_path=str(checkpoint.dvae),
            gpt_ckpt_path=str((checkpoint.directory / GPT_CONFIG_FILE).parent),
            embed_path=str(checkpoint.embed),
            decoder_ckpt_path=str(checkpoint.decoder),
            tokenizer_path=str(checkpoint.tokenizer),
            device=torch.device(device),
        )
    if not loaded:
        raise ConfigError(f"ChatTTS could not load {checkpoint_dir}")
    return chat


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec(PACKAGE) is not None


def import_chattts() -> types.ModuleType:
    """The module `ChatTTS`.

    Raises:
        ConfigError: the package or one that it needs is not installed.
    """
    with _quiet():
        _import_torchaudio()
        try:
            return importlib.import_module(PACKAGE)
        except ImportError as error:
            raise ConfigError(f"cannot import ChatTTS ({error}); install the extra 'export'") from error


def homophones() -> dict[str, str]:
    """Characters that ChatTTS replaces before it speaks, and what by: {"粡": "同", ...}."""
    return _read_resource("homophones_map.json")


def sha256_map() -> dict[str, str]:
    """sha256 of the official files: {"asset/gpt/config.json": "0aaa1ecd..."}.

    The package's keys are flattened paths: `sha256_asset_gpt_config_json`.
    """
    values = _read_resource("sha256_map.json")
    return {name: values["sha256_" + name.replace("/", "_").replace(".", "_")] for name in OFFICIAL_FILES}


def speaker_statistics() -> str:
    """Standard deviation and mean of the official speaker vectors, base16384 over float16[2 * 768]."""
    return str(runpy.run_path(str(_package_folder() / "config" / "config.py"))["Config"]().spk_stat)


def _package_folder() -> Path:
    """Where ChatTTS is installed; found without importing it, which would import torch and transformers."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("the package ChatTTS is not installed; install the extra 'export'")
    return Path(spec.submodule_search_locations[0])


def _read_resource(name: str) -> dict[str, str]:
    values: dict[str, str] = json.loads((_package_folder() / "res" / name).read_text(encoding="utf-8"))
    return values


def _import_torchaudio() -> None:
    """Import torchaudio, with a stand-in for its compiled extension where that does not load."""
    try:
        importlib.import_module("torchaudio")
    except OSError:  # what torch.ops.load_library raises: the extension asks for CUDA libraries
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _torchaudio_extension()
        importlib.import_module("torchaudio")


def _torchaudio_extension() -> types.ModuleType:
    """What `torchaudio._extension` is in a build without the compiled part."""

    def fail_if_no_align(_: object) -> object:
        def fail(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError("forced alignment needs torchaudio's compiled extension, which is not loaded")

        return fail

    module = types.ModuleType("torchaudio._extension")
    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=fail_if_no_align,
        _check_cuda_version=lambda: None,
    )
    return module


def _config(default: Any, checkpoint: Checkpoint) -> Any:
    """A deep copy of ChatTTS's configuration with the checkpoint's sizes and speaker statistics."""
    config, sizes = copy.deepcopy(default), checkpoint.sizes
    _set(
        config.gpt,
        hidden_size=sizes.gpt.hidden,
        intermediate_size=sizes.gpt.intermediate,
        num_attention_heads=sizes.gpt.num_heads,
        num_hidden_layers=sizes.gpt.num_layers,
        max_position_embeddings=sizes.gpt.max_positions,
        num_text_tokens=sizes.gpt.num_text_tokens,
    )
    _set(config.embed, hidden_size=sizes.gpt.hidden, num_text_tokens=sizes.gpt.num_text_tokens)
    _set_stack(config.decoder, sizes.decoder)
    _set_stack(config.dvae.encoder, sizes.dvae_encoder)
    _set_stack(config.dvae.decoder, sizes.dvae_decoder)
    _set(config.dvae.vq, dim=sizes.vq)
    _set(
        config.vocos.backbone.init_args,
        dim=sizes.vocos.dim,
        intermediate_dim=sizes.vocos.intermediate,
        num_layers=sizes.vocos.num_layers,
    )
    _set(config.vocos.head.init_args, dim=sizes.vocos.dim)
    config.spk_stat = checkpoint.speaker_statistics() or config.spk_stat
    return config


def _set_stack(config: object, stack: ConvNeXtSizes) -> None:
    _set(
        config,
        idim=stack.idim,
        odim=stack.odim,
        hidden=stack.hidden,
        n_layer=stack.num_layers,
        bn_dim=stack.bn_dim,
    )


def _set(config: object, **values: int) -> None:
    for name, value in values.items():
        getattr(config, name)  # a field that ChatTTS renamed must not be set beside the new one
        setattr(config, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep import and loading free of warnings and log lines that say nothing about our code."""
    names = ("ChatTTS", "transformers", "torchaudio")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Without transformers' bar over the weights, which takes less than a second."""
    bars = importlib.import_module("transformers.utils.logging")
    shown_before = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown_before:
            bars.enable_progress_bar()
