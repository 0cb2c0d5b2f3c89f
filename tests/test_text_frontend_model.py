"""model_repository/text_frontend/1/model.py, run without a server."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.request import GenerationRequest, SynthesisRequest
from tests import fake_pb_utils as pb
from tests.frontend_assets import make_frontend_assets

OUTPUTS = ["generation", "speaker_embedding", "used_speaker"]
SEVEN = '{"description": "Sampled by seed 7.", "seed": 7}'
MODEL = Path(__file__).parent.parent / "model_repository" / "text_frontend" / "1" / "model.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Any:
    """The model over the tiny checkpoint's assets."""
    folder = tmp_path_factory.mktemp("text_frontend")
    make_frontend_assets(folder / "1")
    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1", "model_config": config(default=SEVEN)})
    return model


def config(**voices: str) -> str:
    """What Triton says of a configuration with these voices."""
    parameters = {f"voice.{name}": {"string_value": value} for name, value in voices.items()}
    return json.dumps({"name": "text_frontend", "parameters": parameters})


def request(**values: Any) -> pb.InferenceRequest:
    """A request with inputs of the types that Triton gives them."""
    types = {str: np.object_, bytes: np.object_, int: np.int64, float: np.float32, bool: np.bool_}
    tensors = []
    for name, value in values.items():
        data = value.encode() if isinstance(value, str) else value
        tensors.append(pb.Tensor(name, np.array([[data]], types[type(value)])))
    return pb.InferenceRequest(tensors, OUTPUTS)


def generation_of(response: pb.InferenceResponse) -> GenerationRequest:
    assert not response.has_error(), response.error().message()
    return GenerationRequest.from_json(response.output_tensors()[0].as_numpy().item().decode())


def test_request_becomes_generation_and_voice(model):
    (response,) = model.execute([request(text="我有3个苹果", seed=7, skip_refine=True, temperature=0.5)])
    generation = generation_of(response)
    assert (generation.texts, generation.seed, generation.refine) == (("我有三个苹果",), 7, False)
    assert generation.sampling.temperature == 0.5
    vector = response.output_tensors()[1].as_numpy()
    assert (vector.dtype, vector.shape[0], vector.ndim) == (np.float32, 1, 2)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-2)


def test_output_names_are_those_of_the_configuration(model):
    (response,) = model.execute([request(text="Hello")])
    config = (MODEL.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    outputs = config[config.index("output [") : config.index("instance_group")]
    assert re.findall(r'name: "(\w+)"', outputs) == [tensor.name() for tensor in response.output_tensors()] == OUTPUTS


def test_every_input_of_the_configuration_is_taken(model):
    config = (MODEL.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    inputs = config[config.index("input [") : config.index("output [")]
    samples = {"STRING": "", "INT64": 5, "INT32": 100, "FP32": 0.5, "BOOL": True}
    values = {}
    for line in inputs.splitlines():
        if "name:" in line:
            name, data_type = line.split('"')[1], line.split("TYPE_")[1].split()[0]
            values[name] = samples[data_type]
    # Refining alone and no refining exclude each other.
    (response,) = model.execute([request(**{**values, "text": "Hello", "skip_refine": False})])
    assert set(values) == {field.name for field in fields(SynthesisRequest)}
    assert generation_of(response).sampling.max_new_tokens == 100


def voice_of(response: pb.InferenceResponse) -> tuple[np.ndarray, str]:
    assert not response.has_error(), response.error().message()
    _, embedding, speaker = response.output_tensors()
    return embedding.as_numpy(), speaker.as_numpy().item().decode()


def test_a_voice_of_the_configuration_is_found_by_its_name(model):
    named, sampled = model.execute([request(text="Hello", speaker="default"), request(text="Hello", seed=7)])
    assert np.array_equal(voice_of(named)[0], voice_of(sampled)[0])


def test_used_speaker_speaks_in_the_same_voice(model):
    (first,) = model.execute([request(text="Hello", seed=3)])
    embedding, speaker = voice_of(first)
    (again,) = model.execute([request(text="Hello", seed=4, speaker=speaker)])
    assert np.array_equal(voice_of(again)[0], embedding)
    assert voice_of(again)[1] == speaker


def test_a_broken_voice_keeps_the_model_from_starting(model, tmp_path):
    broken = pb.load_model(MODEL).TritonPythonModel()
    with pytest.raises(ConfigError, match="voice 'x'"):
        broken.initialize({"model_repository": "", "model_version": "1", "model_config": config(x="{}")})


BAD = {
    "text": ["", "???", "x" * 20_001, "a\0b", b"\xff", "[nonsense]"],
    "speaker": ["Alice", "一" * 9_000],
    "speaker_sample": ["hello"],
    "seed": [-1],
    "temperature": [0.0, -1.0, float("nan"), float("inf")],
    "top_p": [0.0, 1.5, float("nan")],
    "top_k": [0, 627],
    "min_new_tokens": [-1, 2_049],
    "max_new_tokens": [0, 2_049],
    "language": ["fr"],
    "deadline_ms": [0, -5],
    "prompt": ["fast", "[speed_99]"],
    "refine_prompt": ["[Pbreak]"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_request_harms_no_other_of_its_batch(model, name, value):
    before, bad, after = model.execute(
        [request(text="Hello", seed=1), request(**{"text": "Hello", name: value}), request(text="Hello", seed=1)]
    )
    assert bad.error().code() == pb.TritonError.INVALID_ARG
    assert f"input '{name}' is " in bad.error().message()
    assert generation_of(before) == generation_of(after)


def test_request_without_text_is_refused(model):
    (response,) = model.execute([request(seed=1)])
    assert "input 'text' is None" in response.error().message()


def test_several_texts_in_one_request_are_refused(model):
    two = pb.InferenceRequest([pb.Tensor("text", np.array([[b"a"], [b"b"]], np.object_))], ["generation"])
    (response,) = model.execute([two])
    assert response.error().code() == pb.TritonError.INVALID_ARG
    assert "input 'text' is 'of shape [2, 1]'" in response.error().message()
