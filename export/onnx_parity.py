"""Whether an exported ONNX file computes what its source does, at random lengths and batch sizes.

The source sees every run of frames alone; the ONNX file sees several runs in one row and several rows in one batch,
with noise wherever the mask is 0, once in one call and once in two. So one comparison checks the weights, the mask, the
batching, and what is kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch

from chattts_serving.audio import CONTEXT_TOKENS, FRAMES_PER_TOKEN, HOP_LENGTH, NUM_MELS, SAMPLE_RATE
from export.dvae import MIN_ENCODER_SAMPLES
from export.parity import ParityResult

Array = npt.NDArray[np.float32]

# Of log mel and of samples in [-1, 1]. Float32 sums in another order give up to 1e-5; float16 gave 0.008 in log mel, of
# which 0.002 is the last rounding of a value of 6, and 0.001 in samples; 8-bit products 0.11 and 0.018.
ALLOWED_DIFFERENCE = {"fp32": 1e-4, "fp16": 0.02, "int8": 0.3}
ALLOWED_CODES = 0.005  # share of codes on the edge between two levels, which a rounding error decides
GAP_TOKENS = 3  # that keep two runs of one row apart: the widest convolution reaches 6 mel frames
MAX_TOKENS = 40  # of a run: longer than a convolution reaches, short enough to take no time
MAX_SAMPLES = SAMPLE_RATE  # of a waveform to encode: one second
ROUNDS = 3  # batches of each model


@dataclass(frozen=True)
class Run:
    """Consecutive real frames of one row, float32 [F, channels], and where they lie."""

    row: int
    start: int
    frames: Array


@dataclass(frozen=True)
class Batch:
    """Rows of runs: values [B, F, channels] with noise between the runs, mask [B, F], and the runs."""

    values: Array
    mask: Array
    runs: tuple[Run, ...]


def lay_out(rng: np.random.Generator, rows: Sequence[Sequence[Array]], gap: int) -> Batch:
    """Put each row's runs one after the other with `gap` masked frames between them; pad rows to the longest."""
    lengths = [sum(len(run) + gap for run in row) - gap for row in rows]
    values = rng.standard_normal((len(rows), max(lengths), rows[0][0].shape[1]), np.float32)
    mask = np.zeros(values.shape[:2], np.float32)
    runs = []
    for index, row in enumerate(rows):
        start = 0
        for frames in row:
            end = start + len(frames)
            values[index, start:end] = frames
            mask[index, start:end] = 1
            runs.append(Run(index, start, frames))
            start = end + gap
    return Batch(values, mask, tuple(runs))


def check_decoder(source: Callable[[torch.Tensor], torch.Tensor], path: Path, precision: str = "fp32") -> ParityResult:
    """Compare `dvae_decoder` with ChatTTS's `DVAE` that decodes hidden states [1, H, T] to mel [1, NUM_MELS, 2T]."""
    session = open_session(path)
    hidden_size = session.get_inputs()[0].shape[2]
    differences = []
    for batch in _random_batches(hidden_size, GAP_TOKENS, frames_per_token=1):
        mel, mel_mask, _ = session.run(None, rendered("hidden", batch.values, "mask", batch.mask))
        differences.append(np.abs(mel[mel_mask[:, :-1] == 0]).max(initial=0))
        differences.append(_in_two_calls(session, "hidden", batch, "mask", mel))
        for run in batch.runs:
            expected = source(_channels_first(run.frames))[0].T.numpy()
            start = run.start * FRAMES_PER_TOKEN
            differences.append(np.abs(mel[run.row, start : start + len(expected)] - expected).max())
    return ParityResult("dvae_decoder", float(max(differences)), ALLOWED_DIFFERENCE[precision])


def check_vocos(source: Any, path: Path, precision: str = "fp32") -> ParityResult:
    """Compare `vocos` with `vocos.Vocos.decode`, mel [1, NUM_MELS, F] -> samples [1, (F - 1) * HOP_LENGTH]."""
    session = open_session(path)
    differences = []
    for batch in _random_batches(NUM_MELS, GAP_TOKENS * FRAMES_PER_TOKEN, frames_per_token=FRAMES_PER_TOKEN):
        waveform, _ = session.run(None, rendered("mel", batch.values, "mel_mask", batch.mask))
        differences.append(_in_two_calls(session, "mel", batch, "mel_mask", waveform))
        for run in batch.runs:
            expected = source.decode(_channels_first(run.frames))[0].numpy()
            start = run.start * HOP_LENGTH
            found = waveform[run.row, start : start + len(expected)]
            differences.append(np.abs(found - expected).max())
            found[:] = 0  # what is left in the end must be silence
        differences.append(np.abs(waveform).max())
    return ParityResult("vocos", float(max(differences)), ALLOWED_DIFFERENCE[precision])


def check_encoder(source: Any, path: Path) -> ParityResult:
    """Compare `dvae_encoder` with ChatTTS's `DVAE.sample_audio`, samples [N] -> codes [4, T].

    The difference is the share of codes that are not the source's; 1 where a number of tokens is not.
    """
    session = open_session(path)
    rng = np.random.default_rng(0)
    wrong = total = 0
    for _ in range(ROUNDS):
        lengths = [MIN_ENCODER_SAMPLES, *rng.integers(MIN_ENCODER_SAMPLES, MAX_SAMPLES, rng.integers(1, 4))]
        audio = rng.uniform(-1, 1, (len(lengths), max(lengths))).astype(np.float32)
        num_samples = np.array(lengths, np.int32)[:, None]
        codes, num_tokens = session.run(None, {"audio": audio, "num_samples": num_samples})
        for row, length in enumerate(lengths):
            expected = source.sample_audio(torch.from_numpy(audio[row, :length].copy())).T.numpy()
            if num_tokens[row, 0] != len(expected) or codes[row, len(expected) :].any():
                return ParityResult("dvae_encoder", 1.0, ALLOWED_CODES)
            wrong += np.count_nonzero(codes[row, : len(expected)] != expected)
            total += expected.size
    return ParityResult("dvae_encoder", wrong / total, ALLOWED_CODES)


def rendered(name: str, values: Array, mask_name: str, mask: Array, state: Array | None = None) -> dict[str, Array]:
    """Inputs that have `values` [B, F, channels] rendered to their end, from the beginning or behind `state`."""
    if state is None:
        state = np.zeros((len(values), 1), np.float32)
    return {name: values, mask_name: np.pad(mask, [(0, 0), (0, 1)]), "state": state}


def _in_two_calls(session: Any, name: str, batch: Batch, mask_name: str, whole: Array) -> float:
    """The largest difference to `whole` where a first call waits for a second one; 0 for rows too short to wait."""
    cut = batch.values.shape[1] * 3 // 4
    if cut <= CONTEXT_TOKENS * (1 if name == "hidden" else FRAMES_PER_TOKEN):
        return 0.0
    inputs = {name: batch.values[:, :cut], mask_name: batch.mask[:, :cut]}
    start, *_, state = session.run(None, {**inputs, "state": np.zeros((len(whole), 1), np.float32)})
    end, *_ = session.run(None, rendered(name, batch.values[:, cut:], mask_name, batch.mask[:, cut:], state))
    joined = np.concatenate([start, end], axis=1)
    return float(np.abs(joined - whole).max()) if joined.shape == whole.shape else np.inf


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _random_batches(channels: int, gap: int, *, frames_per_token: int) -> Iterable[Batch]:
    """ROUNDS batches of 1 to 3 rows with 1 to 3 runs each; the first batch also has the longest and shortest runs."""
    rng = np.random.default_rng(0)
    for round_number in range(ROUNDS):
        lengths = [list(rng.integers(1, MAX_TOKENS + 1, rng.integers(1, 4))) for _ in range(rng.integers(1, 4))]
        if round_number == 0:
            lengths[0] = [MAX_TOKENS, MAX_TOKENS, 1]
        yield lay_out(
            rng,
            [
                [rng.standard_normal((tokens * frames_per_token, channels), np.float32) for tokens in row]
                for row in lengths
            ],
            gap,
        )


def _channels_first(frames: Array) -> torch.Tensor:
    return torch.from_numpy(frames.T[None].copy())
