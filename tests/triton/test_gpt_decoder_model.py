"""model_repository/gpt_decoder/1/model.py over the tiny checkpoint's artifacts, run without a server."""

from __future__ import annotations

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.request import SynthesisRequest
from chattts_serving.speech.windows import Chunk, ReadingPlan
from chattts_serving.text.frontend import TextFrontend
from chattts_serving.triton.config import DecoderConfig
from chattts_serving.triton.decoder import runner_of
from export.frontend_assets import export_frontend_assets
from export.gpt import export_gpt
from export.synthetic import write_checkpoint
from tests import fake_pb_utils as pb

MODEL = Path(__file__).parents[2] / "model_repository" / "gpt_decoder" / "1" / "model.py"
MAX_REQUESTS = 2
OUTPUTS = ["hidden", "codes", "mask", "chunk"]
WHOLE = ReadingPlan((512,), 512)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> Path:
    """A model folder as the export fills it."""
    parent = tmp_path_factory.mktemp("gpt_decoder")
    checkpoint = write_checkpoint("tiny", parent / "checkpoint")
    folder = parent / "model" / "1"
    folder.mkdir(parents=True)
    export_frontend_assets(checkpoint, folder)
    export_gpt(checkpoint, folder)
    return folder


def test_a_gpu_without_pytorch_says_what_to_install(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("gpt", "runner"):
        monkeypatch.delitem(sys.modules, f"chattts_serving.engine.gpu.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"on cuda:1, and the package torch is not installed: install .*embedded-gpu"):
        runner_of(artifacts, "cuda:1", DecoderConfig())


@pytest.fixture(scope="module")
def frontend(artifacts) -> TextFrontend:
    return TextFrontend(artifacts)


@pytest.fixture
def model(artifacts) -> Iterator[Any]:
    """The running model."""
    parameters = {"max_requests": MAX_REQUESTS, "kv_cache_gb": 0.05, "num_threads": 1}
    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize(
        {
            "model_repository": str(artifacts.parent),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
            "model_config": json.dumps(
                {"parameters": {name: {"string_value": str(value)} for name, value in parameters.items()}}
            ),
        }
    )
    yield model
    model.finalize()


@pytest.fixture
def request_for(frontend) -> Callable[..., pb.InferenceRequest]:
    """Makes calls that open a request as the ensemble does: what text_frontend writes; `inputs` replaces some of it."""

    def make(
        num_tokens: int = 12,
        outputs: list[str] = OUTPUTS,
        inputs: dict[str, Any] | None = None,
        stream_id: str | None = None,
        plan: ReadingPlan = WHOLE,
    ) -> pb.InferenceRequest:
        text = SynthesisRequest(
            text="Hello world.", seed=5, skip_refine=True, min_new_tokens=num_tokens, max_new_tokens=num_tokens
        )
        generation, embedding, *_ = frontend.prepare(text)
        values = {
            "stream_id": string(stream_id or secrets.token_hex(8)),
            "generation": string(generation.to_json()),
            "speaker_embedding": embedding[np.newaxis],
            "reading": string(plan.to_json()),
            **(inputs or {}),
        }
        return pb.InferenceRequest([pb.Tensor(name, value) for name, value in values.items()], outputs)

    return make


def string(value: str) -> np.ndarray:
    return np.array([[value.encode()]], np.object_)


def later_call(stream_id: str, **inputs: np.ndarray) -> pb.InferenceRequest:
    """A call for a request that is open."""
    return pb.InferenceRequest(
        [pb.Tensor(name, value) for name, value in {"stream_id": string(stream_id), **inputs}.items()], OUTPUTS
    )


def chunk_of(response: pb.InferenceResponse) -> Chunk:
    return Chunk.from_json(arrays(response)["chunk"].item().decode())


def outcome(request: pb.InferenceRequest) -> pb.InferenceResponse:
    """The one response of `request`, once it is there; the fake sender takes none after the final one."""
    sender = request.get_response_sender()
    give_up = time.monotonic() + 60
    while not sender.final:
        assert time.monotonic() < give_up, "no answer"
        time.sleep(0.01)
    (response,) = sender.responses
    return response


def arrays(response: pb.InferenceResponse) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


def test_answer_has_every_output_with_a_batch_dimension(model, request_for):
    request = request_for()
    model.execute([request])
    found = arrays(outcome(request))
    assert set(found) == set(OUTPUTS)
    assert found["codes"].shape == (1, 12, 4)
    batch, length = found["hidden"].shape[:2]
    assert found["mask"].shape == (batch, length + 1)  # it closes the sentence
    assert found["mask"].sum() == 12
    chunk = chunk_of(outcome(request))
    assert (chunk.first_sample, chunk.num_samples, chunk.num_tokens, chunk.is_final) == (0, 11 * 512 + 256, 12, True)
    assert (chunk.seed, chunk.texts) == (5, ("Hello world.",))


def test_a_request_is_read_chunk_by_chunk(model, request_for):
    whole = request_for(num_tokens=40)
    model.execute([whole])
    call = request_for(num_tokens=40, stream_id="mine", plan=ReadingPlan((8,), 8, lookahead_tokens=(4,)))
    responses = []
    while not responses or not chunk_of(responses[-1]).is_final:
        model.execute([call])
        responses.append(outcome(call))
        call = later_call("mine")
    assert [chunk_of(response).num_tokens for response in responses][:3] == [8] * 3
    assert sum(chunk_of(response).num_tokens for response in responses) == 40
    codes = np.concatenate([arrays(response)["codes"][0] for response in responses])
    assert np.array_equal(codes, arrays(outcome(whole))["codes"][0])


def test_a_cancelled_request_is_gone_and_makes_room(model, request_for):
    calls = [request_for(num_tokens=2_000, stream_id=name) for name in ("one", "two")]
    model.execute(calls)
    cancel = later_call("one", cancel=np.array([[True]]))
    model.execute([cancel])
    assert not outcome(cancel).has_error()
    assert outcome(calls[0]).error().code() == pb.TritonError.CANCELLED
    read, after = later_call("one"), request_for()
    model.execute([read, after])
    assert "'stream_id'" in outcome(read).error().message()
    assert chunk_of(outcome(after)).num_tokens == 12
    model.execute([later_call("two", cancel=np.array([[True]]))])


def test_execute_returns_at_once_and_another_thread_answers(model, request_for, monkeypatch):
    senders = []
    send = pb.ResponseSender.send

    def spy(self, *args, **kwargs):
        senders.append(threading.current_thread())
        send(self, *args, **kwargs)

    monkeypatch.setattr(pb.ResponseSender, "send", spy)
    request = request_for()
    assert model.execute([request]) is None
    outcome(request)
    model.finalize()  # a second answer would have come by now
    assert len(senders) == 1
    assert senders[0] is not threading.current_thread()


@pytest.mark.parametrize("wanted", [["chunk"], ["hidden", "mask"]])
def test_only_requested_outputs_are_sent(model, request_for, wanted):
    request = request_for(outputs=wanted)
    model.execute([request])
    assert set(arrays(outcome(request))) == set(wanted)


def test_a_request_is_answered_alike_alone_and_beside_another(model, request_for):
    alone, one, other = request_for(), request_for(), request_for(num_tokens=20)
    model.execute([alone])
    codes = arrays(outcome(alone))["codes"]
    model.execute([one, other])
    assert np.array_equal(arrays(outcome(one))["codes"], codes)
    assert chunk_of(outcome(other)).num_tokens == 20


BAD_INPUTS = {
    "no JSON": ("generation", np.array([[b"hello"]], np.object_)),
    "another JSON": ("generation", np.array([[b'{"prompts": 3}']], np.object_)),
    "no UTF-8": ("generation", np.array([[b"\xff"]], np.object_)),
    "two generations": ("generation", np.array([[b"{}", b"{}"]], np.object_)),
    "no plan": ("reading", np.array([[b"{}"]], np.object_)),
    "no name": ("stream_id", np.array([[b""]], np.object_)),
    "a long name": ("stream_id", np.array([[b"x" * 65]], np.object_)),
    "short vector": ("speaker_embedding", np.ones((1, 3), np.float32)),
    "empty vector": ("speaker_embedding", np.ones((1, 0), np.float32)),
    "NaN": ("speaker_embedding", np.full((1, 64), np.nan, np.float32)),
}


@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_bad_input_is_refused_by_name_and_harms_no_other(model, request_for, kind):
    name, value = BAD_INPUTS[kind]
    bad, good = request_for(inputs={name: value}), request_for()
    model.execute([bad, good])
    error = outcome(bad).error()
    assert error.code() == pb.TritonError.INVALID_ARG
    assert f"input '{name}' is " in error.message()
    assert chunk_of(outcome(good)).num_tokens == 12


@pytest.mark.parametrize("missing", ["stream_id", "speaker_embedding", "reading"])
def test_missing_input_is_refused_by_name(model, request_for, missing):
    request = request_for()
    tensors = [tensor for tensor in request.inputs() if tensor.name() != missing]
    request = pb.InferenceRequest(tensors, OUTPUTS)
    model.execute([request])
    assert f"input '{missing}' is None" in outcome(request).error().message()


def test_past_its_bound_requests_are_refused_at_once(model, request_for):
    taken = [request_for(num_tokens=100) for _ in range(MAX_REQUESTS)]
    one_more = request_for()
    model.execute([*taken, one_more])
    assert one_more.get_response_sender().final
    assert outcome(one_more).error().code() == pb.TritonError.UNAVAILABLE
    assert [chunk_of(outcome(request)).num_tokens for request in taken] == [100] * MAX_REQUESTS


def test_finalize_answers_what_is_open(model, request_for):
    requests = [request_for(num_tokens=2_000) for _ in range(MAX_REQUESTS)]
    model.execute(requests)
    model.finalize()
    for request in requests:
        assert request.get_response_sender().final
        assert outcome(request).error().code() == pb.TritonError.UNAVAILABLE
        assert "shutting down" in outcome(request).error().message()
