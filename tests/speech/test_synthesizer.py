"""Requests through the real engine on a small random model; only the text side is a stand-in."""

import queue
import threading
import time

import numpy as np
import pytest

from chattts_serving.audio import HELD_TOKENS, SAMPLE_RATE, SAMPLES_PER_TOKEN, num_samples
from chattts_serving.engine.sequence import Kind
from chattts_serving.errors import (
    CancelledError,
    ConfigError,
    DeadlineExceededError,
    EngineError,
    InvalidInputError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from chattts_serving.launcher.draining import Drain
from chattts_serving.request import GenerationRequest, Manner, SamplingOptions
from chattts_serving.speech import open_request, pacing
from chattts_serving.speech import synthesizer as synthesis
from chattts_serving.speech.admission import Room
from chattts_serving.speech.observer import Load
from chattts_serving.speech.open_request import OpenRequest
from chattts_serving.speech.opening import Opening, Part
from chattts_serving.speech.synthesizer import Synthesizer
from chattts_serving.speech.windows import ANEW_TOKENS, ReadingPlan
from chattts_serving.variables import DRAIN_FILE
from tests.engine.models import CONFIG, random_engine

SPEAKER = np.linspace(-1, 1, CONFIG.hidden_size, dtype=np.float32)
WHOLE = ReadingPlan((512,), 512, sentences_ahead=16)  # a sentence is one chunk
PAUSE = 6_400  # samples


class Prompts:
    """Refined tokens are their own text, and a text's tokens its prompt."""

    def refined_text(self, ids):
        return " ".join(str(token) for token in ids if token < CONFIG.break_0_id)

    def code_prompt(self, text, prompt, sample_text, *, has_speaker):
        return (CONFIG.spk_emb_id if has_speaker else 2, *map(int, text.split()))


def make_synthesizer(engine, prompts=None, **settings):
    defaults = {
        "max_requests": 8,
        "max_batch_requests": 4,
        "max_sentences_at_once": 2,
        "max_sequences": 64,
        "lease_s": 30.0,
    }
    return Synthesizer(lambda: engine, prompts or Prompts(), **defaults | settings)


@pytest.fixture(params=[0, 1], ids=["read at once", "read one step behind"])
def engine(request):
    return random_engine(steps_ahead=request.param)


@pytest.fixture
def synthesizer(engine):
    synthesizer = make_synthesizer(engine)
    yield synthesizer
    synthesizer.close()


def request(
    prompts=((5, 6),),
    refine=False,
    refine_only=False,
    seed=1,
    deadline_ns=None,
    priority="interactive",
    fewest_tokens=0,
    most_tokens=2_048,
    redraw_long=False,
    sample_codes=(),
    manners=(),
    turns=(),
    **sampling,
):
    options = {"max_new_tokens": 20, "refine_max_new_tokens": 10} | sampling
    return GenerationRequest(
        prompts=prompts,
        texts=tuple(" ".join(map(str, prompt)) for prompt in prompts),
        pauses=(0, *(PAUSE,) * (len(prompts) - 1), 0) if prompts else (0,),
        fewest_tokens=(fewest_tokens,) * len(prompts),
        most_tokens=(most_tokens,) * len(prompts),
        redraw_long=redraw_long,
        refine=refine or refine_only,
        refine_only=refine_only,
        prompt="",
        sample_text="",
        sample_codes=sample_codes,
        has_speaker=True,
        seed=seed,
        deadline_ns=deadline_ns,
        priority=priority,
        sampling=SamplingOptions(**options),
        manners=manners,
        turn_manners=tuple(range(len(manners))),
        turns=turns,
    )


def manner(voice, name, **sampling):
    options = {"max_new_tokens": 20, "refine_max_new_tokens": 10} | sampling
    return Manner("", "", (), True, SamplingOptions(**options), voice, name)


class Stream:
    """One request, opened; `next()` waits for the answer of the read that was started last."""

    counter = 0

    def __init__(self, synthesizer, one, plan=WHOLE, speaker=SPEAKER):
        Stream.counter += 1
        self.name = f"stream {Stream.counter}"
        self.synthesizer = synthesizer
        self.replies = queue.Queue()
        synthesizer.open(self.name, Opening(one, speaker, plan), self.replies.put)

    def next(self):
        return self.replies.get(timeout=30)

    def read(self):
        self.synthesizer.read(self.name, self.replies.put)
        return self.next()

    def rest(self):
        """Every part from the first one on; an error ends it."""
        parts = [self.next()]
        while isinstance(parts[-1], Part) and not parts[-1].chunk.is_final:
            parts.append(self.read())
        return parts


def answer(synthesizer, one, plan=WHOLE, speaker=SPEAKER):
    """All parts of `one`; of a request that fails, the error."""
    parts = Stream(synthesizer, one, plan, speaker).rest()
    return parts if isinstance(parts[-1], Part) else parts[-1]


def cancel(synthesizer, name):
    """Cancel, and wait until that is done."""
    done = threading.Event()
    synthesizer.cancel(name, done.set)
    assert done.wait(timeout=30)


def ends_of(parts):
    """The last hidden states of each chunk's window, by the number of codes up to the chunk's end."""
    places = np.cumsum([len(part.codes) for part in parts])
    return {
        int(place): part.hidden[: int(part.mask.sum())][:-HELD_TOKENS][-4:]
        for place, part in zip(places, parts, strict=True)
    }


def codes(parts):
    return [tuple(code) for part in parts for code in part.codes.tolist()]


def endless(seed=1, **values):
    return request(seed=seed, min_new_tokens=120, max_new_tokens=120, **values)


def is_answered(outcome):
    return isinstance(outcome, Part)


def is_at_rest(engine):
    return (engine.num_running, engine.num_waiting, engine.num_free_cache_tokens) == (0, 0, 1_000)


def test_an_engine_that_cannot_be_made_is_an_error_at_once():
    def fail():
        raise ConfigError("planted")

    with pytest.raises(ConfigError, match="planted"):
        Synthesizer(
            fail, Prompts(), max_requests=8, max_batch_requests=8, max_sentences_at_once=2, max_sequences=4, lease_s=1.0
        )


def test_sentences_are_read_in_order_with_their_codes_and_hidden_states(synthesizer):
    parts = answer(synthesizer, request(prompts=((5, 6), (7,), (8, 9, 10))))
    assert [part.chunk.texts for part in parts] == [("5 6",), ("7",), ("8 9 10",)]
    assert [part.chunk.is_final for part in parts] == [False, False, True]
    for part in parts:
        assert part.hidden.dtype == np.float32
        assert part.hidden.shape[1:] == (CONFIG.hidden_size,)
        assert part.mask.sum() == len(part.codes)
        assert part.chunk.num_tokens == len(part.codes)
        assert all(len(code) == CONFIG.num_codebooks for code in part.codes)


def test_each_sentence_says_where_it_lies_and_why_it_ended(synthesizer):
    parts = answer(synthesizer, request(prompts=((5, 6), (7,), (8, 9, 10)), max_new_tokens=20, temperature=1.0))
    start = 0
    for part in parts:
        (sentence,) = part.chunk.sentences
        samples = num_samples(len(part.codes))
        assert part.chunk.num_samples == samples
        assert sentence.start == start / SAMPLE_RATE
        assert sentence.end == (start + samples) / SAMPLE_RATE
        assert sentence.num_tokens == len(part.codes)
        assert sentence.finish_reason == ("length" if len(part.codes) == 20 else "stop")
        assert part.chunk.pause_samples == (0 if part.chunk.is_final else PAUSE)
        start += samples + part.chunk.pause_samples


@pytest.mark.parametrize("refine", [False, True])
def test_each_turn_is_spoken_in_its_own_voice_and_manner(synthesizer, refine):
    """As if the whole request were, since a draw depends on the place of its sentence alone."""
    voices = [SPEAKER, -SPEAKER]
    prompts = ((CONFIG.spk_emb_id, 5), (CONFIG.spk_emb_id, 7), (CONFIG.spk_emb_id, 9))
    manners = manner(1, "Anna", temperature=2.0), manner(0, "Bert", temperature=0.1)
    several = request(prompts=prompts, refine=refine, manners=manners, turns=(0, 1, 1))
    spoken = answer(synthesizer, several, speaker=np.concatenate(voices))
    alone = [
        answer(synthesizer, request(prompts=prompts, refine=refine, temperature=temperature), speaker=voices[voice])
        for voice, temperature in ((1, 2.0), (0, 0.1))
    ]
    assert [codes([part]) for part in spoken] == [codes([alone[turn][place]]) for place, turn in enumerate((0, 1, 1))]
    assert codes(spoken[1:]) != codes(alone[0][1:])
    sentences = [sentence for part in spoken for sentence in part.chunk.sentences]
    assert [(sentence.turn, sentence.name) for sentence in sentences] == [(0, "Anna"), (1, "Bert"), (1, "Bert")]


@pytest.mark.parametrize("refine", [False, True])
def test_chunks_of_a_sentence_join_to_the_whole(synthesizer, refine):
    one = request(refine=refine, min_new_tokens=90, max_new_tokens=90)
    (whole,) = answer(synthesizer, one)
    parts = answer(synthesizer, one, ReadingPlan((3, 5), 9, lookahead_tokens=(4,), sentences_ahead=1))
    assert codes(parts) == codes([whole])
    assert len(parts) >= 10
    first = start = 0
    assert {part.chunk.keeps_state for part in parts} == {True, False}
    for part in parts:
        num_hidden = int(part.mask.sum()) - (0 if part.chunk.is_final else HELD_TOKENS)
        assert part.chunk.first_sample == (first - (start - 52 if start else 0)) * SAMPLES_PER_TOKEN
        np.testing.assert_allclose(part.hidden[:num_hidden], whole.hidden[start : start + num_hidden], atol=1e-5)
        assert part.chunk.keeps_state == (start + num_hidden >= ANEW_TOKENS and not part.chunk.is_final)
        first, start = first + part.chunk.num_tokens, start + num_hidden if part.chunk.keeps_state else 0
    assert sum(part.chunk.num_samples for part in parts) == whole.chunk.num_samples
    assert [part.chunk.texts for part in parts] == [whole.chunk.texts] + [()] * (len(parts) - 1)
    assert [part.chunk.sentences for part in parts] == [()] * (len(parts) - 1) + [whole.chunk.sentences]


def test_the_first_chunk_comes_before_the_sentence_ends(synthesizer, engine):
    stream = Stream(synthesizer, endless(), ReadingPlan((3,), 9, lookahead_tokens=(4,)))
    first = stream.next()
    assert not first.chunk.is_final
    assert engine.num_running == 1
    cancel(synthesizer, stream.name)


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_chunks_are_read_out_of_a_cache_that_was_lost_and_computed_again(monkeypatch, steps_ahead):
    """Two long sentences in a cache for one and a half: the younger is preempted while it is read."""
    monkeypatch.setattr("chattts_serving.engine.scheduler.MIN_SLOT_GROWTH", 8)
    engine = random_engine(cache_tokens=180, steps_ahead=steps_ahead)
    synthesizer = make_synthesizer(engine)
    plan = ReadingPlan((3,), 9, lookahead_tokens=(4,))
    try:
        alone = [answer(synthesizer, endless(seed), plan) for seed in (1, 2)]
        preempted = []
        preempt = engine._scheduler._preempt
        monkeypatch.setattr(engine._scheduler, "_preempt", lambda sequence: (preempted.append(1), preempt(sequence)))
        both_are_open = threading.Event()
        synthesizer.cancel("nobody", lambda: both_are_open.wait(30))  # holds the engine's thread
        streams = [Stream(synthesizer, endless(seed), plan) for seed in (1, 2)]
        both_are_open.set()
        together = [stream.rest() for stream in streams]
        assert preempted
        for first, second in zip(alone, together, strict=True):
            assert codes(first) == codes(second)
            ends = [ends_of(parts) for parts in (first, second)]
            for place in ends[0].keys() & ends[1].keys():  # where chunks end depends on how quickly they were read
                np.testing.assert_allclose(ends[0][place], ends[1][place], atol=1e-4)
    finally:
        synthesizer.close()


def test_a_sentence_is_refined_before_it_is_spoken(synthesizer):
    (refined,) = answer(synthesizer, request(refine=True))
    (text,) = refined.chunk.texts
    assert text != "5 6"
    prompt = Prompts().code_prompt(text, "", "", has_speaker=True)
    (spoken,) = answer(synthesizer, request(prompts=(prompt,)))
    # The audio pass draws from the same stream with and without a refining pass before it.
    np.testing.assert_allclose(refined.hidden, spoken.hidden, atol=1e-5)


def test_refined_text_alone_is_that_of_the_spoken_request_and_has_no_audio(synthesizer, engine):
    prompts = tuple((5, place) for place in range(5, 12))
    spoken = answer(synthesizer, request(prompts=prompts, refine=True))
    (part,) = answer(synthesizer, request(prompts=prompts, refine_only=True))
    assert part.chunk.texts == tuple(text for one in spoken for text in one.chunk.texts)
    assert part.chunk.is_final
    assert (part.hidden, codes([part]), part.chunk.num_samples) == (None, [], 0)
    assert is_at_rest(engine)


def test_concurrent_requests_get_what_each_gets_alone(synthesizer):
    requests = [request(refine=seed % 2 == 0, seed=seed) for seed in range(8)]
    alone = [answer(synthesizer, one) for one in requests]
    together = [stream.rest() for stream in [Stream(synthesizer, one) for one in requests]]
    for (first,), (second,) in zip(alone, together, strict=True):
        assert first.chunk == second.chunk
        assert codes([first]) == codes([second])
        np.testing.assert_allclose(first.hidden, second.hidden, atol=1e-5)


def test_sentences_of_one_request_draw_different_numbers(synthesizer):
    first, second = answer(synthesizer, request(prompts=((5, 6), (5, 6)), temperature=1.0))
    assert codes([first]) != codes([second])


def reasons(parts):
    return [sentence.finish_reason for part in parts for sentence in part.chunk.sentences]


def test_a_sentence_that_ends_too_early_is_drawn_again_with_numbers_of_its_seed(synthesizer, engine):
    seeds, fewest = range(40), 6
    plain = {seed: answer(synthesizer, request(seed=seed)) for seed in seeds}
    early = {seed for seed in seeds if len(codes(plain[seed])) < fewest}
    assert early
    assert early != set(seeds)
    again = {seed: answer(synthesizer, request(seed=seed, fewest_tokens=fewest)) for seed in seeds}
    for seed in seeds:
        repeated = answer(synthesizer, request(seed=seed, fewest_tokens=fewest))
        if isinstance(again[seed], Exception):
            assert str(repeated) == str(again[seed])
        else:
            assert codes(repeated) == codes(again[seed])
            assert len(codes(again[seed])) >= fewest
            assert (codes(again[seed]) == codes(plain[seed])) == (seed not in early)
    assert any(not isinstance(again[seed], Exception) for seed in early)
    assert is_at_rest(engine)


@pytest.mark.parametrize("number", [1, 3])
def test_each_draw_of_a_sentence_has_other_numbers(synthesizer, monkeypatch, number):
    monkeypatch.setattr(open_request, "MAX_DRAWS", number)
    drawn = []
    make = OpenRequest.take_finished

    def take_finished(self, place, finished):
        drawn.append((finished.sequence.params.stream, tuple(finished.sequence.tokens)))
        return make(self, place, finished)

    monkeypatch.setattr(OpenRequest, "take_finished", take_finished)
    seed = next(seed for seed in range(40) if reasons(answer(synthesizer, request(seed=seed))) == ["stop"])
    drawn.clear()
    outcome = answer(synthesizer, request(seed=seed, fewest_tokens=2_048, max_new_tokens=100))
    assert isinstance(outcome, EngineError)
    assert f"{number} times; another seed or speaker may say it" in str(outcome)
    assert [stream for stream, _ in drawn] == [1 + draw * 2**16 for draw in range(number)]
    assert len({tokens for _, tokens in drawn}) == number


def test_a_recording_that_the_model_cannot_speak_like_is_the_callers_to_change(synthesizer, engine):
    neighbour = answer(synthesizer, request(seed=3))
    cloned = request(fewest_tokens=2_048, max_new_tokens=100, sample_codes=((1, 2, 3, 4),) * 5)
    asked = Stream(synthesizer, cloned)
    assert codes(answer(synthesizer, request(seed=3))) == codes(neighbour)
    (outcome,) = asked.rest()
    assert isinstance(outcome, InvalidInputError)
    assert outcome.name == "speaker_sample"
    assert is_at_rest(engine)


def test_a_sentence_that_its_limit_cuts_is_no_early_end(synthesizer):
    parts = answer(synthesizer, request(max_new_tokens=3, min_new_tokens=3, fewest_tokens=8))
    assert (len(codes(parts)), reasons(parts)) == (3, ["length"])


def test_a_sentence_that_goes_on_and_on_is_drawn_again_where_asked_for(synthesizer, engine):
    seeds, most = range(40), 6
    plain = {seed: answer(synthesizer, request(seed=seed)) for seed in seeds}
    late = {seed for seed in seeds if len(codes(plain[seed])) > most}
    assert late
    assert late != set(seeds)
    asked = {seed: answer(synthesizer, request(seed=seed, most_tokens=most, redraw_long=True)) for seed in seeds}
    for seed in seeds:
        assert (codes(asked[seed]) == codes(plain[seed])) == (seed not in late)
        assert len(codes(asked[seed])) <= most
        repeated = answer(synthesizer, request(seed=seed, most_tokens=most, redraw_long=True))
        assert codes(repeated) == codes(asked[seed])
    assert any(reasons(asked[seed]) == ["stop"] for seed in late)
    assert is_at_rest(engine)


def test_nothing_is_heard_of_a_sentence_that_may_be_drawn_again(synthesizer):
    plan = ReadingPlan((1,), 4)
    for seed in range(10):
        one = request(seed=seed, prompts=((5, 6), (7, 8)), most_tokens=6, redraw_long=True)
        streamed, whole = [answer(synthesizer, one, plan) for plan in (plan, WHOLE)]
        assert codes(streamed) == codes(whole)
        assert reasons(streamed) == reasons(whole)


@pytest.mark.parametrize("number", [1, 3])
def test_a_sentence_that_never_ends_is_cut_and_reported(synthesizer, monkeypatch, number):
    monkeypatch.setattr(open_request, "MAX_DRAWS", number)
    drawn = []
    make = OpenRequest.take_finished

    def take_finished(self, place, finished):
        drawn.append(finished.sequence.params.stream)
        return make(self, place, finished)

    monkeypatch.setattr(OpenRequest, "take_finished", take_finished)
    parts = answer(synthesizer, request(min_new_tokens=8, max_new_tokens=9, most_tokens=1, redraw_long=True))
    assert (len(codes(parts)), reasons(parts)) == (8, ["length"])
    assert drawn == [1 + draw * 2**16 for draw in range(number)]


def test_a_sentence_that_ends_long_after_it_can_have_been_said_is_reported(synthesizer):
    found = {
        seed: answer(synthesizer, request(seed=seed, most_tokens=6, min_new_tokens=5, max_new_tokens=30))
        for seed in range(40)
    }
    expected = {
        seed: "length" if len(codes(one)) == 30 else "late" if len(codes(one)) > 6 else "stop"
        for seed, one in found.items()
    }
    assert {seed: reasons(one) for seed, one in found.items()} == {seed: [reason] for seed, reason in expected.items()}
    assert {"late", "stop"} <= set(expected.values())


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_long_request_has_few_sentences_in_the_engine_at_once(synthesizer, engine, monkeypatch, ahead):
    most = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (most.append(engine.num_running + engine.num_waiting), step())[1])
    plan = ReadingPlan((512,), 512, sentences_ahead=ahead)
    parts = answer(synthesizer, request(prompts=tuple((5, place) for place in range(5, 25)), refine=True), plan)
    assert len(parts) == 20
    assert max(most) == ahead


def test_sentences_that_nobody_reads_are_not_spoken_ahead(synthesizer, engine):
    stream = Stream(synthesizer, request(prompts=tuple((5, place) for place in range(5, 25))))
    assert not stream.next().chunk.is_final
    while not engine.is_idle:
        time.sleep(0.01)
    (open_request,) = synthesizer._requests.values()
    assert len(open_request.waiting) == 20 - 1 - 2  # one was read, two are kept
    cancel(synthesizer, stream.name)


def test_open_requests_share_the_batch(engine, monkeypatch):
    synthesizer = make_synthesizer(engine, max_sentences_at_once=16, max_sequences=8)
    long_text = tuple((5, place) for place in range(5, 45))
    others = [Stream(synthesizer, request(prompts=long_text, seed=seed)) for seed in range(4)]
    try:
        for stream in others:
            stream.next()
        held = [one.num_ahead for one in list(synthesizer._requests.values())]
        assert held[-1] <= 2  # the last one found three others
    finally:
        synthesizer.close()


def test_a_request_that_speaks_too_long_is_refused(synthesizer, engine, monkeypatch):
    monkeypatch.setattr("chattts_serving.speech.open_request.MAX_REQUEST_TOKENS", 50)
    failed = answer(synthesizer, request(prompts=((5, 6),) * 10, min_new_tokens=20))
    assert isinstance(failed, InvalidInputError)
    assert "50 audio tokens" in str(failed)
    assert is_at_rest(engine)


def test_past_its_bound_requests_are_refused_at_once(synthesizer, engine):
    streams = [Stream(synthesizer, endless(seed)) for seed in range(8)]
    with pytest.raises(OverloadedError, match="8 requests are open"):
        Stream(synthesizer, request())
    assert all(is_answered(stream.rest()[-1]) for stream in streams)
    assert answer(synthesizer, request())


def test_a_name_is_taken_until_its_request_ends(synthesizer):
    stream = Stream(synthesizer, endless())
    replies = queue.Queue()
    synthesizer.open(stream.name, Opening(request(), SPEAKER, WHOLE), replies.put)
    assert "'stream_id'" in str(replies.get(timeout=30))
    assert is_answered(stream.next())
    synthesizer.open(stream.name, Opening(request(), SPEAKER, WHOLE), replies.put)
    assert is_answered(replies.get(timeout=30))
    assert not synthesizer._arrivals.room.num_open


def test_a_read_of_no_open_request_is_refused_by_name(synthesizer):
    stream = Stream(synthesizer, request())
    assert stream.next().chunk.is_final
    assert "'stream_id'" in str(stream.read())


def test_a_second_read_at_once_is_refused_and_the_first_answered(synthesizer):
    stream = Stream(synthesizer, endless())
    second = queue.Queue()
    synthesizer.read(stream.name, second.put)
    assert "not being read" in str(second.get(timeout=30))
    assert is_answered(stream.next())


@pytest.mark.parametrize("reading", [False, True], ids=["between reads", "in a read"])
def test_a_cancelled_request_leaves_the_engine_and_its_neighbour_alone(synthesizer, engine, reading):
    (expected,) = answer(synthesizer, endless(seed=2))
    plan = ReadingPlan((3,), 3, lookahead_tokens=(1,))
    stream, neighbour = Stream(synthesizer, endless(), plan), Stream(synthesizer, endless(seed=2))
    assert is_answered(stream.next())
    if reading:
        synthesizer.read(stream.name, stream.replies.put)
    cancel(synthesizer, stream.name)
    if reading:
        outcomes = [stream.next()]
        assert isinstance(outcomes[-1], (CancelledError, Part))
    assert "'stream_id'" in str(stream.read())
    assert codes([neighbour.next()]) == codes([expected])
    assert is_at_rest(engine)


def test_cancelling_what_is_not_open_does_nothing(synthesizer):
    cancel(synthesizer, "nobody")
    assert answer(synthesizer, request())


def test_a_request_that_nobody_reads_is_given_up_after_its_lease(engine):
    synthesizer = make_synthesizer(engine, lease_s=0.2)
    try:
        stream = Stream(synthesizer, request(prompts=((5,), (6,), (7,))))
        assert is_answered(stream.next())
        give_up = time.monotonic() + 30
        while synthesizer._arrivals.room.num_open:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert "lease" in str(stream.read())
        assert is_at_rest(engine)
    finally:
        synthesizer.close()


def test_a_lease_does_not_end_while_a_read_waits(engine, monkeypatch):
    synthesizer = make_synthesizer(engine, lease_s=0.05)
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (time.sleep(0.005), step())[1])
    try:
        assert answer(synthesizer, endless())[-1].chunk.is_final
    finally:
        synthesizer.close()


def test_a_passed_deadline_is_answered_and_frees_the_engine(synthesizer, engine):
    late = answer(synthesizer, request(deadline_ns=time.monotonic_ns() - 1, min_new_tokens=100, max_new_tokens=100))
    assert isinstance(late, DeadlineExceededError)
    assert answer(synthesizer, request())
    assert is_at_rest(engine)


def test_a_deadline_that_passes_between_reads_answers_the_next_one(synthesizer, engine):
    deadline_ns = time.monotonic_ns() + 200_000_000
    one = request(prompts=((5,), (6,)), deadline_ns=deadline_ns)
    stream = Stream(synthesizer, one)
    if is_answered(stream.next()):
        time.sleep(max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9) + 0.1)
        assert isinstance(stream.read(), DeadlineExceededError)
    assert is_at_rest(engine)
    assert not synthesizer._arrivals.room.num_open


def test_a_sentence_too_long_for_the_model_fails_its_request_alone(synthesizer, engine):
    neighbour = Stream(synthesizer, endless())
    failed = answer(synthesizer, request(prompts=((5,), (6,) * 200, (7,))))
    assert isinstance(failed, InvalidInputError)
    assert is_answered(neighbour.next())
    assert is_at_rest(engine)


def test_a_failed_step_answers_every_request_and_the_next_one_works(synthesizer, engine, monkeypatch):
    arrived = threading.Event()

    def fail():
        arrived.wait(30)
        monkeypatch.undo()
        raise RuntimeError("planted")

    monkeypatch.setattr(engine, "step", fail)
    streams = [Stream(synthesizer, endless(seed)) for seed in range(3)]
    arrived.set()
    assert isinstance(streams[0].next(), EngineError)
    for stream in streams[1:]:
        stream.next()
    assert answer(synthesizer, request())
    assert is_at_rest(engine)


def test_steps_that_go_on_failing_end_the_process(engine, monkeypatch):
    """Its requests are answered first; steps between that work start the count anew."""
    monkeypatch.setattr(synthesis, "LAST_WORDS_S", 0.0)
    abandoned = threading.Event()
    synthesizer = make_synthesizer(engine, abandon=abandoned.set)
    step, broken = engine.step, threading.Event()

    def fail_if_broken():
        if broken.is_set():
            raise RuntimeError("planted")
        return step()

    monkeypatch.setattr(engine, "step", fail_if_broken)
    for number in (1, 2, 1, 2, 3):
        if number == 1:
            broken.clear()
            assert is_answered(answer(synthesizer, request())[-1])
            broken.set()
        assert isinstance(answer(synthesizer, request()), EngineError)
        if number < 3:
            assert not abandoned.is_set()
    assert abandoned.wait(30)
    synthesizer.close()


def test_a_request_whose_logits_are_no_numbers_fails_alone(synthesizer):
    neighbour = Stream(synthesizer, endless())
    poisoned = queue.Queue()
    nothing = np.full_like(SPEAKER, np.nan)
    one = request(prompts=((CONFIG.spk_emb_id, 5), (6,)))
    synthesizer.open("poisoned", Opening(one, nothing, WHOLE), poisoned.put)
    failed = poisoned.get(timeout=30)
    assert isinstance(failed, EngineError)
    assert str(failed) == "sentence 1 failed: the model's logits are not finite"
    assert is_answered(neighbour.next())
    assert not synthesizer._arrivals.room.num_open


def test_batch_requests_leave_room_for_interactive_ones(synthesizer):
    """Four of eight may be of the batch."""
    batch = [Stream(synthesizer, endless(priority="batch")) for _ in range(4)]
    with pytest.raises(OverloadedError, match="overloaded: 4 requests of priority 'batch' are open"):
        Stream(synthesizer, request(priority="batch"))
    interactive = [Stream(synthesizer, endless()) for _ in range(4)]
    with pytest.raises(OverloadedError, match="overloaded: 8 requests are open, of 8 allowed"):
        Stream(synthesizer, request())
    assert synthesizer._arrivals.room == Room(8, 4, 8, 4, num_arrived=10)
    assert all(is_answered(stream.next()) for stream in [*batch, *interactive])
    assert is_answered(answer(synthesizer, request(priority="batch"))[-1])


@pytest.mark.parametrize("steps_ahead", [0, 1])
def test_interactive_requests_overtake_the_batch(steps_ahead):
    """A batch of two is full with two long texts; those that come later are through before either of them."""
    engine = random_engine(max_sequences=2, steps_ahead=steps_ahead)
    synthesizer = make_synthesizer(engine, max_sequences=2)
    alone = [codes(answer(synthesizer, endless(seed))) for seed in (1, 2)]
    order, replies = [], {name: queue.Queue() for name in ("batch 1", "batch 2", "interactive 1", "interactive 2")}
    for seed, (name, reply) in enumerate(replies.items(), start=1):
        one = endless(seed, priority=name.split()[0])
        synthesizer.open(
            name, Opening(one, SPEAKER, WHOLE), lambda part, n=name, put=reply.put: (order.append(n), put(part))
        )
    parts = {name: reply.get(timeout=30) for name, reply in replies.items()}
    assert sorted(order[:2]) == ["interactive 1", "interactive 2"]
    assert [codes([parts[f"batch {number}"]]) for number in (1, 2)] == alone
    synthesizer.close()


def test_a_server_that_is_about_to_end_opens_nothing_and_ends_the_rest_in_time(synthesizer, tmp_path, monkeypatch):
    drain = Drain(tmp_path / "drain", 3_600.0, ("127.0.0.1", 1))
    monkeypatch.setenv(DRAIN_FILE, str(drain.file))
    plan = ReadingPlan((3,), 9, lookahead_tokens=(4,))
    short, long = Stream(synthesizer, endless(), plan), Stream(synthesizer, endless(), plan)
    assert is_answered(short.next())
    assert is_answered(long.next())
    drain.begin()
    with pytest.raises(ShuttingDownError):
        Stream(synthesizer, request())
    parts = [short.read()]
    while not parts[-1].chunk.is_final:
        parts.append(short.read())
    drain.limit_s = 0.0
    drain.begin()
    time.sleep(5 * synthesis.LOOK_S)
    assert isinstance(long.read(), ShuttingDownError)


def test_no_step_is_taken_while_a_first_sound_is_made(engine, monkeypatch):
    monkeypatch.setattr(pacing, "FIRST_SOUND_S", 60.0)
    synthesizer = make_synthesizer(engine, waits_for_sound=True)
    plan = ReadingPlan((2,), 512, lookahead_tokens=(1,), live=True)
    one = Stream(synthesizer, request(min_new_tokens=100, max_new_tokens=100), plan)
    assert is_answered(one.next())
    seen = set()
    for _ in range(20):  # calls reach the thread that waits
        done = threading.Event()
        synthesizer.cancel("nobody", done.set)
        assert done.wait(30)
        seen.add(engine.num_steps_read)
    assert len(seen) == 1
    assert is_answered(one.read())
    assert engine.num_steps_read > max(seen)
    waiting = Stream(synthesizer, request(min_new_tokens=100, max_new_tokens=100), plan)
    assert is_answered(waiting.next())
    synthesizer.cancel(waiting.name, lambda: None)  # nor for one that has gone
    assert is_answered(one.read())
    synthesizer.close()


def test_closing_answers_what_is_read_once_and_refuses_the_rest(engine):
    synthesizer = make_synthesizer(engine)
    streams = [Stream(synthesizer, endless(seed)) for seed in range(8)]
    synthesizer.close()
    outcomes = [stream.next() for stream in streams]
    assert all(isinstance(outcome, (ShuttingDownError, Part)) for outcome in outcomes)
    assert isinstance(outcomes[-1], ShuttingDownError)
    assert all(stream.replies.empty() for stream in streams)
    with pytest.raises(ShuttingDownError):
        Stream(synthesizer, request())
    with pytest.raises(ShuttingDownError):
        streams[0].read()
    with pytest.raises(ShuttingDownError):
        cancel(synthesizer, streams[0].name)
    assert is_at_rest(engine)


class BrokenPrompts(Prompts):
    """Refines, and then has an error of the text side."""

    def __init__(self, error):
        self.error = error

    def code_prompt(self, text, prompt, sample_text, *, has_speaker):
        raise self.error


def test_two_sentences_that_fail_in_one_step_are_answered_once(engine):
    """The second one's request was gone already, which once ended the engine's thread."""
    synthesizer = make_synthesizer(engine, BrokenPrompts(InvalidInputError("text", "", "nothing at all")))
    stream = Stream(synthesizer, request(prompts=((5,), (6,)), refine=True, refine_max_new_tokens=1))
    assert isinstance(stream.next(), InvalidInputError)
    assert answer(synthesizer, request())
    assert stream.replies.empty()
    synthesizer.close()


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (InvalidInputError("text", "", "nothing at all"), InvalidInputError),
        (UnicodeEncodeError("utf-8", "x", 0, 1, "planted"), EngineError),
        (MemoryError(), EngineError),
    ],
)
def test_an_error_of_one_request_is_answered_and_harms_no_other(engine, error, answered):
    synthesizer = make_synthesizer(engine, BrokenPrompts(error))
    neighbour = Stream(synthesizer, endless())
    failed = answer(synthesizer, request(refine=True))
    assert isinstance(failed, ServingError)
    assert isinstance(failed, answered)
    assert is_answered(neighbour.next())
    synthesizer.close()


def test_a_reply_that_fails_harms_no_other(synthesizer):
    def fail(_):
        raise RuntimeError("planted")

    synthesizer.open("broken", Opening(request(), SPEAKER, WHOLE), fail)
    assert answer(synthesizer, request())


def test_the_first_part_of_a_traced_request_says_how_it_came_to_be(synthesizer):
    opened_ns, replies = time.time_ns(), queue.Queue()
    opening = Opening(request(min_new_tokens=20), SPEAKER, ReadingPlan((3,), 3, lookahead_tokens=(1,)), "whose it is")
    synthesizer.open("traced", opening, replies.put)
    parts = [replies.get(timeout=30)]
    while not parts[-1].chunk.is_final:
        synthesizer.read("traced", replies.put)
        parts.append(replies.get(timeout=30))
    first = parts[0].beginning
    assert first.traceparent == "whose it is"
    times = [opened_ns, first.came_ns, first.launched_ns, first.drawn_ns, first.ready_ns, time.time_ns()]
    assert times == sorted(times)
    assert first.launched_ns < first.drawn_ns < first.ready_ns
    assert {part.beginning for part in parts[1:]} == {None}  # there are some


def test_a_sentence_that_has_ended_says_so_too_and_one_that_nobody_traces_does_not(synthesizer):
    replies = queue.Queue()
    synthesizer.open("short", Opening(request(), SPEAKER, WHOLE, "whose it is"), replies.put)
    first = replies.get(timeout=30).beginning
    assert first.came_ns <= first.launched_ns < first.drawn_ns <= first.ready_ns
    assert {part.beginning for part in Stream(synthesizer, request()).rest()} == {None}


class Observer:
    """Remembers, or fails."""

    def __init__(self, fails=False):
        self.loads, self.steps, self.fails = [], [], fails

    def load(self, load):
        self._keep(self.loads, load)

    def step(self, step):
        self._keep(self.steps, step)

    def _keep(self, where, what):
        where.append(what)
        if self.fails:
            raise RuntimeError("planted")


@pytest.mark.parametrize("fails", [False, True], ids=["", "an observer that fails"])
def test_the_load_is_reported_and_goes_back_to_none(engine, fails):
    observer = Observer(fails)
    synthesizer = make_synthesizer(engine, observer=observer)
    assert answer(synthesizer, endless())
    synthesizer.close()
    busy = max(observer.loads, key=lambda load: load.cache_tokens_used)
    assert (busy.requests_open, busy.sequences_running, busy.sequences_waiting) == (1, 1, 0)
    assert busy.cache_tokens_used >= 2
    assert observer.loads[-1] == Load(cache_tokens=1_000)


def test_every_step_is_reported_with_its_batch_and_its_tokens(engine):
    observer = Observer()
    synthesizer = make_synthesizer(engine, observer=observer)
    parts = answer(synthesizer, request(prompts=((5,), (6,)), refine=True, temperature=1.0))
    synthesizer.close()
    generated = {kind: sum(step.num_generated[kind] for step in observer.steps) for kind in Kind}
    assert generated[Kind.AUDIO] == len(codes(parts))
    assert 2 <= generated[Kind.TEXT] <= 20
    assert max(step.num_sequences for step in observer.steps) == 2
    assert all(step.seconds > 0 for step in observer.steps)


LIVE = ReadingPlan((3,), 9, lookahead_tokens=(4,), live=True)


@pytest.fixture
def always_late(monkeypatch):
    """Every stream runs dry from its beginning, and whoever else there is rests for as long."""
    monkeypatch.setattr(pacing, "FIRST_S", -1_000.0)
    monkeypatch.setattr(pacing, "MOST_REST_S", 1_000.0)


def test_a_stream_that_runs_dry_goes_first_and_nothing_is_lost(always_late, synthesizer, engine):
    expected = codes(answer(synthesizer, request(prompts=((5, 6), (7, 8)), seed=3, min_new_tokens=20)))
    late = Stream(synthesizer, endless(), LIVE)
    assert is_answered(late.next())
    whole = Stream(synthesizer, request(prompts=((5, 6), (7, 8)), seed=3, min_new_tokens=20))
    while engine.num_resting < 2:
        time.sleep(0.01)
    assert whole.replies.empty()
    cancel(synthesizer, late.name)
    assert codes(whole.rest()) == expected
    assert is_at_rest(engine)


def test_one_that_runs_rests_as_well_and_can_be_cancelled(always_late, synthesizer, engine):
    whole = Stream(synthesizer, endless())
    late = Stream(synthesizer, endless(seed=2), LIVE)
    while not engine.num_resting:
        time.sleep(0.01)
    cancel(synthesizer, whole.name)
    assert isinstance(whole.next(), CancelledError)
    assert is_answered(late.next())
    cancel(synthesizer, late.name)
    assert is_at_rest(engine)


def test_a_whole_answer_comes_beside_a_stream_that_never_has_enough(monkeypatch, synthesizer, engine):
    monkeypatch.setattr(pacing, "FIRST_S", -1_000.0)
    monkeypatch.setattr(pacing, "MOST_REST_S", 0.05)
    late = Stream(synthesizer, endless(), LIVE)
    assert answer(synthesizer, endless(seed=2))[-1].chunk.is_final
    cancel(synthesizer, late.name)
    assert is_at_rest(engine)
