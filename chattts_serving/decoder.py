"""What stands behind the Triton model `gpt_decoder`: its folder and configuration in, tensors by name out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.config import DecoderConfig
from chattts_serving.engine.cpu_runner import CpuRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.runner import Runner
from chattts_serving.errors import InvalidInputError, ServingError
from chattts_serving.gpt_config import GPTConfig, Precision
from chattts_serving.layout import lay_out
from chattts_serving.prompts import Prompts
from chattts_serving.request import GenerationRequest
from chattts_serving.synthesis import Synthesis, Synthesizer

Outputs = Mapping[str, npt.NDArray[Any] | str]
Reply = Callable[[Outputs | Exception], None]


class Decoder:
    """The engine with its model, and the prompts of the second pass."""

    def __init__(self, folder: Path, config: DecoderConfig, device: str) -> None:
        """Load the artifacts in `folder` and start the engine on `device`, "cpu" or "cuda:N".

        Raises:
            ConfigError: an artifact is missing or wrong, or a value of `config` does not fit the model.
        """
        self._config = GPTConfig.load(folder)

        def make_engine() -> Engine:
            runner = make_runner(folder, device, config)
            engine = Engine(runner, max_sequences=config.max_sequences, max_prefill_tokens=config.max_prefill_tokens)
            runner.warm_up()
            return engine

        self._synthesizer = Synthesizer(
            make_engine,
            Prompts(folder),
            max_requests=config.max_requests,
            max_sentences_at_once=config.max_sentences_at_once,
        )

    def submit(self, generation: str, speaker: npt.NDArray[np.float32], reply: Reply) -> None:
        """Start one request.

        Args:
            generation: `GenerationRequest` as JSON.
            speaker: the voice's normalised vector, float32 [hidden].
            reply: called once, from another thread, with the model's outputs (without the batch dimension) or the
                error.

        Raises:
            ServingError: the request is refused; `reply` will not be called.
        """
        request = GenerationRequest.from_json(generation)
        self._check(request, speaker)

        def done(outcome: Synthesis | ServingError) -> None:
            try:
                result: Outputs | Exception = (
                    outcome if isinstance(outcome, ServingError) else _outputs(outcome, request.seed)
                )
            except Exception as error:  # memory, for one: the request must still be answered
                result = error
            reply(result)

        self._synthesizer.submit(request, speaker, done)

    def close(self) -> None:
        """Answer every open request with ShuttingDownError and stop."""
        self._synthesizer.close()

    def _check(self, request: GenerationRequest, speaker: npt.NDArray[np.float32]) -> None:
        """Refuse what would fail inside a step, where it could harm the other requests in it."""
        config = self._config
        _check_ids("prompts", request.prompts, config.num_text_tokens)
        _check_ids("sample_codes", request.sample_codes, config.eos_code)
        if any(len(codes) != config.num_codebooks for codes in request.sample_codes):
            raise InvalidInputError("generation", request.sample_codes, f"{config.num_codebooks} codes a token")
        if speaker.shape != (config.hidden_size,) or not np.isfinite(speaker).all():
            raise InvalidInputError("speaker_embedding", speaker.shape, f"{config.hidden_size} finite numbers")


def make_runner(folder: Path, device: str, config: DecoderConfig) -> Runner:
    """What computes the engine's steps on `device`, with the artifacts in `folder` loaded.

    Raises:
        ConfigError: as `Decoder`.
    """
    if device == "cpu":
        num_threads = config.num_threads or len(os.sched_getaffinity(0))
        return CpuRunner.load(folder, config.precision or Precision.FP32, config.kv_cache_gb, num_threads)
    # PyTorch takes seconds and 200 MB, which CPUs do without.
    from chattts_serving.engine.torch_runner import TorchRunner  # noqa: PLC0415
    from chattts_serving.gpt import GPT  # noqa: PLC0415

    return TorchRunner(
        GPT.load(folder, device, config.precision or Precision.BF16),
        kv_cache_gb=config.kv_cache_gb,
        max_sequences=config.max_sequences,
        max_prefill_tokens=config.max_prefill_tokens,
    )


def _check_ids(name: str, rows: tuple[tuple[int, ...], ...], limit: int) -> None:
    for row in rows:
        if any(not 0 <= token_id < limit for token_id in row):
            raise InvalidInputError("generation", row, f"{name} of 0 to {limit - 1}")


def _outputs(synthesis: Synthesis, seed: int) -> Outputs:
    row = lay_out([sentence.hidden for sentence in synthesis.sentences])
    codes = np.concatenate([sentence.codes for sentence in synthesis.sentences])
    return {
        "hidden": row.hidden,
        "mask": row.mask,
        "num_samples": np.array([row.num_samples], np.int32),
        "num_tokens": np.array([len(codes)], np.int32),
        "seed": np.array([seed], np.int64),
        "refined_text": synthesis.refined_text,
        "codes": codes,
    }
