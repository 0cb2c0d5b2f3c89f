"""model_repository/voice_encoder/1/model.py, run without a server: dvae_encoder is a stand-in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chattts_serving.errors import OverloadedError
from chattts_serving.triton import io as triton_io
from chattts_serving.voice.speaker import decode_sample
from tests import fake_pb_utils as pb

MODEL = Path(__file__).parents[2] / "model_repository" / "voice_encoder" / "1" / "model.py"
CODES = np.random.default_rng(0).integers(0, 625, (50, 4)).astype(np.int32)
NUM_TOKENS = 47
RECORDING = np.random.default_rng(0).uniform(-0.5, 0.5, (1, 24_000)).astype(np.float32)


@pytest.fixture
def called() -> list[dict[str, np.ndarray]]:
    """The calls of dvae_encoder: their inputs."""
    return []


@pytest.fixture
def model(called, monkeypatch) -> Any:
    def dvae_encoder(request):
        called.append({tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()})
        answer = {"codes": CODES, "num_tokens": np.array([NUM_TOKENS], np.int32)}
        return triton_io.success(pb, {name: answer[name] for name in request.requested_output_names()})

    monkeypatch.setitem(pb.called_models, "dvae_encoder", dvae_encoder)
    loaded = pb.load_model(MODEL).TritonPythonModel()
    loaded.initialize({})
    return loaded


def request(audio: np.ndarray = RECORDING, sample_rate: int = 24_000) -> pb.InferenceRequest:
    tensors = [pb.Tensor("audio", audio), pb.Tensor("sample_rate", np.array([[sample_rate]], np.int32))]
    return pb.InferenceRequest(tensors, ["speaker_sample", "num_tokens"])


def test_a_recording_becomes_a_string_of_its_own_tokens(model):
    """Codes past the recording's own are padding."""
    (response,) = model.execute([request()])
    text, num_tokens = (tensor.as_numpy() for tensor in response.output_tensors())
    assert np.array_equal(decode_sample(text.item().decode()), CODES[:NUM_TOKENS])
    assert num_tokens.tolist() == [[NUM_TOKENS]]


def test_the_encoder_is_given_the_recording_and_its_length(model, called):
    model.execute([request()])
    (inputs,) = called
    assert np.array_equal(inputs["audio"], RECORDING[0])
    assert inputs["num_samples"].tolist() == [24_000]


def test_a_recording_at_another_rate_reaches_the_encoder_at_24_khz(model, called):
    model.execute([request(sample_rate=16_000)])
    assert called[0]["num_samples"].tolist() == [36_000]


def test_a_bad_recording_harms_no_other_of_its_batch(model):
    before, bad, after = model.execute([request(), request(sample_rate=8_000), request()])
    assert bad.error().code() == pb.TritonError.INVALID_ARG
    assert "input 'sample_rate' is 8000" in bad.error().message()
    assert not before.has_error()
    assert not after.has_error()


def test_an_error_of_the_encoder_is_passed_on(model, monkeypatch):
    full = triton_io.failure(pb, OverloadedError("the queue is full"))
    monkeypatch.setitem(pb.called_models, "dvae_encoder", lambda _: full)
    (response,) = model.execute([request()])
    assert response.error().code() == pb.TritonError.UNAVAILABLE


def test_tensor_names_are_those_of_the_configuration(model):
    config = (MODEL.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    names = re.findall(r'\{ name: "(\w+)"', config)
    (response,) = model.execute([request()])
    assert names == ["audio", "sample_rate", *(tensor.name() for tensor in response.output_tensors())]
