"""model_repository/audio_trim/1/model.py, run without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import fake_pb_utils as pb

MODEL = Path(__file__).parent.parent / "model_repository" / "audio_trim" / "1" / "model.py"
WAVEFORM = np.arange(10, dtype=np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    return pb.load_model(MODEL).TritonPythonModel()


def request(num_samples: int) -> pb.InferenceRequest:
    tensors = [pb.Tensor("waveform", WAVEFORM[None]), pb.Tensor("num_samples", np.array([[num_samples]], np.int32))]
    return pb.InferenceRequest(tensors, ["audio", "sample_rate"])


@pytest.mark.parametrize("num_samples", [0, 1, 7, 10])
def test_padding_is_cut_off(model, num_samples):
    (response,) = model.execute([request(num_samples)])
    arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert np.array_equal(arrays["audio"], WAVEFORM[None, :num_samples])
    assert arrays["audio"].dtype == np.float32
    assert arrays["sample_rate"].tolist() == [[24_000]]
    assert arrays["sample_rate"].dtype == np.int32


@pytest.mark.parametrize("num_samples", [-1, 11])
def test_length_that_is_not_there_harms_no_other_request(model, num_samples):
    before, bad, after = model.execute([request(3), request(num_samples), request(4)])
    assert bad.error().code() == pb.TritonError.INVALID_ARG
    assert f"input 'num_samples' is {num_samples}; allowed is 0 to 10" in bad.error().message()
    assert [one.output_tensors()[0].as_numpy().shape for one in (before, after)] == [(1, 3), (1, 4)]


def test_missing_input_is_refused(model):
    (response,) = model.execute([pb.InferenceRequest([pb.Tensor("waveform", WAVEFORM[None])], ["audio"])])
    assert "input 'num_samples' is None" in response.error().message()
