"""Requests through the real engine on a small random model; only the text side is a stand-in."""

import queue
import threading
import time

import numpy as np
import pytest

from chattts_serving.errors import (
    ConfigError,
    DeadlineExceededError,
    EngineError,
    InvalidInputError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from chattts_serving.request import GenerationRequest, SamplingOptions
from chattts_serving.synthesis import Synthesis, Synthesizer
from tests.engine.models import CONFIG, random_engine

SPEAKER = np.linspace(-1, 1, CONFIG.hidden_size, dtype=np.float32)


class Prompts:
    """Refined tokens are their own text, and a text's tokens its prompt."""

    def refined_text(self, ids):
        return " ".join(str(token) for token in ids if token < CONFIG.break_0_id)

    def code_prompt(self, text, prompt, sample_text, *, has_speaker):
        return (CONFIG.spk_emb_id if has_speaker else 2, *map(int, text.split()))


@pytest.fixture
def engine():
    return random_engine()


@pytest.fixture
def synthesizer(engine):
    synthesizer = Synthesizer(lambda: engine, Prompts(), max_requests=8, max_sentences_at_once=2)
    yield synthesizer
    synthesizer.close()


def request(prompts=((5, 6),), refine=False, seed=1, deadline_ns=None, **sampling):
    options = {"max_new_tokens": 20, "refine_max_new_tokens": 10} | sampling
    texts = tuple(" ".join(map(str, prompt)) for prompt in prompts)
    return GenerationRequest(prompts, texts, refine, "", "", (), True, seed, deadline_ns, SamplingOptions(**options))


def submit(synthesizer, one):
    """Queue `one`; a queue that gets every reply to it."""
    replies = queue.Queue()
    synthesizer.submit(one, SPEAKER, replies.put)
    return replies


def answer(synthesizer, one):
    return submit(synthesizer, one).get(timeout=30)


def endless(seed=1):
    return request(seed=seed, min_new_tokens=120, max_new_tokens=120)


def test_an_engine_that_cannot_be_made_is_an_error_at_once():
    def fail():
        raise ConfigError("planted")

    with pytest.raises(ConfigError, match="planted"):
        Synthesizer(fail, Prompts(), max_requests=8, max_sentences_at_once=2)


def test_every_sentence_has_its_hidden_states_in_order(synthesizer):
    result = answer(synthesizer, request(prompts=((5, 6), (7,), (8, 9, 10))))
    assert isinstance(result, Synthesis)
    assert result.refined_text == "5 6\n7\n8 9 10"
    assert len(result.sentences) == 3
    for sentence in result.sentences:
        assert sentence.hidden.dtype == np.float32
        assert sentence.codes.dtype == np.int32
        assert sentence.codes.shape == (len(sentence.hidden), CONFIG.num_codebooks)


def test_a_sentence_is_refined_before_it_is_spoken(synthesizer):
    refined = answer(synthesizer, request(refine=True))
    assert refined.refined_text != "5 6"
    prompt = Prompts().code_prompt(refined.refined_text, "", "", has_speaker=True)
    spoken = answer(synthesizer, request(prompts=(prompt,)))
    # The audio pass draws from the same stream with and without a refining pass before it.
    np.testing.assert_allclose(refined.sentences[0].hidden, spoken.sentences[0].hidden, atol=1e-5)


def test_concurrent_requests_get_what_each_gets_alone(synthesizer):
    requests = [request(refine=seed % 2 == 0, seed=seed) for seed in range(8)]
    alone = [answer(synthesizer, one) for one in requests]
    together = [replies.get(timeout=30) for replies in [submit(synthesizer, one) for one in requests]]
    for first, second in zip(alone, together, strict=True):
        assert first.refined_text == second.refined_text
        assert np.array_equal(first.sentences[0].codes, second.sentences[0].codes)
        np.testing.assert_allclose(first.sentences[0].hidden, second.sentences[0].hidden, atol=1e-5)


def test_sentences_of_one_request_draw_different_numbers(synthesizer):
    first, second = answer(synthesizer, request(prompts=((5, 6), (5, 6)), temperature=1.0)).sentences
    assert not np.array_equal(first.codes, second.codes)


def test_a_long_request_has_few_sentences_in_the_engine_at_once(synthesizer, engine, monkeypatch):
    most = []
    step = engine.step
    monkeypatch.setattr(engine, "step", lambda: (most.append(engine.num_running + engine.num_waiting), step())[1])
    result = answer(synthesizer, request(prompts=tuple((5, place) for place in range(5, 25)), refine=True))
    assert len(result.sentences) == 20
    assert max(most) == 2


def test_a_request_that_speaks_too_long_is_refused(synthesizer, engine, monkeypatch):
    monkeypatch.setattr("chattts_serving.synthesis.MAX_REQUEST_TOKENS", 50)
    failed = answer(synthesizer, request(prompts=((5, 6),) * 10, min_new_tokens=20))
    assert isinstance(failed, InvalidInputError)
    assert "50 audio tokens" in str(failed)
    assert engine.num_free_cache_tokens == 1_000


def test_past_its_bound_requests_are_refused_at_once(synthesizer, engine):
    replies = [submit(synthesizer, endless(seed)) for seed in range(8)]
    with pytest.raises(OverloadedError, match="8 requests are open"):
        submit(synthesizer, request())
    assert all(isinstance(one.get(timeout=60), Synthesis) for one in replies)
    assert isinstance(answer(synthesizer, request()), Synthesis)


def test_a_passed_deadline_is_answered_and_frees_the_engine(synthesizer, engine):
    late = submit(synthesizer, request(deadline_ns=time.monotonic_ns() - 1, min_new_tokens=100, max_new_tokens=100))
    assert isinstance(late.get(timeout=30), DeadlineExceededError)
    assert isinstance(answer(synthesizer, request()), Synthesis)
    assert (engine.num_running, engine.num_waiting, engine.num_free_cache_tokens) == (0, 0, 1_000)


def test_a_sentence_too_long_for_the_model_fails_its_request_alone(synthesizer, engine):
    neighbour = submit(synthesizer, endless())
    failed = answer(synthesizer, request(prompts=((5,), (6,) * 200, (7,))))
    assert isinstance(failed, InvalidInputError)
    assert isinstance(neighbour.get(timeout=30), Synthesis)
    assert engine.num_free_cache_tokens == 1_000


def test_a_failed_step_answers_every_request_and_the_next_one_works(synthesizer, engine, monkeypatch):
    arrived = threading.Event()

    def fail():
        arrived.wait(30)
        monkeypatch.undo()
        raise RuntimeError("planted")

    monkeypatch.setattr(engine, "step", fail)
    replies = [submit(synthesizer, endless(seed)) for seed in range(3)]
    arrived.set()
    outcomes = [one.get(timeout=30) for one in replies]
    assert isinstance(outcomes[0], EngineError)
    assert isinstance(answer(synthesizer, request()), Synthesis)
    assert engine.num_free_cache_tokens == 1_000


def test_closing_answers_what_is_open_once_and_refuses_the_rest(engine):
    synthesizer = Synthesizer(lambda: engine, Prompts(), max_requests=8, max_sentences_at_once=2)
    replies = [submit(synthesizer, endless(seed)) for seed in range(8)]
    synthesizer.close()
    outcomes = [one.get(timeout=30) for one in replies]
    assert all(isinstance(outcome, (ShuttingDownError, Synthesis)) for outcome in outcomes)
    assert isinstance(outcomes[-1], ShuttingDownError)
    assert all(one.empty() for one in replies)
    with pytest.raises(ShuttingDownError):
        submit(synthesizer, request())
    assert engine.num_free_cache_tokens == 1_000


def test_two_sentences_that_fail_in_one_step_are_answered_once(engine):
    """The second one's request was gone already, which once ended the engine's thread."""

    class Broken(Prompts):
        def code_prompt(self, text, prompt, sample_text, *, has_speaker):
            raise InvalidInputError("text", text, "nothing at all")

    synthesizer = Synthesizer(lambda: engine, Broken(), max_requests=8, max_sentences_at_once=2)
    replies = submit(synthesizer, request(prompts=((5,), (6,)), refine=True, refine_max_new_tokens=1))
    assert isinstance(replies.get(timeout=30), InvalidInputError)
    assert isinstance(answer(synthesizer, request()), Synthesis)
    assert replies.empty()
    synthesizer.close()


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "x", 0, 1, "planted"), MemoryError()])
def test_an_unforeseen_error_of_one_request_is_answered_and_harms_no_other(engine, error):
    class Broken(Prompts):
        def refined_text(self, ids):
            raise error

    synthesizer = Synthesizer(lambda: engine, Broken(), max_requests=8, max_sentences_at_once=2)
    neighbour = submit(synthesizer, endless())
    assert isinstance(answer(synthesizer, request(refine=True)), EngineError)
    assert isinstance(neighbour.get(timeout=30), Synthesis)
    synthesizer.close()


def test_a_reply_that_fails_harms_no_other(synthesizer):
    def fail(_):
        raise RuntimeError("planted")

    synthesizer.submit(request(), SPEAKER, fail)
    assert isinstance(answer(synthesizer, request()), Synthesis)


def test_an_error_of_the_text_side_fails_its_request_alone(engine):
    class Broken(Prompts):
        def code_prompt(self, text, prompt, sample_text, *, has_speaker):
            raise InvalidInputError("text", text, "nothing at all")

    synthesizer = Synthesizer(lambda: engine, Broken(), max_requests=8, max_sentences_at_once=2)
    neighbour = submit(synthesizer, endless())
    assert isinstance(answer(synthesizer, request(refine=True)), ServingError)
    assert isinstance(neighbour.get(timeout=30), Synthesis)
    synthesizer.close()
