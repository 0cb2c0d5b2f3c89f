"""The model gpt_decoder as it is served, but for its runner: `bench.host` puts this in the place of its model.py."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any


def _beside(name: str) -> ModuleType:
    """The module `name` of this folder, which is on no path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_served, _paced = _beside("served"), _beside("paced")


def _decoder(folder: Path, config: Any, _device: str, observer: Any) -> Any:
    return _decoder_of(folder, config, "a GPU that is none", observer)


_decoder_of, _served.Decoder = partial(_served.Decoder, make_runner=_paced.make_runner), _decoder  # type: ignore[attr-defined]

if not TYPE_CHECKING:
    TritonPythonModel = _served.TritonPythonModel
