"""Decoder and vocoder with 8-bit products, beside the same in float32."""

import numpy as np
import onnx
import pytest

from export.checkpoint import Checkpoint
from export.onnx_models import export_onnx_models
from export.onnx_parity import ALLOWED_DIFFERENCE, lay_out, open_session
from export.quantization import BLOCK, ZERO, quantized
from tests.export.test_onnx_models import MODELS, Export, exported, random_frames  # noqa: F401 - a fixture

SPOKEN = ("dvae_decoder", "vocos")


@pytest.fixture(scope="module")
def in_bytes(exported, tmp_path_factory) -> Export:  # noqa: F811
    folder = tmp_path_factory.mktemp("bytes")
    export_onnx_models(Checkpoint.load(exported.folder / "checkpoint"), folder, "int8")
    return Export(folder, {model: open_session(folder / model / "1" / "model.onnx") for model in MODELS}, exported.chat)


@pytest.mark.parametrize("inputs", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_weights_are_off_by_half_a_step_of_their_block(inputs):
    weight = np.random.default_rng(0).standard_normal((inputs, 5)).astype(np.float32)
    weight[:, 1] = 0
    numbers, scales = quantized(weight)
    blocks = -(-inputs // BLOCK)
    assert (numbers.shape, scales.shape) == ((5, blocks, BLOCK), (5, blocks))
    found = ((numbers.astype(np.float32) - ZERO) * scales[:, :, None]).reshape(5, -1).T
    assert not found[inputs:].any()
    steps = np.repeat(scales, BLOCK, axis=1).T[:inputs]
    assert (np.abs(found[:inputs] - weight) <= 0.5001 * steps).all()
    assert np.abs(weight).max() / (ZERO - 1) == pytest.approx(scales.max())


def test_sound_stays_within_its_own_bound_and_codes_are_those_of_float32(in_bytes):
    decoder, vocos, encoder = in_bytes.compare("int8")
    for result in (decoder, vocos):
        assert ALLOWED_DIFFERENCE["fp32"] < result.difference < ALLOWED_DIFFERENCE["int8"] == result.allowed
    assert vocos.difference < 0.05  # of full scale; the bound above is that of log mel, whose numbers are larger
    assert encoder.difference <= encoder.allowed


def test_both_products_of_every_block_are_in_bytes_and_nothing_else_is(exported, in_bytes):  # noqa: F811
    for model in MODELS:
        before, after = (onnx.load(one.path(model)).graph for one in (exported, in_bytes))
        assert (after.input, after.output) == (before.input, before.output)
        operators = [node.op_type for node in after.node]
        num_blocks = operators.count("LayerNormalization") - {"dvae_decoder": 0, "vocos": 2}.get(model, 0)
        assert operators.count("MatMulNBits") == (2 * num_blocks if model in SPOKEN else 0)
        num_products = [node.op_type for node in before.node].count("MatMul")
        assert operators.count("MatMul") + operators.count("MatMulNBits") == num_products
        assert {tensor.data_type for tensor in after.initializer} <= {onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT}
        named = {name for node in after.node for name in node.input}
        assert all(tensor.name in named for tensor in after.initializer)


def test_a_row_is_the_same_in_any_batch(exported, in_bytes):  # noqa: F811
    rng, frames = random_frames(0, [[30], [12], [21]], exported.hidden_size)
    batch = lay_out(rng, frames, gap=3)
    mel, mel_mask = in_bytes.decode(batch.values, batch.mask)
    waveform = in_bytes.speak(mel, mel_mask)
    for row, length in enumerate((30, 12, 21)):
        alone, alone_mask = in_bytes.decode(batch.values[row : row + 1, :length], batch.mask[row : row + 1, :length])
        np.testing.assert_array_equal(mel[row, : 2 * length], alone[0])
        samples = in_bytes.speak(alone, alone_mask)[0]
        np.testing.assert_array_equal(waveform[row, : len(samples)], samples)
