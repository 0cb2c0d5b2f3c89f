"""What stands behind the Triton model `gpt_decoder`: its folder and configuration in, tensors by name out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.cpu.cpus import available_cpus
from chattts_serving.engine.cpu.runner import CpuRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import GPTConfig, Precision
from chattts_serving.engine.runner import Runner
from chattts_serving.errors import ConfigError, InvalidInputError, ServingError
from chattts_serving.request import GenerationRequest
from chattts_serving.speech.mailbox import Mailbox
from chattts_serving.speech.observer import Observer
from chattts_serving.speech.opening import Beginning, Opening, Part
from chattts_serving.speech.opening import Reply as PartReply
from chattts_serving.speech.synthesizer import Synthesizer
from chattts_serving.speech.windows import ReadingPlan, rows_of
from chattts_serving.text.prompts import Prompts
from chattts_serving.triton.config import DecoderConfig
from chattts_serving.triton.tracing import Tracer

Outputs = Mapping[str, npt.NDArray[Any] | str]
Reply = Callable[[Outputs | Exception], None]

MAX_STREAM_ID_CHARACTERS = 64
# What suits a device, where the configuration leaves it to that. A GPU's cache is sized by its runner.
CPU_SEQUENCES, GPU_SEQUENCES = 64, 256
CPU_CACHE_GB = 1.0
YIELDING = 10  # niceness of threads that compute without an end, so that those that only talk get a core at once


class Decoder:
    """The engine with its model, and the prompts of the second pass."""

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        device: str,
        observer: Observer,
        make_runner: Callable[[Path, str, DecoderConfig], Runner] | None = None,
    ) -> None:
        """Load the artifacts in `folder` and start the engine on `device`, "cpu" or "cuda:N".

        `observer` is that of `Synthesizer`; `make_runner` is for benchmarks, in place of that of this module.

        Raises:
            ConfigError: an artifact is missing or wrong, or a value of `config` does not fit the model.
        """
        self._config = GPTConfig.load(folder)
        self._tracer = Tracer()
        max_sequences = sequences_on(device, config)
        make = make_runner or runner_of

        def make_engine() -> Engine:
            if device == "cpu":
                os.nice(YIELDING)  # the engine's thread, which computes, and those that it starts
            runner = make(folder, device, config)
            engine = Engine(runner, max_sequences=max_sequences, max_prefill_tokens=config.max_prefill_tokens)
            runner.warm_up()
            return engine

        self._synthesizer = Synthesizer(
            make_engine,
            Prompts(folder),
            max_requests=config.max_requests,
            max_batch_requests=config.max_batch_requests,
            max_sentences_at_once=config.max_sentences_at_once,
            max_sequences=max_sequences,
            lease_s=config.lease_s,
            observer=observer,
            waits_for_sound=device == "cpu",
        )
        self._mailbox = Mailbox(self._synthesizer, config.lease_s)

    def open(
        self,
        stream_id: str,
        generation: str,
        speaker: npt.NDArray[np.float32],
        reading: str,
        reply: Reply,
        *,
        reader: str = "",
        traceparent: str = "",
    ) -> None:
        """Start one request and read its first chunk.

        Args:
            stream_id: what the caller will call it by; 1 to MAX_STREAM_ID_CHARACTERS characters, random.
            generation: `GenerationRequest` as JSON.
            speaker: the voices' normalised vectors, one after the other, float32 [num_voices * hidden].
            reading: `ReadingPlan` as JSON.
            reply: called once, from any thread, with the model's outputs (without the batch dimension) or the error.
            reader: who is to hear that the chunk can be read, if anybody; `reply` is called at once then.
            traceparent: of the span that gets others for what the first chunk waited for; "" for none.

        Raises:
            ServingError: the request is refused; `reply` will not be called.
        """
        if not 1 <= len(stream_id) <= MAX_STREAM_ID_CHARACTERS:
            raise InvalidInputError("stream_id", stream_id, f"1 to {MAX_STREAM_ID_CHARACTERS} characters")
        request = GenerationRequest.from_json(generation)
        self._check(request)
        self._check_speaker(request, speaker)
        opening = Opening(request, speaker, ReadingPlan.from_json(reading), traceparent)
        if reader:
            self._mailbox.open(reader, stream_id, opening)
            reply({"ready": ""})
        else:
            self._synthesizer.open(stream_id, opening, self._part_reply(reply))

    def read(self, stream_id: str, reply: Reply) -> None:
        """Read the next chunk of an open request; `reply` and errors as for `open`."""
        ready = self._mailbox.take(stream_id)
        if ready is None:
            self._synthesizer.read(stream_id, self._part_reply(reply))
        else:
            self._part_reply(reply)(ready)

    def wait(self, reader: str, expected: str, reply: Reply) -> None:
        """Wait until chunks of `reader`'s requests can be read.

        Args:
            reader: as the requests were opened with.
            expected: names of requests, one a line, whose next chunk is to be heard of, too.
            reply: gets the names of those that can be read, one a line, as `ready`: none where another call for this
                reader came, or nothing is expected. Errors as for `open`.
        """
        names = expected.split("\n") if expected else []
        self._mailbox.wait(reader, names, lambda ready: reply({"ready": "\n".join(ready)}))

    def extend(self, stream_id: str, more: str, reply: Reply) -> None:
        """Have an open request whose text goes on say `more`, `GenerationRequest` as JSON, of which sentences count.

        `reply` gets an empty `chunk`, also where there is no such request; errors as for `open`.
        """
        request = GenerationRequest.from_json(more)
        self._check(request)
        self._synthesizer.extend(stream_id, request, lambda: reply({"chunk": ""}))

    def cancel(self, stream_id: str, reply: Reply) -> None:
        """Give an open request up, if there is one of that name; `reply` gets an empty `chunk`, errors as for `open`.

        The engine's thread answers, so that this also shows whether that lives.
        """

        def done() -> None:
            self._mailbox.take(stream_id)
            reply({"chunk": ""})

        self._synthesizer.cancel(stream_id, done)

    def close(self) -> None:
        """Answer every read that waits with ShuttingDownError and stop."""
        self._synthesizer.close()
        self._mailbox.close()
        self._tracer.close()

    def _part_reply(self, reply: Reply) -> PartReply:
        def done(outcome: Part | ServingError) -> None:
            try:
                result: Outputs | Exception = outcome if isinstance(outcome, ServingError) else self._outputs(outcome)
            except Exception as error:  # memory, for one: the request must still be answered
                result = error
            reply(result)

        return done

    def _outputs(self, part: Part) -> Outputs:
        if part.beginning is not None:
            self._trace(part.beginning)
        hidden, mask = part.hidden, part.mask
        if hidden is None or mask is None:
            hidden, mask = rows_of(np.zeros((0, self._config.hidden_size), np.float32), closes=True, ends=True)
        codes = part.codes.reshape(-1, self._config.num_codebooks)  # there are none without audio
        return {"hidden": hidden, "mask": mask, "codes": codes, "chunk": part.chunk.to_json()}

    def _trace(self, beginning: Beginning) -> None:
        trace = self._tracer.under(beginning.traceparent)
        trace.add("queue", beginning.came_ns, beginning.launched_ns)
        trace.add("prompt", beginning.launched_ns, beginning.drawn_ns)
        trace.add("tokens", beginning.drawn_ns, beginning.ready_ns)

    def _check(self, request: GenerationRequest) -> None:
        """Refuse what would fail inside a step, where it could harm the other requests in it."""
        config = self._config
        _check_ids("prompts", request.prompts, config.num_text_tokens)
        for sample_codes in (request.sample_codes, *(manner.sample_codes for manner in request.manners)):
            _check_ids("sample_codes", sample_codes, config.eos_code)
            if any(len(codes) != config.num_codebooks for codes in sample_codes):
                raise InvalidInputError("generation", sample_codes, f"{config.num_codebooks} codes a token")

    def _check_speaker(self, request: GenerationRequest, speaker: npt.NDArray[np.float32]) -> None:
        num_values = self._config.hidden_size * request.num_voices
        if speaker.shape != (num_values,) or not np.isfinite(speaker).all():
            raise InvalidInputError("speaker_embedding", speaker.shape, f"{num_values} finite numbers")


def sequences_on(device: str, config: DecoderConfig) -> int:
    """How many sequences run at once on `device`, "cpu" or "cuda:N"."""
    return config.max_sequences or (CPU_SEQUENCES if device == "cpu" else GPU_SEQUENCES)


def runner_of(folder: Path, device: str, config: DecoderConfig) -> Runner:
    """What computes the engine's steps on `device`, with the artifacts in `folder` loaded.

    Raises:
        ConfigError: as `Decoder`.
    """
    if device == "cpu":
        num_threads = config.num_threads or available_cpus()
        kv_cache_gb = CPU_CACHE_GB if config.kv_cache_gb is None else config.kv_cache_gb
        return CpuRunner.load(folder, config.precision or Precision.FP32, kv_cache_gb, num_threads)
    try:  # PyTorch takes seconds and 200 MB, which CPUs do without.
        from chattts_serving.engine.gpu.gpt import GPT  # noqa: PLC0415
        from chattts_serving.engine.gpu.runner import TorchRunner  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the language model is on {device}, and the package {error.name} is not installed: install the extra "
            "embedded-gpu, or gpu beside a tritonserver of its own (`make setup DEVICE=gpu`), or hide the GPU from the "
            "server (CUDA_VISIBLE_DEVICES=)"
        ) from error

    return TorchRunner(
        GPT.load(folder, device, config.precision or Precision.BF16),
        kv_cache_gb=config.kv_cache_gb,
        max_sequences=sequences_on(device, config),
        max_prefill_tokens=config.max_prefill_tokens,
    )


def _check_ids(name: str, rows: tuple[tuple[int, ...], ...], limit: int) -> None:
    for row in rows:
        if any(not 0 <= token_id < limit for token_id in row):
            raise InvalidInputError("generation", row, f"{name} of 0 to {limit - 1}")
