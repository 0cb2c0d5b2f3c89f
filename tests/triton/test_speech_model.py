"""model_repository/speech/1/model.py, run without a server: what it speaks is a stand-in."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from chattts_serving.speech import session
from tests import fake_pb_utils as pb

MODEL = Path(__file__).parents[2] / "model_repository" / "speech" / "1" / "model.py"
CONFIG = {"model_config": "{}"}


def test_an_answer_has_what_its_caller_asked_for_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {"audio": np.zeros(512, np.float32), "num_tokens": np.array([2], np.int32), "refined_text": "a"}

    async def speak(*_: object) -> dict[str, object]:
        return outputs

    monkeypatch.setattr(session, "speak", speak)
    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize(CONFIG)
    inputs = [
        pb.Tensor("generation", np.array([[b"{}"]], np.object_)),
        pb.Tensor("speaker_embedding", np.zeros((1, 4), np.float32)),
    ]
    request = pb.InferenceRequest(inputs, ["audio"])
    model.execute([request])
    end = time.monotonic() + 60
    while not request.get_response_sender().final:
        assert time.monotonic() < end
        time.sleep(0.01)
    model.finalize()
    (response,) = request.get_response_sender().responses
    assert [tensor.name() for tensor in response.output_tensors()] == ["audio"]
