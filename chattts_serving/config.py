"""Configuration of `gpt_decoder`: the parameters of its config.pbtxt, checked once at start."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields

from chattts_serving.errors import ConfigError
from chattts_serving.gpt_config import Precision


@dataclass(frozen=True)
class DecoderConfig:
    """What config.pbtxt sets; the comments there say what each value does.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_requests: int = 256
    max_sentences_at_once: int = 16
    max_sequences: int = 64
    max_prefill_tokens: int = 512
    kv_cache_gb: float = 1.0
    num_threads: int = 0
    precision: Precision | None = None  # None: what suits the device

    def __post_init__(self) -> None:
        """Check what is not checked where it is used."""
        at_least_one = ("max_requests", "max_sentences_at_once", "max_sequences", "max_prefill_tokens")
        for name, least in (*((name, 1) for name in at_least_one), ("num_threads", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"parameter '{name}' is {getattr(self, name)}; allowed is {least} or more")

    @classmethod
    def from_triton(cls, model_config: str) -> DecoderConfig:
        """Read the parameters of `model_config`, the JSON that Triton hands to a Python model.

        Raises:
            ConfigError: an unknown parameter, a value that is no number, or one out of its range.
        """
        parameters = json.loads(model_config).get("parameters", {})
        readers: dict[str, Callable[[str], int | float | Precision | None]] = {field.name: int for field in fields(cls)}
        readers |= {"kv_cache_gb": float, "precision": _precision}
        values: dict[str, int | float | Precision | None] = {}
        for name, entry in parameters.items():
            if name not in readers:
                raise ConfigError(f"parameter '{name}' is unknown; known are {', '.join(sorted(readers))}")
            try:
                values[name] = readers[name](entry["string_value"])
            except ValueError:
                allowed = f"auto, {', '.join(one.value for one in Precision)}" if name == "precision" else "a number"
                raise ConfigError(f"parameter '{name}' is '{entry['string_value']}'; allowed is {allowed}") from None
        return cls(**values)  # type: ignore[arg-type]


def _precision(value: str) -> Precision | None:
    return None if value == "auto" else Precision(value)
