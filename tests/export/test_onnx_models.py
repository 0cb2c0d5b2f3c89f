"""The exported ONNX files against ChatTTS and vocos, on the tiny checkpoint."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chattts_serving.audio import HOP_LENGTH, N_FFT, NUM_MELS
from chattts_serving.errors import ConfigError
from export.chattts_package import load_chat
from export.checkpoint import Checkpoint
from export.onnx_models import export_onnx_models
from export.onnx_parity import (
    ALLOWED_DIFFERENCE,
    check_decoder,
    check_encoder,
    check_vocos,
    lay_out,
    open_session,
    rendered,
)
from export.parity import ParityResult
from export.synthetic import write_checkpoint
from tests.codes import chattts_codes, check_codes

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("dvae_decoder", "vocos", "dvae_encoder")
TOLERANCE = 2e-5  # of float32 sums in another order; log mel reaches 6, samples 1
FAR = 1e-3  # what a planted error must exceed
SHORTEST = 513  # samples that the encoder takes: half a window and one

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
rows_of_runs = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=3), min_size=1, max_size=3)


@dataclass(frozen=True)
class Export:
    """The three models of the tiny checkpoint and ChatTTS with the same weights."""

    folder: Path
    sessions: dict[str, Any]
    chat: Any

    def path(self, model: str) -> Path:
        return self.folder / model / "1" / "model.onnx"

    def compare(self, precision: str) -> list[ParityResult]:
        return [
            check_decoder(self.chat.decoder, self.path("dvae_decoder"), precision),
            check_vocos(self.chat.vocos, self.path("vocos"), precision),
            check_encoder(self.chat.dvae, self.path("dvae_encoder")),
        ]

    def run(self, model: str, *inputs: np.ndarray) -> list[np.ndarray]:
        session = self.sessions[model]
        return session.run(None, {node.name: value for node, value in zip(session.get_inputs(), inputs, strict=True)})

    def decode(self, hidden: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mel and its mask of sentences rendered in one call."""
        mel, mel_mask, _ = self.sessions["dvae_decoder"].run(None, rendered("hidden", hidden, "mask", mask))
        assert not mel_mask[:, -1].any()
        return mel, mel_mask[:, :-1]

    def speak(self, mel: np.ndarray, mel_mask: np.ndarray) -> np.ndarray:
        """The waveform of sentences rendered in one call."""
        return self.sessions["vocos"].run(None, rendered("mel", mel, "mel_mask", mel_mask))[0]

    @property
    def hidden_size(self) -> int:
        return self.sessions["dvae_decoder"].get_inputs()[0].shape[2]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Export:
    folder = tmp_path_factory.mktemp("onnx")
    checkpoint = write_checkpoint("tiny", folder / "checkpoint")
    export_onnx_models(checkpoint, folder)
    sessions = {model: open_session(folder / model / "1" / "model.onnx") for model in MODELS}
    return Export(folder, sessions, load_chat(checkpoint.directory))


@pytest.fixture(scope="module")
def other_chat(tmp_path_factory) -> Any:
    """ChatTTS with other weights of the same sizes."""
    return load_chat(write_checkpoint("tiny", tmp_path_factory.mktemp("other") / "checkpoint", seed=1).directory)


@pytest.fixture(scope="module")
def half_precision(exported, tmp_path_factory) -> Export:
    """The same checkpoint with decoder and vocoder in float16."""
    folder = tmp_path_factory.mktemp("half")
    export_onnx_models(Checkpoint.load(exported.folder / "checkpoint"), folder, "fp16")
    sessions = {model: open_session(folder / model / "1" / "model.onnx") for model in MODELS}
    return Export(folder, sessions, exported.chat)


def random_frames(
    seed: int, rows: list[list[int]], channels: int
) -> tuple[np.random.Generator, list[list[np.ndarray]]]:
    rng = np.random.default_rng(seed)
    return rng, [[rng.standard_normal((length, channels), np.float32) for length in row] for row in rows]


def constants(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    return [node.attribute[0].t for node in graph.node if node.op_type == "Constant"]


def chattts_mel(exported: Export, hidden: np.ndarray) -> np.ndarray:
    return exported.chat.decoder(torch.from_numpy(hidden.T[None].copy()))[0].T.numpy()


def vocos_waveform(exported: Export, mel: np.ndarray) -> np.ndarray:
    """Samples of a run alone; one frame has none, which torch.istft refuses to say."""
    if len(mel) == 1:
        return np.zeros(0, np.float32)
    return exported.chat.vocos.decode(torch.from_numpy(mel.T[None].copy()))[0].numpy()


def encode(exported: Export, rows: list[np.ndarray], padding: float = 0.0) -> list[np.ndarray]:
    """The codes of each row out of one padded batch."""
    audio = np.full((len(rows), max(map(len, rows))), padding, np.float32)
    for index, row in enumerate(rows):
        audio[index, : len(row)] = row
    codes, num_tokens = exported.run("dvae_encoder", audio, np.array([[len(row)] for row in rows], np.int32))
    for row, count in zip(codes, num_tokens[:, 0], strict=True):
        assert not row[count:].any()
    return [row[:count] for row, count in zip(codes, num_tokens[:, 0], strict=True)]


def test_each_model_passes_the_comparison_with_its_source(exported):
    for result in exported.compare("fp32"):
        result.check()


def test_half_precision_stays_within_its_own_bound_and_above_that_of_float32(half_precision):
    decoder, vocos, encoder = half_precision.compare("fp16")
    for result in (decoder, vocos):
        assert ALLOWED_DIFFERENCE["fp32"] < result.difference < ALLOWED_DIFFERENCE["fp16"] == result.allowed
    assert encoder.difference <= encoder.allowed


def test_half_precision_concerns_the_weights_of_decoder_and_vocoder_alone(exported, half_precision):
    for model in MODELS:
        graph = onnx.load(half_precision.path(model)).graph
        single = onnx.load(exported.path(model)).graph
        assert (graph.input, graph.output) == (single.input, single.output)
        weights = {tensor.data_type for tensor in constants(graph) if len(tensor.dims) == 4}  # of convolutions
        assert weights == {onnx.TensorProto.FLOAT if model == "dvae_encoder" else onnx.TensorProto.FLOAT16}
    [inverse] = [tensor for tensor in constants(onnx.load(half_precision.path("vocos")).graph) if N_FFT in tensor.dims]
    assert inverse.data_type == onnx.TensorProto.FLOAT


def test_half_precision_is_silent_and_keeps_runs_apart_where_the_mask_says_so(exported, half_precision):
    """A run beside noise and other runs equals the run alone, up to float16's rounding."""
    rng, frames = random_frames(0, [[10, 20], [15]], exported.hidden_size)
    batch = lay_out(rng, frames, gap=3)
    mel, mel_mask = half_precision.decode(batch.values, batch.mask)
    waveform = half_precision.speak(mel, mel_mask)
    assert not mel[mel_mask == 0].any()
    for run in batch.runs:
        expected = half_precision.speak(
            *half_precision.decode(run.frames[None], np.ones((1, len(run.frames)), np.float32))
        )
        found = waveform[run.row, run.start * 2 * HOP_LENGTH :][: expected.shape[1]]
        np.testing.assert_allclose(found, expected[0], rtol=0, atol=ALLOWED_DIFFERENCE["fp16"] / 4)
        found[:] = 0
    assert not waveform.any()


@pytest.mark.parametrize("model", ["dvae_decoder", "vocos"])
def test_onnx_runtime_makes_no_slow_operators_of_the_graph(exported, model, tmp_path):
    """BiasGelu and SkipLayerNormalization are slower on a CPU than what they replace; transposes cost for nothing."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file fits this machine alone
    onnxruntime.InferenceSession(str(exported.path(model)), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert not {"BiasGelu", "SkipLayerNormalization"} & set(operators)
    if platform.machine() == "x86_64":  # elsewhere ONNX Runtime has no blocked layout
        assert operators.count("Transpose") < operators.count("Conv")


@few
@given(rows=rows_of_runs, gap=st.integers(3, 9), seed=seeds)
def test_the_decoder_gives_each_run_what_chattts_gives_it_alone(exported, rows, gap, seed):
    rng, frames = random_frames(seed, rows, exported.hidden_size)
    batch = lay_out(rng, frames, gap)
    mel, mel_mask = exported.decode(batch.values, batch.mask)
    np.testing.assert_array_equal(mel_mask, batch.mask.repeat(2, axis=1))
    assert not mel[mel_mask == 0].any()
    for run in batch.runs:
        expected = chattts_mel(exported, run.frames)
        found = mel[run.row, 2 * run.start : 2 * run.start + len(expected)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@few
@given(rows=rows_of_runs, gap=st.integers(6, 15), seed=seeds)
def test_the_vocoder_gives_each_run_what_vocos_gives_it_alone_and_silence_elsewhere(exported, rows, gap, seed):
    rng, frames = random_frames(seed, rows, NUM_MELS)
    batch = lay_out(rng, frames, gap)
    waveform = exported.speak(batch.values, batch.mask)
    expected = np.zeros((len(rows), batch.mask.shape[1] * HOP_LENGTH), np.float32)
    for run in batch.runs:
        alone = vocos_waveform(exported, run.frames)
        expected[run.row, run.start * HOP_LENGTH :][: len(alone)] = alone
    np.testing.assert_allclose(waveform, expected, rtol=0, atol=TOLERANCE)
    assert not waveform[expected == 0].any()


@few
@given(lengths=st.lists(st.integers(SHORTEST, 4_000), min_size=1, max_size=4), seed=seeds)
def test_the_encoder_gives_each_row_the_codes_that_chattts_gives_it_alone(exported, lengths, seed):
    rng = np.random.default_rng(seed)
    rows = [rng.uniform(-1, 1, length).astype(np.float32) for length in lengths]
    for row, codes in zip(rows, encode(exported, rows, padding=0.7), strict=True):
        check_codes(codes, *chattts_codes(exported.chat.dvae, row))


@pytest.mark.parametrize("length", [*range(SHORTEST, SHORTEST + 4), 767, 768, 769, 1_023, 1_024, 1_025, 24_000])
def test_the_encoder_follows_chattts_at_the_edges_of_a_hop(exported, length):
    row = np.random.default_rng(length).uniform(-0.5, 0.5, length).astype(np.float32)
    check_codes(encode(exported, [row])[0], *chattts_codes(exported.chat.dvae, row))


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 0.5, 1e-6])
def test_the_encoder_follows_chattts_on_constant_audio(exported, level):
    row = np.full(5_000, level, np.float32)
    check_codes(encode(exported, [row])[0], *chattts_codes(exported.chat.dvae, row))


def test_the_encoder_follows_chattts_on_loud_and_quiet_bands_side_by_side(exported):
    """Harmonics over a noise floor 60 dB below."""
    time = np.arange(3 * 24_000) / 24_000
    voice = sum(0.3 / harmonic * np.sin(2 * np.pi * 140 * harmonic * time + harmonic) for harmonic in range(1, 30))
    noise = 3e-4 * np.random.default_rng(0).standard_normal(len(time))
    row = (np.clip(np.sin(4 * np.pi * time), 0, 1) * voice + noise).astype(np.float32)
    check_codes(encode(exported, [row])[0], *chattts_codes(exported.chat.dvae, row))


def test_the_check_of_codes_notices_one_that_is_wrong(exported):
    row = np.random.default_rng(0).uniform(-1, 1, 5_000).astype(np.float32)
    expected, is_sure = chattts_codes(exported.chat.dvae, row)
    codes = encode(exported, [row])[0]
    codes[is_sure.argmax(0)[0], 0] += 1
    with pytest.raises(AssertionError, match="Arrays are not equal"):
        check_codes(codes, expected, is_sure)


def test_a_single_token_makes_one_hop_of_audio(exported):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((1, 1, exported.hidden_size), np.float32)
    mel, mel_mask = exported.decode(hidden, np.ones((1, 1), np.float32))
    waveform = exported.speak(mel, mel_mask)
    expected = vocos_waveform(exported, chattts_mel(exported, hidden[0]))
    assert expected.shape == (HOP_LENGTH,)
    np.testing.assert_allclose(waveform[0, :HOP_LENGTH], expected, rtol=0, atol=TOLERANCE)
    assert not waveform[0, HOP_LENGTH:].any()


def test_a_row_that_is_masked_throughout_is_silent(exported):
    noise = 100 * np.random.default_rng(0).standard_normal((2, 20, NUM_MELS)).astype(np.float32)
    waveform = exported.speak(noise, np.zeros((2, 20), np.float32))
    assert not waveform.any()


def test_magnitudes_are_clipped_as_vocos_clips_them(exported):
    vocos = exported.chat.vocos
    mel = np.random.default_rng(1).standard_normal((40, NUM_MELS)).astype(np.float32)
    log_magnitude = vocos.head.out(vocos.backbone(torch.from_numpy(mel.T[None].copy())))[..., : N_FFT // 2 + 1]
    assert log_magnitude.max() > np.log(100)
    waveform = exported.speak(mel[None], np.ones((1, 40), np.float32))
    expected = vocos_waveform(exported, mel)
    np.testing.assert_allclose(waveform[0, : len(expected)], expected, rtol=0, atol=TOLERANCE)


def test_two_tokens_are_not_enough_to_keep_runs_apart(exported):
    """The gap that everything relies on is the smallest that works."""
    rng, frames = random_frames(0, [[10, 10]], exported.hidden_size)
    batch = lay_out(rng, frames, gap=2)
    mel, _ = exported.decode(batch.values, batch.mask)
    assert np.abs(mel[0, :20] - chattts_mel(exported, frames[0][0])).max() > FAR


def test_without_its_mask_padding_changes_the_audio(exported):
    """The comparisons above would notice a mask that does nothing."""
    rng, frames = random_frames(0, [[10], [20]], exported.hidden_size)
    batch = lay_out(rng, frames, gap=3)
    mel, _ = exported.decode(batch.values, np.ones_like(batch.mask))
    assert np.abs(mel[0, :20] - chattts_mel(exported, frames[0][0])).max() > FAR


def test_parity_notices_other_weights(exported, other_chat):
    results = [
        check_decoder(other_chat.decoder, exported.path("dvae_decoder")),
        check_vocos(other_chat.vocos, exported.path("vocos")),
        check_encoder(other_chat.dvae, exported.path("dvae_encoder")),
    ]
    for result in results:
        with pytest.raises(ConfigError, match=result.name):
            result.check()


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_one_self_contained_file_without_traces_of_this_machine(exported, model):
    path = exported.path(model)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    content = path.read_bytes()
    for trace in (b"site-packages", b".py", str(ROOT).encode()):
        assert trace not in content
