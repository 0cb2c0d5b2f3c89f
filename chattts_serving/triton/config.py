"""Configuration of the Python models: the parameters of their config.pbtxt files, checked once at start."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from chattts_serving.engine.gpt_config import Precision
from chattts_serving.errors import ConfigError, InvalidInputError
from chattts_serving.speech.windows import ReadingPlan

MODES = ("exact", "low_latency")  # of streams
AUTO = "auto"  # leaves a value to the device


@dataclass(frozen=True)
class DecoderConfig:
    """What gpt_decoder's config.pbtxt sets; the comments there say what each value does. None is what suits the device.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_requests: int = 256
    max_batch_requests: int = 128
    max_sentences_at_once: int = 16
    max_sequences: int | None = None
    max_prefill_tokens: int = 512
    kv_cache_gb: float | None = None
    num_threads: int = 0
    precision: Precision | None = None
    lease_s: float = 120.0

    def __post_init__(self) -> None:
        """Check what is not checked where it is used."""
        at_least_one = ("max_requests", "max_sentences_at_once", "max_sequences", "max_prefill_tokens")
        for name, least in (*((name, 1) for name in at_least_one), ("max_batch_requests", 0), ("num_threads", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"parameter '{name}' is {value}; allowed is {least} or more")
        if not 0 < self.lease_s < math.inf:
            raise ConfigError(f"parameter 'lease_s' is {self.lease_s}; allowed is a number above 0")

    @classmethod
    def from_triton(cls, model_config: str) -> DecoderConfig:
        """Read the parameters of `model_config`, the JSON that Triton hands to a Python model.

        Raises:
            ConfigError: an unknown parameter, a value that is no number, or one out of its range.
        """
        readers: dict[str, _Reader] = {field.name: int for field in fields(cls)}
        readers |= {"lease_s": float, "max_sequences": _or_auto(int), "kv_cache_gb": _or_auto(float)}
        readers["precision"] = _or_auto(Precision)
        return cls(**_parameters(model_config, readers))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ReadingConfig:
    """What the config.pbtxt of `speech` and `chattts_stream` sets; the comments there say what each value does.

    Raises:
        ConfigError: a value is out of its range.
    """

    least_tokens: tuple[int, ...] = (512,)
    most_tokens: int = 512
    sentences_ahead: int = 16
    low_latency_least_tokens: tuple[int, ...] = ()  # none: as `least_tokens`
    low_latency_lookahead_tokens: tuple[int, ...] = (10,)
    low_latency_fade_tokens: int = 1
    text_wait_s: float = 60.0

    def __post_init__(self) -> None:
        """Check that each mode has a plan, and the rest."""
        if not 0 < self.text_wait_s < math.inf:
            raise ConfigError(f"parameter 'text_wait_s' is {self.text_wait_s}; allowed is a number above 0")
        for mode in MODES:
            try:
                self.plan(mode)
            except InvalidInputError as error:
                raise ConfigError(f"the parameters make no reading plan: {error}") from error

    @classmethod
    def from_triton(cls, model_config: str) -> ReadingConfig:
        """As `DecoderConfig.from_triton`."""
        readers: dict[str, _Reader] = {field.name: int for field in fields(cls)}
        for name in ("least_tokens", "low_latency_least_tokens", "low_latency_lookahead_tokens"):
            readers[name] = lambda text: tuple(map(int, text.split(",")))
        readers["text_wait_s"] = float
        return cls(**_parameters(model_config, readers))  # type: ignore[arg-type]

    def plan(self, mode: str, *, live: bool = False) -> ReadingPlan:
        """How a request of `mode` is read; `live` where somebody listens meanwhile.

        Raises:
            InvalidInputError: there is no such mode.
        """
        if mode not in MODES:
            raise InvalidInputError("mode", mode, f"one of {', '.join(MODES)}")
        plan = ReadingPlan(self.least_tokens, self.most_tokens, sentences_ahead=self.sentences_ahead, live=live)
        if mode == "exact":
            return plan
        return replace(
            plan,
            least_tokens=self.low_latency_least_tokens or self.least_tokens,
            lookahead_tokens=self.low_latency_lookahead_tokens,
            fade_tokens=self.low_latency_fade_tokens,
        )


def num_instances(model_config: str) -> int:
    """How many instances `model_config`, the JSON that Triton hands to a Python model, has of it."""
    return sum(group.get("count", 1) for group in json.loads(model_config).get("instance_group", [{}]))


_Reader = Callable[[str], object]
ALLOWED = {
    "max_sequences": "auto or a whole number",
    "kv_cache_gb": "auto or a number",
    "precision": f"auto, {', '.join(one.value for one in Precision)}",
}


def _parameters(model_config: str, readers: Mapping[str, _Reader]) -> dict[str, object]:
    """The `parameters` of a model's configuration, each read by its reader."""
    values = {}
    for name, entry in json.loads(model_config).get("parameters", {}).items():
        if name not in readers:
            raise ConfigError(f"parameter '{name}' is unknown; known are {', '.join(sorted(readers))}")
        try:
            values[name] = readers[name](entry["string_value"])
        except ValueError:
            allowed = ALLOWED.get(name, "a number")
            raise ConfigError(f"parameter '{name}' is '{entry['string_value']}'; allowed is {allowed}") from None
    return values


def _or_auto(read: _Reader) -> _Reader:
    return lambda text: None if text == AUTO else read(text)
