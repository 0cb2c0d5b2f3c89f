"""What stands around the engine: the synthesizer with its thread, decoder and vocoder, and ChatTTS for comparison."""

from __future__ import annotations

import importlib.util
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.gpu.machine import CROWD_PREFILL, Machine
from bench.gpu.phases import NotHereError, Row, Wrong
from bench.gpu.rendering import Renderer
from bench.model import PLAIN_TOKENS, sentence_request
from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.engine.engine import Engine
from chattts_serving.request import GenerationRequest, SamplingOptions
from chattts_serving.speech.opening import Opening, Part
from chattts_serving.speech.synthesizer import Synthesizer
from chattts_serving.speech.windows import ReadingPlan
from chattts_serving.words import SentencePlaces
from export.layout import Sizes
from export.sizes import SIZES

SENTENCE_PROMPT = 32  # tokens of the prompt of a sentence
WHOLE = ReadingPlan((512,), 512, sentences_ahead=16)  # an answer in one piece
ANSWERS_S = 60.0  # that the last sentence may take
HALF_TOLERANCE = 0.05  # of float16 samples from float32, as a share of their size
ONNX_TOLERANCE = 1e-2  # of samples in ONNX Runtime from PyTorch, likewise; a GPU may multiply in TF32
CUDA_PROVIDER = "CUDAExecutionProvider"


def synthesizer(machine: Machine) -> Iterator[Row | Wrong]:
    """Whole sentences through the synthesizer: all that the server's host does but Triton's part, and no sound."""
    machine.release()
    for lanes, tokens, sentences in machine.counts.spoken:
        machine.need(8, f"before {lanes} lanes")
        yield from _spoken(machine, lanes, tokens, sentences)
        machine.release()


def _spoken(machine: Machine, lanes: int, tokens: int, sentences: int) -> Iterator[Row | Wrong]:
    machine.model(machine.precision)  # here: other threads may not make it

    def make() -> Engine:
        runner = machine.runner(machine.precision, lanes, lanes * (SENTENCE_PROMPT + tokens + 260), CROWD_PREFILL)
        runner.warm_up()
        return Engine(runner, max_sequences=lanes, max_prefill_tokens=CROWD_PREFILL)

    free, done, errors = threading.Semaphore(lanes), threading.Semaphore(0), []

    def reply(outcome: Any) -> None:
        if not isinstance(outcome, Part) or outcome.hidden is None:
            errors.append(repr(outcome))
        free.release()
        done.release()

    speaker = np.full(machine.config.hidden_size, machine.config.hidden_size**-0.5, np.float32)
    openings = [Opening(_request(number, tokens), speaker, WHOLE) for number in range(sentences)]
    service = Synthesizer(
        make,
        _NoPrompts(),
        max_requests=2 * lanes,
        max_batch_requests=2 * lanes,
        max_sentences_at_once=16,
        max_sequences=lanes,
        lease_s=ANSWERS_S,
    )
    try:
        started, cpu = time.perf_counter(), time.process_time()
        for number, opening in enumerate(openings):
            free.acquire()
            service.open(str(number), opening, reply)
        answered = all(done.acquire(timeout=ANSWERS_S) for _ in openings)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        service.close()
    yield {
        "lanes": lanes,
        "tokens": tokens,
        "sentences": sentences,
        "sentences/s": sentences / seconds,
        "tokens/s": sentences * tokens / seconds,
        "ms a step": 1e3 * seconds * lanes / (sentences * tokens),
        "CPU ms a sentence": 1e3 * cpu / sentences,
    }
    if errors or not answered:
        yield Wrong(f"{lanes} lanes: {len(errors)} of {sentences} sentences failed: {errors[:1] or 'no answer'}")


class _NoPrompts:
    """Nothing is refined here."""

    def refined_text(self, ids: tuple[int, ...]) -> str:
        raise NotImplementedError

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        raise NotImplementedError

    def places(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> SentencePlaces:
        raise NotImplementedError


def _request(number: int, tokens: int) -> GenerationRequest:
    prompt = tuple(100 + (number + 7 * place) % (PLAIN_TOKENS - 100) for place in range(SENTENCE_PROMPT))
    return sentence_request(number, prompt, SamplingOptions(min_new_tokens=tokens, max_new_tokens=tokens))


def rendering(machine: Machine) -> Iterator[Row | Wrong]:
    """Decoder and vocoder, official sizes: PyTorch in float32 and float16, one by one and as a graph; ONNX Runtime."""
    machine.release()
    sizes = SIZES["synthetic" if machine.is_gpu else "tiny"]
    with torch.backends.cudnn.flags(enabled=machine.computes):
        yield from _by_pytorch(machine, sizes)
    yield from _onnx(machine, sizes)


def _by_pytorch(machine: Machine, sizes: Sizes) -> Iterator[Row | Wrong]:
    expected: torch.Tensor | None = None
    for dtype in (torch.float32, torch.float16) if machine.is_gpu else (torch.float32,):
        render = Renderer.random(sizes, machine.device, dtype)
        for rows, tokens in machine.counts.rendered:
            machine.need(3, f"before {rows} x {tokens}, {dtype}")
            hidden = _hidden(machine, rows, tokens, sizes.gpt.hidden)
            yield _rendered("PyTorch", dtype, hidden, machine.device_ms(lambda: render(hidden)))  # noqa: B023
            if machine.is_gpu:
                graph = _graph(render, hidden)
                yield _rendered("PyTorch, graph", dtype, hidden, machine.device_ms(graph.replay))
        with torch.inference_mode():
            found = render(_hidden(machine, *machine.counts.rendered[0], sizes.gpt.hidden))
        if expected is None:
            expected = found
            continue
        error = ((found - expected).norm() / expected.norm()).item()
        yield {"float16 from float32": error}
        if not error <= HALF_TOLERANCE:
            yield Wrong(f"float16 samples are {error:.2g} of their size from float32; allowed is {HALF_TOLERANCE}")


def _hidden(machine: Machine, rows: int, tokens: int, size: int) -> torch.Tensor:
    generator = torch.Generator(machine.device).manual_seed(1)
    return torch.randn(rows, tokens, size, device=machine.device, generator=generator)


def _graph(render: Renderer, hidden: torch.Tensor) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        render(hidden)
    return graph


def _rendered(by: str, dtype: torch.dtype, hidden: torch.Tensor, ms: float) -> Row:
    rows, tokens = hidden.shape[:2]
    seconds = rows * num_samples(tokens) / SAMPLE_RATE
    precision = str(dtype).removeprefix("torch.")
    return {"by": by, "type": precision, "rows": rows, "tokens": tokens, "ms": ms, "audio s/s": 1e3 * seconds / ms}


def _onnx(machine: Machine, sizes: Sizes) -> Iterator[Row | Wrong]:
    """The exported graphs in ONNX Runtime, float32, arrays of the host in and out, as the server's backend has them."""
    try:
        import onnxruntime  # noqa: PLC0415

        from export.convnext import Weights  # noqa: PLC0415
        from export.dvae import decoder_delay  # noqa: PLC0415
        from export.onnx_models import decoder_model, vocos_model  # noqa: PLC0415
    except ImportError as missing:
        yield {"ONNX Runtime": f"left out: {missing}"}
        return
    provider = CUDA_PROVIDER if machine.is_gpu else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        yield {"ONNX Runtime": f"left out: {onnxruntime.__version__} has no {provider}"}
        return
    renderer = Renderer.random(sizes, machine.device, torch.float32)
    decoder, vocoder = map(Weights, renderer.arrays())
    decode, vocode = (
        onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
        for model in (decoder_model(decoder, sizes.gpt.hidden), vocos_model(vocoder, decoder_delay(decoder)))
    )
    for rows, tokens in machine.counts.rendered:
        hidden = _hidden(machine, rows, tokens, sizes.gpt.hidden)
        mask, state = np.ones((rows, tokens + 1), np.float32), np.zeros((rows, 1), np.float32)
        mask[:, -1] = 0
        inputs = {"hidden": hidden.cpu().numpy(), "mask": mask, "state": state}

        def run(inputs: dict[str, Any] = inputs) -> Any:
            mel, mel_mask, _ = decode.run(None, inputs)
            return vocode.run(None, {"mel": mel, "mel_mask": mel_mask, "state": inputs["state"]})[0]

        times = []
        for _ in range(machine.counts.repeats):
            started = time.perf_counter()
            waveform = run()
            times.append(1e3 * (time.perf_counter() - started))
        yield _rendered("ONNX Runtime", torch.float32, hidden, statistics.median(times))
        with torch.inference_mode():
            expected = renderer(hidden).cpu().numpy()
        error = float(np.linalg.norm(waveform[:, : expected.shape[1]] - expected) / np.linalg.norm(expected))
        if not error <= ONNX_TOLERANCE:
            yield Wrong(f"ONNX Runtime is {error:.2g} of the samples' size from PyTorch; allowed is {ONNX_TOLERANCE}")


def chattts(machine: Machine) -> Iterator[Row | Wrong]:
    """The ChatTTS package on the same device, official sizes, as `bench compare` has it."""
    if importlib.util.find_spec("ChatTTS") is None:
        raise NotHereError("the package ChatTTS is not installed")
    from bench.chattts import load_chattts, speak_by_chattts  # noqa: PLC0415
    from export.lock import locked  # noqa: PLC0415
    from export.synthetic import ensure_checkpoint  # noqa: PLC0415

    machine.release()
    size = "synthetic" if machine.is_gpu else "tiny"
    with locked(Path("checkpoints", f".{size}.lock")):
        checkpoint = ensure_checkpoint(size, Path("checkpoints", size))
    chat = load_chattts(checkpoint.directory, str(machine.device))
    tokens, most = machine.counts.chattts
    speak_by_chattts(chat, 1, tokens)  # warm
    for sentences in (1, most):
        machine.need(5, f"before {sentences} sentences")
        started = time.perf_counter()
        speak_by_chattts(chat, sentences, tokens)
        seconds = time.perf_counter() - started
        rtf = seconds / (sentences * num_samples(tokens) / SAMPLE_RATE)
        yield {"sentences": sentences, "tokens": tokens, "tokens/s": sentences * tokens / seconds, "RTF": rtf}
