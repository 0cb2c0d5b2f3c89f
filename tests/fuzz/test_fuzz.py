"""A small share of `python -m tests.fuzz`, the same requests every time; and the fuzzing's own parts."""

import numpy as np
import pytest
from chattts_client.options import STREAM_DATATYPES
from hypothesis import given, settings

from tests.fuzz import answers, campaign
from tests.fuzz import guard as guards
from tests.fuzz.calls import Call, Expected, Tensor, grpc_request, text_tensor
from tests.fuzz.speech_calls import speech_calls
from tests.fuzz.values import VALUES
from tests.fuzz.wires import Wires

SEED = 20_260
REQUESTS = 400


@pytest.fixture(scope="module")
def session(tiny):
    report = campaign.Report()
    session = campaign.Session(tiny.server, report)
    yield session, report
    session.close()


def test_a_server_answers_or_refuses_whatever_is_sent(session):
    """Each batch ends with a look at the server: alive, idle, and speaking as before."""
    fuzzed, report = session
    for batch in campaign.batches(fuzzed.kinds, REQUESTS, SEED):
        fuzzed.run(batch)
        assert not report.failures, "\n".join(map(str, report.failures))
    assert report.statuses.keys() == fuzzed.kinds.keys()
    assert all(statuses.total() for statuses in report.statuses.values())


def test_every_input_of_the_contract_has_values():
    assert VALUES.keys() == STREAM_DATATYPES.keys()


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(speech_calls("chattts_stream", huge=True))
def test_every_call_can_be_sent_by_grpc(call):
    request = grpc_request(call, typed=False)
    assert len(request.inputs) == len(request.raw_input_contents) == len(call.tensors)


def test_batches_are_those_of_the_seed_and_as_many_as_asked_for(session):
    kinds = session[0].kinds
    first = campaign.batches(kinds, 20_000, 1)
    assert first == campaign.batches(kinds, 20_000, 1)
    assert first != campaign.batches(kinds, 20_000, 2)
    requests = sum(batch.cases * kinds[batch.kind].requests for batch in first)
    assert requests == pytest.approx(20_000, rel=0.01)


def speech(**changes):
    """An answer to `chattts` of one sentence of four tokens, 7 * 256 samples."""
    outputs = {
        "audio": np.zeros((1, 1_792), np.float32),
        "num_tokens": np.array([[4]], np.int32),
        "sample_rate": np.array([[24_000]], np.int32),
        "sentences": np.array(
            [[b'[{"text": "Hi.", "start": 0, "end": 0.07466666, "num_tokens": 4, "finish_reason": "length"}]']], object
        ),
        "refined_text": np.array([[b"Hi."]], object),
    }
    return answers.Answer(answers.OK, responses=({**outputs, **changes},))


GOOD = Call(
    "chattts",
    (text_tensor("text", "Hi."), Tensor("max_new_tokens", "INT32", (1, 1), (4,))),
    expected=Expected.ANSWER,
)


def test_a_right_answer_passes():
    answers.check(GOOD, speech())


WRONG = {
    "a sample is missing": speech(audio=np.zeros((1, 1_791), np.float32)),
    "a sample is no number": speech(audio=np.full((1, 1_792), np.nan, np.float32)),
    "another rate": speech(sample_rate=np.array([[16_000]], np.int32)),
    "tokens do not add up": speech(num_tokens=np.array([[5]], np.int32)),
    "another text": speech(refined_text=np.array([[b"Ho."]], object)),
    "a failure of the server": answers.Answer("INTERNAL", "the request failed"),
    "no cause": answers.Answer("INVALID_ARGUMENT", ""),
    "a cause in the log": answers.Answer("INVALID_ARGUMENT", "the request failed; the server's log has the cause"),
    "a good call refused": answers.Answer("INVALID_ARGUMENT", "input 'text' is 'Hi.'; allowed is ..."),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_answer_is_found(what):
    with pytest.raises(answers.UnexpectedError):
        answers.check(GOOD, WRONG[what])


def test_a_refusal_has_to_name_the_input():
    call = Call("chattts", (), expected=Expected.REFUSAL, blames=("seed",))
    answers.check(call, answers.Answer("400", "input 'seed' is -1; allowed is ..."))
    with pytest.raises(answers.UnexpectedError, match="names none of seed"):
        answers.check(call, answers.Answer("400", "input 'text' is ''; allowed is ..."))
    with pytest.raises(answers.UnexpectedError, match="a bad call was answered"):
        answers.check(call, speech())


@pytest.fixture
def wires(tiny):
    wires = Wires(tiny.server)
    yield wires
    wires.close()


def test_all_wires_carry_the_same_answer(wires):
    """Or the kinds of the table would not look at the same thing."""
    options = (Tensor("seed", "INT64", (1, 1), (1,)), Tensor("skip_refine", "BOOL", (1, 1), (True,)))
    call = Call("chattts", (*GOOD.tensors, *options), expected=Expected.ANSWER)
    found = {name: wire(call) for name, wire in wires.whole.items()}
    for answer in found.values():
        answers.check(call, answer)
        [outputs] = answer.responses
        np.testing.assert_allclose(outputs["audio"], found["grpc"].responses[0]["audio"], atol=1e-4)
        assert outputs["sentences"].item() == found["grpc"].responses[0]["sentences"].item()


@pytest.fixture
def guard(tiny, wires):
    return guards.Guard(tiny.server, wires)


def test_the_guard_lets_a_server_at_rest_pass(guard):
    guard.check()


def test_the_guard_sees_a_request_that_stays_open(guard, monkeypatch):
    monkeypatch.setattr(guards, "IDLE_WITHIN_S", 0.0)
    monkeypatch.setattr(guards.probe, "open_requests", lambda _: 2)
    with pytest.raises(guards.BrokenError, match="2 requests are still open"):
        guard.check()


def test_the_guard_sees_another_process(guard, monkeypatch):
    monkeypatch.setattr(guards, "child_processes", lambda _: {})
    with pytest.raises(guards.BrokenError, match="the processes were"):
        guard.check()


def test_the_guard_hears_another_voice(guard, monkeypatch):
    option = Tensor("temperature", "FP32", (1, 1), (2.0,))
    monkeypatch.setattr(guards, "CONTROL", (*guards.CONTROL, option))
    with pytest.raises(guards.BrokenError, match="sounds different over chattts"):
        guard.check()


def test_the_guard_sees_memory_that_is_not_given_back(guard, monkeypatch):
    monkeypatch.setattr(guards, "MOST_GROWTH_MB", -10_000)
    with pytest.raises(guards.BrokenError, match="MB more"):
        guard.check()
