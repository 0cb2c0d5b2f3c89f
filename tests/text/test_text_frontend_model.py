"""model_repository/text_frontend/1/model.py, run without a server."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chattts_serving.errors import ConfigError, OverloadedError
from chattts_serving.request import GenerationRequest, SynthesisRequest
from chattts_serving.speech import admission
from chattts_serving.speech.admission import PASSAGE_S, Door, Room, RoomSign
from chattts_serving.text.part import Part, SoFar
from chattts_serving.text.script import PAUSES
from chattts_serving.text.sentences import End
from chattts_serving.text.unfinished import Sentence
from chattts_serving.triton.metrics import WRITE_S
from chattts_serving.variables import DRAIN_FILE, LEXICON
from tests import fake_pb_utils as pb
from tests.frontend_assets import make_frontend_assets

OUTPUTS = ["generation", "speaker_embedding", "used_speaker", "warning"]
SEVEN = '{"description": "Sampled by seed 7.", "seed": 7}'
MODEL = Path(__file__).parents[2] / "model_repository" / "text_frontend" / "1" / "model.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Iterator[Any]:
    """The model over the tiny checkpoint's assets."""
    folder = tmp_path_factory.mktemp("text_frontend")
    pb.metrics.clear()
    make_frontend_assets(folder / "1")
    (folder / "1" / "voices.json").write_text(library(default=SEVEN), encoding="utf-8")
    model = pb.load_model(MODEL).TritonPythonModel()
    arguments = {"model_repository": str(folder), "model_version": "1", "model_instance_name": "text_frontend_0_0"}
    model.initialize(arguments | {"model_config": "{}"})
    yield model
    model.finalize()


def library(**voices: str) -> str:
    """The file with these voices."""
    return json.dumps({name: json.loads(value) for name, value in voices.items()})


def request(**values: Any) -> pb.InferenceRequest:
    """A request with inputs of the types that Triton gives them."""
    types = {str: np.object_, bytes: np.object_, int: np.int64, float: np.float32, bool: np.bool_}
    tensors = []
    for name, value in values.items():
        data = value.encode() if isinstance(value, str) else value
        tensors.append(pb.Tensor(name, np.array([[data]], types[type(value)])))
    return pb.InferenceRequest(tensors, OUTPUTS)


def answers(model: Any, requests: list[pb.InferenceRequest]) -> list[pb.InferenceResponse]:
    """The one response of each request, once they are there."""
    assert model.execute(requests) is None
    give_up = time.monotonic() + 60
    while not all(request.get_response_sender().final for request in requests):
        assert time.monotonic() < give_up, "no answer"
        time.sleep(0.005)
    return [response for request in requests for response in request.get_response_sender().responses]


def generation_of(response: pb.InferenceResponse) -> GenerationRequest:
    assert not response.has_error(), response.error().message()
    return GenerationRequest.from_json(response.output_tensors()[0].as_numpy().item().decode())


def test_request_becomes_generation_and_voice(model):
    (response,) = answers(model, [request(text="我有3个苹果", seed=7, skip_refine=True, temperature=0.5)])
    generation = generation_of(response)
    assert (generation.texts, generation.seed, generation.refine) == (("我有三个苹果",), 7, False)
    assert generation.sampling.temperature == 0.5
    vector = response.output_tensors()[1].as_numpy()
    assert (vector.dtype, vector.shape[0], vector.ndim) == (np.float32, 1, 2)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-2)


def test_output_names_are_those_of_the_configuration(model):
    (response,) = answers(model, [request(text="Hello")])
    config = (MODEL.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    outputs = config[config.index("output [") : config.index("instance_group")]
    assert [tensor.name() for tensor in response.output_tensors()] == OUTPUTS
    assert re.findall(r'name: "(\w+)"', outputs) == [*OUTPUTS, "so_far", "voices"]


def test_every_input_of_the_configuration_is_taken(model):
    config = (MODEL.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    inputs = config[config.index("input [") : config.index("output [")]
    samples = {"STRING": "", "INT64": 5, "INT32": 100, "FP32": 0.5, "BOOL": True}
    values = {}
    for line in inputs.splitlines():
        if "name:" in line and '"part"' not in line:  # which a test of its own has
            name, data_type = line.split('"')[1], line.split("TYPE_")[1].split()[0]
            values[name] = samples[data_type]
    # Refining alone and no refining exclude each other.
    (response,) = answers(
        model, [request(**values | {"text": "Hello", "skip_refine": False, "ssml": False, "priority": "batch"})]
    )
    assert set(values) == {field.name for field in fields(SynthesisRequest)}
    assert generation_of(response).sampling.max_new_tokens == 100


def voice_of(response: pb.InferenceResponse) -> tuple[np.ndarray, str]:
    assert not response.has_error(), response.error().message()
    _, embedding, speaker, _ = response.output_tensors()
    return embedding.as_numpy(), speaker.as_numpy().item().decode()


def test_a_voice_of_the_library_is_found_by_its_name(model):
    named, sampled = answers(model, [request(text="Hello", speaker="default"), request(text="Hello", seed=7)])
    assert np.array_equal(voice_of(named)[0], voice_of(sampled)[0])


def test_used_speaker_speaks_in_the_same_voice(model):
    (first,) = answers(model, [request(text="Hello", seed=3)])
    embedding, speaker = voice_of(first)
    (again,) = answers(model, [request(text="Hello", seed=4, speaker=speaker)])
    assert np.array_equal(voice_of(again)[0], embedding)
    assert voice_of(again)[1] == speaker


def test_a_broken_lexicon_keeps_the_model_from_starting(model, tmp_path, monkeypatch):
    make_frontend_assets(tmp_path / "1")
    (tmp_path / "1" / "voices.json").write_text(library(default=SEVEN), encoding="utf-8")
    (tmp_path / "words.json").write_text('{"nginx": 3}', encoding="utf-8")
    monkeypatch.setenv(LEXICON, str(tmp_path / "words.json"))
    arguments = {"model_repository": str(tmp_path), "model_version": "1", "model_instance_name": "text_frontend_0_0"}
    with pytest.raises(ConfigError, match=r"words\.json is wrong: input 'lexicon' is \{'nginx': 3\}"):
        pb.load_model(MODEL).TritonPythonModel().initialize(arguments | {"model_config": "{}"})


def test_a_broken_voice_keeps_the_model_from_starting(model, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "voices.json").write_text(library(x="{}"))
    broken = pb.load_model(MODEL).TritonPythonModel()
    with pytest.raises(ConfigError, match="voice 'x'"):
        broken.initialize({"model_repository": str(tmp_path), "model_version": "1", "model_config": "{}"})


BAD = {
    "text": ["", "???", "x" * 20_001, "a\0b", b"\xff", "[Stts]"],
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
    before, bad, after = answers(
        model,
        [request(text="Hello", seed=1), request(**{"text": "Hello", name: value}), request(text="Hello", seed=1)],
    )
    assert bad.error().code() == pb.TritonError.INVALID_ARG
    assert f"input '{name}' is " in bad.error().message()
    assert generation_of(before) == generation_of(after)


def test_request_without_text_is_refused(model):
    (response,) = answers(model, [request(seed=1)])
    assert "input 'text' is None" in response.error().message()


def test_several_texts_in_one_request_are_refused(model):
    two = pb.InferenceRequest([pb.Tensor("text", np.array([[b"a"], [b"b"]], np.object_))], ["generation"])
    (response,) = answers(model, [two])
    assert response.error().code() == pb.TritonError.INVALID_ARG
    assert "input 'text' is 'of shape [2, 1]'" in response.error().message()


@pytest.fixture
def sign(tmp_path, monkeypatch, model) -> RoomSign:
    """Where gpt_decoder writes what it has open."""
    monkeypatch.setenv(DRAIN_FILE, str(tmp_path / "drain"))
    monkeypatch.setattr(model, "_door", Door())
    return RoomSign()


def refused(model, **values) -> str:
    """The message with which a request is told UNAVAILABLE; empty where it is answered."""
    (response,) = answers(model, [request(text="Hello", **values)])
    time.sleep(PASSAGE_S)
    if not response.has_error():
        return ""
    assert response.error().code() == pb.TritonError.UNAVAILABLE
    return response.error().message()


def test_further_parts_of_a_text_come_in_where_there_is_no_room(model, sign):
    """Their request is open, and takes a place."""
    sign.write(Room(num_open=8, num_batch=0, max_open=8, max_batch=4))
    first = Part((Sentence("It costs $3.", End.SENTENCE, "en"),), goes_on=True)
    assert refused(model, part=first.to_json()).startswith("overloaded: 8 requests are open")
    further = request(text=" ", part=replace(first, is_first=False, so_far=SoFar(5, 1, 7, 9, 100)).to_json())
    (response,) = answers(model, [pb.InferenceRequest(further.inputs(), ["generation", "so_far"])])
    generation = generation_of(response)
    assert (generation.texts, generation.pauses) == (("It costs three dollars.",), (9, 0))
    work, *others = SoFar.from_json(response.output_tensors()[1].as_numpy().item().decode())
    assert (work > 5, others) == (True, [2, PAUSES[End.SENTENCE], None, 109])


def test_what_is_no_part_of_a_text_is_refused(model):
    (response,) = answers(model, [request(text=" ", part="[]")])
    assert "input 'part' is '[]'; allowed is what chattts_stream writes" in response.error().message()


def test_a_request_that_finds_no_room_is_refused_before_any_work(model, sign):
    assert refused(model) == ""  # before gpt_decoder has been loaded
    sign.write(Room(num_open=7, num_batch=3, max_open=8, max_batch=4))
    assert refused(model) == refused(model, priority="batch") == ""
    sign.write(Room(num_open=7, num_batch=4, max_open=8, max_batch=4))
    assert refused(model) == ""
    message = "overloaded: 4 requests of priority 'batch' are open, of 4 allowed; try again later"
    assert refused(model, priority="batch") == message
    sign.write(Room(num_open=8, num_batch=0, max_open=8, max_batch=4))
    assert refused(model) == "overloaded: 8 requests are open, of 8 allowed; try again later"


def test_those_that_are_worked_on_take_room_too(model, sign):
    sign.write(Room(num_open=0, num_batch=0, max_open=3, max_batch=3))
    long = "A sentence with 12 numbers in 34 places. " * 400
    crowd = [request(text=long) for _ in range(20)]
    responses = answers(model, crowd)
    served = [one for one in responses if not one.has_error()]
    assert 3 <= len(served) < 20
    assert {one.error().code() for one in responses if one.has_error()} == {pb.TritonError.UNAVAILABLE}


def test_requests_that_end_here_are_counted(model, sign):
    before = refusals()
    while (now := settled()) != before:  # what other tests had refused is still written
        before = now
    sign.write(Room(num_open=8, num_batch=0, max_open=8, max_batch=4))
    refused(model)
    sign.write(Room(num_open=0, num_batch=0, max_open=8, max_batch=4))
    refused(model)
    answers(model, [request(text="")])
    give_up = time.monotonic() + 30
    while (found := refusals() - before) != Counter(overloaded=1, invalid=1):
        assert time.monotonic() < give_up, found
        time.sleep(0.01)


def settled() -> Counter[str]:
    time.sleep(4 * WRITE_S)
    return refusals()


def refusals() -> Counter[str]:
    return Counter({one.labels["outcome"]: int(one.value) for one in pb.metrics if "outcome" in one.labels})


def test_nobody_is_let_into_a_server_that_is_about_to_end(model, sign, tmp_path):
    (tmp_path / "drain").write_text("1.0")
    assert refused(model) == "the server is shutting down"


def test_those_on_their_way_to_gpt_decoder_take_room_until_they_must_have_come(model, sign, monkeypatch):
    sign.write(Room(num_open=7, num_batch=0, max_open=8, max_batch=8))
    monkeypatch.setattr(admission, "PASSAGE_S", 0.0)
    assert refused(model) == ""
    monkeypatch.setattr(admission, "PASSAGE_S", 60.0)
    assert refused(model) == ""
    assert refused(model) == "overloaded: 8 requests are open, of 8 allowed; try again later"


def test_a_probe_takes_nobodys_place_and_is_refused_as_all_are(model, sign, monkeypatch):
    monkeypatch.setattr(admission, "PASSAGE_S", 60.0)
    sign.write(Room(num_open=7, num_batch=0, max_open=8, max_batch=8))
    probe = pb.InferenceRequest(request(text="Ready.").inputs(), ["generation"])
    (response,) = answers(model, [probe])
    assert not response.has_error()
    assert refused(model) == ""
    (response,) = answers(model, [pb.InferenceRequest(probe.inputs(), ["generation"])])
    assert response.error().message() == "overloaded: 8 requests are open, of 8 allowed; try again later"


def test_those_that_stay_are_not_more_than_others_may_be(sign):
    sign.write(Room(num_open=2, num_batch=0, max_open=4, max_batch=4))
    door = Door()
    for _ in range(2):
        door.enter(is_batch=False, stays=True)
    with pytest.raises(OverloadedError):
        door.enter(is_batch=False, stays=True)
    door.enter(is_batch=False)
    door.leave(passes=False, stays=True)
    with pytest.raises(OverloadedError):
        door.enter(is_batch=False, stays=True)
    door.leave(passes=False, stays=True)
    door.enter(is_batch=False, stays=True)


def test_those_that_came_to_gpt_decoder_are_counted_once(model, sign, monkeypatch):
    monkeypatch.setattr(admission, "PASSAGE_S", 60.0)
    sign.write(Room(num_open=0, num_batch=0, max_open=4, max_batch=4, num_arrived=70))
    for num_open in range(4):
        (response,) = answers(model, [request(text="Hello")])
        assert not response.has_error()
        sign.write(Room(num_open + 1, num_batch=0, max_open=4, max_batch=4, num_arrived=71 + num_open))
    assert refused(model) == "overloaded: 4 requests are open, of 4 allowed; try again later"


def test_voices_are_listed_for_who_asks_for_nothing_else(model, sign):
    sign.write(Room(num_open=4, num_batch=0, max_open=4, max_batch=4))  # full: it takes no place
    (response,) = answers(model, [pb.InferenceRequest([pb.Tensor("text", np.array([[b""]], np.object_))], ["voices"])])
    (tensor,) = response.output_tensors()
    assert (tensor.name(), json.loads(tensor.as_numpy().item())) == ("voices", {"default": json.loads(SEVEN)})


def test_two_doors_do_not_give_one_place_away_twice(sign, monkeypatch):
    monkeypatch.setattr(admission, "PASSAGE_S", 60.0)
    one, other = Door(0), Door(1)
    sign.write(Room(num_open=2, num_batch=0, max_open=4, max_batch=4, num_arrived=9))
    one.enter(is_batch=False)
    other.enter(is_batch=False)
    for door in (one, other):
        with pytest.raises(OverloadedError, match="4 requests are open, of 4 allowed"):
            door.enter(is_batch=False)
    other.leave(passes=True)
    one.leave(passes=True)
    with pytest.raises(OverloadedError):
        one.enter(is_batch=False)
    sign.write(Room(num_open=3, num_batch=0, max_open=4, max_batch=4, num_arrived=10))  # one has come
    with pytest.raises(OverloadedError):
        other.enter(is_batch=False)
    sign.write(Room(num_open=3, num_batch=0, max_open=4, max_batch=4, num_arrived=11))  # both have, and one has ended
    other.enter(is_batch=False)
    with pytest.raises(OverloadedError):
        one.enter(is_batch=False)
    other.leave(passes=False)
    one.enter(is_batch=False)


def test_what_a_door_that_died_has_left_is_forgotten(sign):
    sign.write(Room(num_open=0, num_batch=0, max_open=1, max_batch=1))
    Door(0).enter(is_batch=False)
    with pytest.raises(OverloadedError):
        Door(1).enter(is_batch=False)
    Door(0).enter(is_batch=False)
