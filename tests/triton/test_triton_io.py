"""The adapter between pb_utils and Python values."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from chattts_serving import errors
from chattts_serving.triton import io as triton_io
from chattts_serving.triton.tracing import Trace
from tests import fake_pb_utils as pb


def request(**arrays: np.ndarray) -> pb.InferenceRequest:
    return pb.InferenceRequest([pb.Tensor(name, array) for name, array in arrays.items()], [])


def strings(*values: bytes) -> np.ndarray:
    return np.array([values], np.object_)


@pytest.mark.parametrize(("said", "version"), [("2.71.0", (2, 71)), ("2.9dev", (2, 9)), ("", (0, 0)), ("r26", (0, 0))])
def test_the_version_is_what_the_environment_says(said, version, monkeypatch):
    monkeypatch.setenv(triton_io.SERVER_VERSION, said)
    assert triton_io.triton_version() == version


def test_scalars_become_python_values():
    values = triton_io.read_scalars(
        request(
            text=strings("你好".encode()),
            seed=np.array([[2**62]], np.int64),
            top_p=np.array([[0.5]], np.float32),
            normalize=np.array([[True]]),
        )
    )
    assert values == {"text": "你好", "seed": 2**62, "top_p": 0.5, "normalize": True}
    assert [type(value) for value in values.values()] == [str, int, float, bool]


@pytest.mark.parametrize("array", [strings(), strings(b"a", b"b"), np.zeros((2, 1), np.int64), np.zeros((0,), bool)])
def test_other_than_one_element_is_refused(array):
    with pytest.raises(errors.InvalidInputError, match=r"input 'x' is 'of shape \[.*\]'; allowed is one element"):
        triton_io.read_scalars(request(x=array))


@pytest.mark.parametrize("value", [b"\xff", b"\xed\xa0\x80", "你".encode()[:2], "好".encode("gbk"), b"\xc0\x80"])
def test_bytes_that_are_no_utf8_are_refused(value):
    with pytest.raises(errors.InvalidInputError, match=r"input 'text' is .* UTF-8"):
        triton_io.read_scalars(request(text=strings(value)))


def test_one_input_is_read_by_name():
    both = request(generation=strings(b"{}"), speaker=np.ones((1, 3), np.float32))
    assert triton_io.read_text(both, "generation") == "{}"
    assert triton_io.read_array(both, "speaker").tolist() == [[1, 1, 1]]


def test_missing_input_is_refused():
    with pytest.raises(errors.InvalidInputError, match="input 'generation' is None"):
        triton_io.read_text(request(), "generation")


def test_number_where_text_belongs_is_refused():
    with pytest.raises(errors.InvalidInputError, match="input 'generation' is 3"):
        triton_io.read_text(request(generation=np.array([[3]])), "generation")


def test_outputs_get_a_batch_dimension():
    response = triton_io.success(
        pb, {"text": "你好", "hidden": np.ones((2, 3), np.float32), "n": np.array([5], np.int32)}
    )
    arrays = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    assert arrays["text"].tolist() == [["你好".encode()]]
    assert arrays["hidden"].shape == (1, 2, 3)
    assert arrays["n"].tolist() == [[5]]
    assert [array.dtype for array in arrays.values()] == [np.object_, np.float32, np.int32]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInputError("text", "", "more"), pb.TritonError.INVALID_ARG),
        (errors.OverloadedError("full"), pb.TritonError.UNAVAILABLE),
        (errors.DeadlineExceededError("late"), pb.TritonError.UNAVAILABLE),
        (errors.ShuttingDownError("gone"), pb.TritonError.UNAVAILABLE),
        (errors.EngineError("step failed"), pb.TritonError.INTERNAL),
        (errors.ConfigError("broken"), pb.TritonError.INTERNAL),
    ],
)
def test_errors_have_the_code_of_their_status(error, code):
    sent = triton_io.failure(pb, error).error()
    assert (sent.code(), sent.message()) == (code, str(error))


def test_every_kind_of_error_has_a_code():
    kinds = [errors.ServingError, *errors.ServingError.__subclasses__()]
    assert {kind.status for kind in kinds} <= set(triton_io._TRITON_CODES)


def test_answer_is_what_the_call_returns():
    response = triton_io.answer(pb, lambda: {"text": "a"})
    assert not response.has_error()
    assert response.output_tensors()[0].as_numpy().tolist() == [[b"a"]]


def test_unforeseen_error_is_logged_and_its_words_are_kept_in(caplog):
    def fail() -> dict[str, str]:
        raise ZeroDivisionError("a secret path")

    with caplog.at_level(logging.ERROR):
        response = triton_io.answer(pb, fail)
    assert response.error().code() == pb.TritonError.INTERNAL
    assert "secret" not in response.error().message()
    assert "a secret path" in caplog.text


def test_unforeseen_error_of_a_late_answer_is_treated_alike(caplog):
    sent = triton_io.failure(pb, ZeroDivisionError("a secret path")).error()
    assert sent.code() == pb.TritonError.INTERNAL
    assert "secret" not in sent.message()
    assert "a secret path" in caplog.text


def call(blocking, **inputs):
    if blocking:
        return triton_io.call_model(pb, "vocos", inputs, ["waveform"], request_id="job 7")
    return asyncio.run(triton_io.call_model_async(pb, "vocos", inputs, ["waveform"], request_id="job 7"))


@pytest.fixture
def vocos(monkeypatch):
    """Has `call` answered with `answer`; what it was asked is in `seen`."""

    def answered(request):
        model.seen = request
        return model.answer

    model = SimpleNamespace(answer=None, seen=None)
    monkeypatch.setitem(pb.called_models, "vocos", answered)
    return model


@pytest.mark.parametrize("blocking", [True, False])
def test_a_called_model_gets_and_gives_values_without_a_batch_dimension(vocos, blocking):
    """The stand-in is on a GPU, from where nothing can be read that was not asked for in the CPU's memory."""
    vocos.answer = triton_io.success(pb, {"waveform": np.array([1.5, 2.5], np.float32), "chunk": "你好"})
    outputs = call(blocking, stream_id="a", cancel=np.array([True]))
    assert vocos.seen.request_id() == "job 7"
    assert vocos.seen.requested_output_names() == {"waveform"}
    inputs = {tensor.name(): tensor.as_numpy().tolist() for tensor in vocos.seen.inputs()}
    assert inputs == {"stream_id": [[b"a"]], "cancel": [[True]]}
    assert outputs["chunk"] == "你好"
    assert outputs["waveform"].tolist() == [1.5, 2.5]


@pytest.mark.parametrize("blocking", [True, False])
def test_an_error_of_a_called_model_is_passed_on_with_its_status(vocos, blocking):
    error = pb.TritonError("in ensemble 'speech_chunk', deadline exceeded", pb.TritonError.CANCELLED)
    vocos.answer = pb.InferenceResponse(error=error)
    with pytest.raises(errors.CalledModelError, match=r"^deadline exceeded$") as caught:
        call(blocking)
    assert triton_io.failure(pb, caught.value).error().code() == pb.TritonError.CANCELLED
    assert caught.value.model == "vocos"


def test_an_error_of_a_called_model_that_has_no_status_is_internal(vocos):
    vocos.answer = pb.InferenceResponse(error=pb.TritonError("no such model", pb.TritonError.NOT_FOUND))
    with pytest.raises(errors.CalledModelError, match="no such model") as caught:
        call(blocking=True)
    assert caught.value.status == "INTERNAL"


def test_an_answer_that_cannot_be_sent_is_logged(caplog):
    sender = pb.ResponseSender()
    sender.final = True  # takes nothing more
    triton_io.send_last(pb, sender, triton_io.success(pb, {}))
    assert "an answer could not be sent" in caplog.text


@pytest.mark.parametrize(("num_bytes", "fits"), [(4 * 2**20, True), (4 * 2**20 + 1, False), (2**40, False)])
def test_a_large_answer_needs_room_in_the_shared_memory(num_bytes, fits, monkeypatch):
    full = SimpleNamespace(f_bavail=2, f_frsize=4_096)
    monkeypatch.setattr("os.statvfs", lambda _: full)
    if fits:
        triton_io.check_shared_memory(num_bytes)
        return
    with pytest.raises(errors.EngineError, match="finds no room in /dev/shm"):
        triton_io.check_shared_memory(num_bytes)


def test_a_traced_call_is_told_what_it_belongs_to(vocos):
    vocos.answer = triton_io.success(pb, {"waveform": np.zeros(1, np.float32)})
    ended = []
    tracer = SimpleNamespace(add=ended.append)
    parent = f"00-{'a' * 32}-{'b' * 16}-01"
    triton_io.call_model(pb, "vocos", {}, ["waveform"], trace=Trace(tracer, parent))
    (span,) = ended
    assert (span["traceId"], span["parentSpanId"], span["name"]) == ("a" * 32, "b" * 16, "vocos")
    assert json.loads(vocos.seen.parameters()) == {"traceparent": f"00-{'a' * 32}-{span['spanId']}-01"}
    triton_io.call_model(pb, "vocos", {}, ["waveform"])
    assert json.loads(vocos.seen.parameters()) == {}
    assert len(ended) == 1
