"""One request from its prompts to its sound, with stand-ins for the models that it calls."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest

from chattts_serving.errors import CalledModelError, CancelledError, DeadlineExceededError, InvalidInputError
from chattts_serving.speech import session
from chattts_serving.speech.reader import Reader
from chattts_serving.speech.session import SpeechSession, cross_faded, outputs_of, speak, stream
from chattts_serving.speech.spoken_words import SpokenWord
from chattts_serving.speech.windows import Chunk, ReadingPlan, SpokenSentence

PLAN = ReadingPlan((16,), 32)
PREPARED = {
    "generation": '{"deadline_ns": null}',
    "speaker_embedding": np.ones(3, np.float32),
    "used_speaker": "the voice",
    "warning": "",
}
STATES = ("decoder_state", "vocoder_state")
INPUTS = {"text": np.array([b"hello"], np.object_)}


def chunk(first_sample=0, num_samples=4, **values):
    """A chunk of 2 tokens in the middle of a request."""
    middle = Chunk(first_sample, num_samples, 0, 0, 2, True, (), (), 7, is_final=False)
    return replace(middle, **values)


def without_states(inputs):
    return {name: value for name, value in inputs.items() if name not in STATES}


def ramp(length, start=0):
    return np.arange(start, start + length, dtype=np.float32)


FIRST = SpokenSentence("你好", 0.0, 0.1, 2, "stop")
SECOND = SpokenSentence("two", 0.2, 0.3, 4, "length")
SPOKEN = [
    (ramp(10), chunk(2, 4, pause_samples=3, texts=("你好",), sentences=(FIRST,), keeps_state=False)),
    (ramp(10, 100), chunk(0, 5, texts=("two",))),
    (ramp(10, 200), chunk(5, 2, sentences=(SECOND,), keeps_state=False, is_final=True)),
]
AUDIO = [2, 3, 4, 5, 0, 0, 0, 100, 101, 102, 103, 104, 205, 206]


class Models:
    """Answers calls of text_frontend, speech_chunk and gpt_decoder, and remembers them.

    Args:
        answers: to the calls of speech_chunk: a waveform and its chunk, an error, or None, which waits for a cancel.
        frontend_error: that text_frontend answers with.
        cancel_error: that cancelling answers with.
    """

    def __init__(self, answers, frontend_error=None, cancel_error=None):
        self.answers = iter(answers)
        self.frontend_error = frontend_error
        self.cancel_error = cancel_error
        self.calls = []
        self.cancelled = asyncio.Event()
        self.ready = []
        self.held = []
        self.handed = session.Models(self.call, Reader(self.call), held=lambda *more: self.held.append(more))

    async def call(self, model, inputs, outputs):
        self.calls.append((model, dict(inputs), list(outputs)))
        await asyncio.sleep(0)
        if model == "gpt_decoder":
            return await self._gpt_decoder(inputs)
        return await getattr(self, f"_{model}")()

    def inputs_of(self, model):
        return [inputs for name, inputs, _ in self.calls if name == model]

    @property
    def openings(self):
        return [inputs for inputs in self.inputs_of("gpt_decoder") if "generation" in inputs]

    @property
    def cancels(self):
        return [inputs for inputs in self.inputs_of("gpt_decoder") if "cancel" in inputs]

    async def _text_frontend(self):
        if self.frontend_error:
            raise self.frontend_error
        return PREPARED

    async def _speech_chunk(self):
        answer = next(self.answers)
        if answer is None:
            await self.cancelled.wait()
            raise CalledModelError("the request was cancelled", "CANCELLED")
        if isinstance(answer, Exception):
            raise answer
        waveform, one = answer
        number = len(self.inputs_of("speech_chunk"))
        kept = {f"next_{name}": np.full(3, number + 0.5 * place) for place, name in enumerate(STATES)}
        return {"waveform": waveform, "chunk": one.to_json(), **kept}

    async def _gpt_decoder(self, inputs):
        if "cancel" not in inputs:
            names = [inputs["stream_id"]] if "generation" in inputs else inputs["expected"].split("\n")
            self.ready += filter(None, names)
            if "generation" in inputs:
                return {"ready": ""}
            told, self.ready = self.ready, []
            return {"ready": "\n".join(told)}
        self.cancelled.set()
        if self.cancel_error:
            raise self.cancel_error
        return {"chunk": ""}


def read(models):
    async def run():
        return [heard async for heard in SpeechSession(models.handed, PLAN, PREPARED).chunks()]

    return asyncio.run(run())


# Chunks


def test_chunks_are_cut_out_of_their_windows_in_order_with_the_silence_that_follows():
    heard = read(Models(SPOKEN))
    assert [one.chunk for one in heard] == [one for _, one in SPOKEN]
    assert np.concatenate([one.audio for one in heard]).tolist() == AUDIO
    assert all(one.audio.dtype == np.float32 for one in heard)


def test_the_first_call_opens_the_request_and_the_others_name_it():
    models = Models(SPOKEN)
    read(models)
    [opening] = models.openings
    stream_id = opening.pop("stream_id")
    assert opening.pop("reader") != stream_id
    assert opening == {
        **{name: PREPARED[name] for name in ("generation", "speaker_embedding")},
        "reading": PLAN.to_json(),
    }
    assert [without_states(inputs) for inputs in models.inputs_of("speech_chunk")] == [{"stream_id": stream_id}] * 3


def test_each_call_gets_what_the_one_before_kept_where_it_goes_on_from_that():
    models = Models(SPOKEN)
    read(models)
    given = [[inputs[name].tolist() for name in STATES] for inputs in models.inputs_of("speech_chunk")]
    assert given == [[[0], [0]], [[0], [0]], [[2] * 3, [2.5] * 3]]


def test_what_is_kept_between_chunks_is_told_and_nothing_stays():
    """Two arrays of three float64, kept where a sentence goes on."""
    kept = 2 * 3 * 8
    goes_on = [(ramp(10), chunk()), (ramp(10), chunk()), (ramp(10), chunk(keeps_state=False, is_final=True))]
    models = Models(goes_on)
    asyncio.run(speak(models.handed, PLAN, PREPARED))
    assert [one for one in models.held if any(one)] == [(1, kept), (-1, -kept)]


def test_a_traced_request_is_opened_with_its_span():
    models = Models([SPOKEN[2]])
    traced = replace(models.handed, span=lambda name: nullcontext(f"the span {name}"))
    asyncio.run(speak(traced, PLAN, PREPARED))
    assert [opening["traceparent"] for opening in models.openings] == ["the span gpt_decoder"]


def test_no_two_requests_have_the_same_name():
    names = set()
    for _ in range(100):
        models = Models(SPOKEN)
        read(models)
        names.add(models.inputs_of("speech_chunk")[0]["stream_id"])
    assert len(names) == 100
    assert all(len(name) == 32 for name in names)


def test_a_request_without_sound_is_one_chunk_of_no_samples():
    [heard] = read(Models([(ramp(16), chunk(0, 0, num_tokens=0, texts=("refined",), is_final=True))]))
    assert heard.audio.shape == (0,)
    assert heard.chunk.texts == ("refined",)


# Cross-fades


@pytest.mark.parametrize("length", [1, 2, 7, 512])
def test_the_weights_of_a_cross_fade_sum_to_one_and_turn_over_steadily(length):
    ones, zeros = np.ones(length, np.float32), np.zeros(length, np.float32)
    rising, falling = cross_faded(zeros, ones), cross_faded(ones, zeros)
    np.testing.assert_allclose(rising + falling, 1, atol=1e-6)
    np.testing.assert_allclose(rising, falling[::-1], atol=1e-6)
    assert (np.diff(rising) > 0).all()
    assert (rising > 0).all()
    assert (rising < 1).all()


def test_a_cross_fade_of_equal_sounds_changes_nothing():
    sound = np.random.default_rng(0).standard_normal(600, np.float32)
    np.testing.assert_allclose(cross_faded(sound[:512], sound), sound, atol=1e-6)


def test_a_cross_fade_of_two_levels_has_no_jump():
    """Where one sound stops and the next begins, the steps are those of a raised cosine."""
    old, new, length = 1.0, -1.0, 512
    faded = cross_faded(np.full(length, old, np.float32), np.full(1_000, new, np.float32))
    joined = np.concatenate([[old], faded])
    assert np.abs(np.diff(joined)).max() < 1.01 * np.pi / 2 * abs(old - new) / length
    assert (faded[length:] == new).all()


@pytest.mark.parametrize(("old", "new"), [(0, 5), (3, 0), (5, 3), (3, 5)])
def test_a_cross_fade_is_as_long_as_the_new_sound_and_leaves_both_alone(old, new):
    old_sound, new_sound = ramp(old), ramp(new, 10)
    assert len(cross_faded(old_sound, new_sound)) == new
    assert old_sound.tolist() == ramp(old).tolist()
    assert new_sound.tolist() == ramp(new, 10).tolist()


def test_what_a_window_says_of_the_next_chunk_is_faded_into_it():
    answers = [
        (np.full(12, 1, np.float32), chunk(2, 4, fade_samples=3)),
        (np.full(12, 5, np.float32), chunk(1, 6, is_final=True)),
    ]
    first, second = read(Models(answers))
    assert first.audio.tolist() == [1] * 4
    np.testing.assert_allclose(second.audio, cross_faded(np.full(3, 1, np.float32), np.full(6, 5, np.float32)))
    assert (np.diff(second.audio[:4]) > 0).all()


def test_a_chunk_without_a_fade_begins_as_its_window_says():
    answers = [
        (ramp(12), chunk(0, 4, fade_samples=3)),
        (ramp(12), chunk(0, 4)),
        (ramp(9, 50), chunk(1, 4, is_final=True)),
    ]
    assert read(Models(answers))[2].audio.tolist() == [51, 52, 53, 54]


# The whole speech


def test_the_whole_speech_is_the_sum_of_its_chunks():
    models = Models(SPOKEN)
    outputs = asyncio.run(speak(models.handed, PLAN, PREPARED))
    assert outputs["audio"].tolist() == AUDIO
    assert outputs["sample_rate"].tolist() == [24_000]
    assert outputs["used_seed"].tolist() == [7]
    assert outputs["num_tokens"].tolist() == [6]
    assert outputs["refined_text"] == "你好\ntwo"
    assert [sentence["text"] for sentence in json.loads(outputs["sentences"])] == ["你好", "two"]
    assert json.loads(outputs["sentences"])[1] == {
        "text": "two",
        "start": 0.2,
        "end": 0.3,
        "num_tokens": 4,
        "finish_reason": "length",
    }
    assert not models.cancels


WORDS = (SpokenWord("你", 0.0, 0.04, 0, 1.0), SpokenWord("好", 0.04, 0.1, 0, 0.5))


def with_words():
    """What is spoken, with words in the first chunk, and a warning in the second one."""
    first, second, last = SPOKEN
    return [(first[0], replace(first[1], words=WORDS)), (second[0], replace(second[1], warning="so")), last]


def test_words_and_warnings_of_chunks_are_those_of_the_speech():
    outputs = asyncio.run(speak(Models(with_words()).handed, PLAN, PREPARED | {"warning": "not all"}))
    assert json.loads(outputs["words"]) == [vars(word) for word in WORDS]
    assert outputs["warning"] == "not all; so"


def test_a_warning_stays_once_a_chunk_of_a_stream_has_it():
    caller = Caller()
    run_stream(Models(with_words()), caller)
    assert [one["warning"] for one in caller.chunks] == ["", "so", "so"]
    assert [len(json.loads(one["words"])) for one in caller.chunks] == [2, 0, 0]


def test_the_outputs_have_the_types_of_the_contract():
    outputs = outputs_of(read(Models(SPOKEN)))
    types = {name: value.dtype for name, value in outputs.items() if not isinstance(value, str)}
    assert types == {"audio": np.float32, "sample_rate": np.int32, "used_seed": np.int64, "num_tokens": np.int32}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_of_a_speech_passes_through_and_gives_the_request_up(place):
    error = CalledModelError("planted", "UNAVAILABLE")
    models = Models([*SPOKEN[:place], error])
    with pytest.raises(CalledModelError) as caught:
        asyncio.run(speak(models.handed, PLAN, PREPARED))
    assert caught.value is error
    check_given_up(models)


def test_a_speech_that_is_stopped_gives_its_request_up():
    """As the model does with those that are under way when it is unloaded."""
    models = Models([SPOKEN[0], None])

    async def run():
        speaking = asyncio.create_task(speak(models.handed, PLAN, PREPARED))
        while len(models.inputs_of("speech_chunk")) < 2:
            await asyncio.sleep(0)
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)

    asyncio.run(run())
    check_given_up(models)


def test_a_request_that_cannot_be_given_up_fails_with_its_own_error():
    models = Models([InvalidInputError("text", "", "planted")], cancel_error=CalledModelError("gone", "UNAVAILABLE"))
    with pytest.raises(InvalidInputError, match="planted"):
        asyncio.run(speak(models.handed, PLAN, PREPARED))


def check_given_up(models):
    """gpt_decoder was told once, by the request's name, and no state is kept."""
    assert np.sum(models.held, axis=0).tolist() == [0, 0]
    [cancel] = models.cancels
    names = {inputs["stream_id"] for inputs in models.inputs_of("speech_chunk")}
    assert {cancel["stream_id"]} == names
    assert cancel["cancel"].tolist() == [True]


# Streams


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(session, "CANCEL_POLL_S", 0.001)


class Caller:
    """Takes chunks; goes once `patience` of them have come, or fails to take that one."""

    def __init__(self, patience=None, fails=False):
        self.chunks = []
        self.patience = patience
        self.fails = fails
        self.num_asked = 0

    def send(self, outputs):
        if self.fails and len(self.chunks) == self.patience:
            raise ConnectionError("planted")
        self.chunks.append(outputs)

    def has_gone(self):
        self.num_asked += 1
        return not self.fails and self.patience is not None and len(self.chunks) >= self.patience


def run_stream(models, caller):
    asyncio.run(stream(models.handed, PLAN, INPUTS, caller.send, caller.has_gone))


def test_a_stream_sends_every_chunk_as_it_comes():
    models, caller = Models(SPOKEN), Caller()
    run_stream(models, caller)
    assert [one["audio"].tolist() for one in caller.chunks] == [AUDIO[:7], AUDIO[7:12], AUDIO[12:]]
    assert [one["chunk_index"].tolist() for one in caller.chunks] == [[0], [1], [2]]
    assert [one["is_final"].tolist() for one in caller.chunks] == [[False], [False], [True]]
    assert [one["num_tokens"].tolist() for one in caller.chunks] == [[2]] * 3
    assert [one["refined_text"] for one in caller.chunks] == ["你好", "two", ""]
    assert [len(json.loads(one["sentences"])) for one in caller.chunks] == [1, 0, 1]
    assert [one["used_seed"].tolist() for one in caller.chunks] == [[7]] * 3
    assert [one["used_speaker"] for one in caller.chunks] == ["the voice"] * 3
    assert not models.cancels


def test_the_text_is_prepared_first():
    models = Models(SPOKEN)
    run_stream(models, Caller())
    model, inputs, outputs = models.calls[0]
    assert (model, inputs) == ("text_frontend", INPUTS)
    assert {"generation", "speaker_embedding", "used_speaker"} <= set(outputs)


def test_a_text_that_is_refused_opens_no_request():
    models = Models(SPOKEN, frontend_error=InvalidInputError("text", "", "planted"))
    with pytest.raises(InvalidInputError, match="planted"):
        run_stream(models, Caller())
    assert len(models.calls) == 1


def test_a_caller_who_goes_while_the_text_is_prepared_opens_no_request():
    models = Models(SPOKEN)
    with pytest.raises(CancelledError):
        run_stream(models, Caller(patience=0))
    assert len(models.calls) == 1


@pytest.mark.parametrize("patience", [1, 2])
def test_a_caller_who_goes_while_a_chunk_is_waited_for_gives_the_request_up(patience, caplog):
    models, caller = Models([*SPOKEN[:patience], None]), Caller(patience)
    with pytest.raises(CancelledError):
        run_stream(models, caller)
    check_given_up(models)
    assert len(caller.chunks) == patience
    gc.collect()  # of a task whose error nobody took asyncio writes to the log
    assert not caplog.records


def test_a_caller_who_goes_after_the_last_chunk_has_got_everything():
    models, caller = Models(SPOKEN), Caller(patience=3)
    run_stream(models, caller)
    assert not models.cancels


def test_whether_the_caller_has_gone_is_asked_while_a_chunk_is_waited_for():
    models, caller = Models([SPOKEN[0], None]), Caller()
    asked = []

    def has_gone():
        asked.append(len(caller.chunks))
        return asked.count(1) == 20

    with pytest.raises(CancelledError):
        asyncio.run(stream(models.handed, PLAN, INPUTS, caller.send, has_gone))
    assert asked[-20:] == [1] * 20
    check_given_up(models)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_of_a_stream_passes_through_and_gives_the_request_up(place):
    error = CalledModelError("planted", "UNAVAILABLE")
    models, caller = Models([*SPOKEN[:place], error]), Caller()
    with pytest.raises(CalledModelError) as caught:
        run_stream(models, caller)
    assert caught.value is error
    assert len(caller.chunks) == place
    check_given_up(models)


@pytest.mark.parametrize("place", [0, 1])
def test_a_chunk_that_cannot_be_sent_gives_the_request_up(place):
    models = Models(SPOKEN)
    with pytest.raises(ConnectionError, match="planted"):
        run_stream(models, Caller(place, fails=True))
    check_given_up(models)
    assert len(models.inputs_of("speech_chunk")) == place + 1


def test_a_cancel_that_overtakes_the_opening_still_ends_the_stream():
    """Both wait for a thread of the server's, and gpt_decoder forgets a cancel of what it does not know."""

    class Slow(Models):
        async def _gpt_decoder(self, inputs):
            if "generation" in inputs:
                await self.cancelled.wait()  # of a cancel that comes too early
                self.cancelled.clear()
            return await super()._gpt_decoder(inputs)

        async def _speech_chunk(self):
            try:
                await asyncio.wait_for(self.cancelled.wait(), 0.01)
            except asyncio.TimeoutError:
                return {"waveform": ramp(4), "chunk": chunk().to_json()}
            raise CalledModelError("the request was cancelled", "CANCELLED")

    models, caller = Slow([]), Caller()

    async def run():
        await asyncio.wait_for(stream(models.handed, PLAN, INPUTS, caller.send, lambda: len(models.calls) > 1), 5)

    with pytest.raises(CancelledError):
        asyncio.run(run())
    assert len(models.cancels) >= 2


# Deadlines


class Stuck(Models):
    """A vocoder that never answers."""

    async def _speech_chunk(self):
        await asyncio.Event().wait()


def with_deadline(seconds):
    deadline_ns = time.monotonic_ns() + int(seconds * 1e9)
    return PREPARED | {"generation": json.dumps({"deadline_ns": deadline_ns})}


@pytest.fixture
def no_grace(monkeypatch):
    monkeypatch.setattr(session, "DEADLINE_GRACE_S", 0.0)


def test_a_speech_does_not_wait_for_the_vocoder_past_its_deadline(no_grace):
    models = Stuck([])
    with pytest.raises(DeadlineExceededError):
        asyncio.run(asyncio.wait_for(speak(models.handed, PLAN, with_deadline(0.05)), 30))
    check_given_up(models)


def test_a_stream_does_not_wait_for_the_vocoder_past_its_deadline(no_grace, monkeypatch):
    models, caller = Stuck([]), Caller()
    monkeypatch.setattr(sys.modules[__name__], "PREPARED", with_deadline(0.05))
    with pytest.raises(DeadlineExceededError):
        run_stream(models, caller)
    check_given_up(models)
    assert caller.chunks == []


def test_a_deadline_that_is_kept_changes_nothing():
    models = Models(SPOKEN)
    outputs = asyncio.run(speak(models.handed, PLAN, with_deadline(60)))
    assert outputs["audio"].tolist() == AUDIO


@pytest.mark.parametrize(
    "generation", ["", "[]", "{}", '{"deadline_ns": "soon"}', '{"deadline_ns": 1%s}' % ("0" * 400)]
)
def test_what_is_no_generation_is_refused(generation):
    with pytest.raises(InvalidInputError, match="'generation'"):
        asyncio.run(speak(Models([]).handed, PLAN, PREPARED | {"generation": generation}))


def test_further_sentences_wait_until_the_request_is_open():
    """The call that extends a request would overtake the one that opens it, and be lost."""

    async def go():
        models, opens = Models(SPOKEN), asyncio.Event()
        calls = []

        async def call(model, inputs, outputs):
            calls.append(inputs)
            if "generation" in inputs:
                await opens.wait()
            return (
                {"chunk": "", "ready": inputs["stream_id"]}
                if "more" in inputs
                else await models.call(model, inputs, outputs)
            )

        one = SpeechSession(session.Models(call, Reader(call)), PLAN, PREPARED)
        extending = asyncio.create_task(one.extend("{}"))
        hearing = asyncio.create_task(anext(one.chunks()))
        for _ in range(20):
            await asyncio.sleep(0)
        before = [inputs for inputs in calls if "more" in inputs]
        opens.set()
        await asyncio.gather(extending, hearing)
        return before, [inputs["more"] for inputs in calls if "more" in inputs]

    assert asyncio.run(go()) == ([], ["{}"])
