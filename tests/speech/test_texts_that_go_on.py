"""Requests whose sentences come while they are spoken, through the real engine on a small random model."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from chattts_serving.errors import CancelledError, DeadlineExceededError, InvalidInputError
from chattts_serving.request import GenerationRequest
from tests.engine.models import random_engine
from tests.speech.test_synthesizer import (
    PAUSE,
    Stream,
    answer,
    cancel,
    codes,
    is_at_rest,
    make_synthesizer,
    manner,
    request,
)

PROMPTS = ((5, 6), (7,), (8, 9, 10), (5,))


@pytest.fixture
def engine():
    return random_engine(steps_ahead=1)


@pytest.fixture
def synthesizer(engine):
    made = make_synthesizer(engine)
    yield made
    made.close()


def begun(*places, **values):
    """The sentences of PROMPTS at `places`, of a text that goes on."""
    return replace(request(prompts=tuple(PROMPTS[place] for place in places), **values), goes_on=True)


def part(*places, goes_on=True, pause_before=None, **values):
    """Further ones; before them is the usual pause, or none before the end."""
    one = begun(*places, **values)
    pause_before = pause_before if pause_before is not None else PAUSE if places or goes_on else 0
    return replace(one, pauses=(pause_before, *one.pauses[1:]), goes_on=goes_on, follows=True)


def extend(synthesizer, stream, more):
    """Hand `more` over and wait until it is taken."""
    done = threading.Event()
    synthesizer.extend(stream.name, more, done.set)
    assert done.wait(timeout=30)


def heard(parts):
    """What a listener has of them: lengths of sound and silence, in order, without those of nothing."""
    lengths = [
        length
        for one in parts
        for length in (-one.chunk.lead_samples, one.chunk.num_samples, -one.chunk.pause_samples)
        if length
    ]
    return lengths, codes(parts), [sentence for one in parts for sentence in one.chunk.sentences]


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize(
    "places",
    [[(0, 1, 2, 3)], [(), (0, 1, 2, 3)], [(0,), (1,), (2,), (3,)], [(0, 1), (2, 3), ()], [(), (0,), (), (1, 2, 3), ()]],
)
def test_sentences_that_come_later_are_spoken_as_those_of_the_whole(synthesizer, places, refine):
    whole = answer(synthesizer, request(prompts=PROMPTS, refine=refine))
    stream = Stream(synthesizer, begun(*places[0], refine=refine))
    for number, some in enumerate(places[1:], 1):
        goes_on, pause_before = number < len(places) - 1, None if any(places[:number]) else 0
        extend(synthesizer, stream, part(*some, refine=refine, goes_on=goes_on, pause_before=pause_before))
    if len(places) == 1:
        extend(synthesizer, stream, part(goes_on=False))
    assert heard(stream.rest()) == heard(whole)


def test_a_sentence_is_heard_to_its_end_before_it_is_known_what_follows(synthesizer):
    whole = answer(synthesizer, request(prompts=PROMPTS[:2]))
    stream = Stream(synthesizer, begun(0))
    first = stream.next()
    assert first.chunk.sentences == whole[0].chunk.sentences
    assert (first.chunk.pause_samples, first.chunk.is_final) == (0, False)
    synthesizer.read(stream.name, stream.replies.put)
    extend(synthesizer, stream, part(1))
    second = stream.next()
    assert second.chunk.lead_samples == whole[0].chunk.pause_samples
    assert second.chunk.sentences == whole[1].chunk.sentences
    synthesizer.read(stream.name, stream.replies.put)
    extend(synthesizer, stream, part(goes_on=False))
    last = stream.next()
    assert (last.chunk.is_final, last.chunk.num_samples, last.chunk.sentences) == (True, 0, ())
    assert heard([first, second, last]) == heard(whole)


def test_the_pause_before_a_part_counts_and_not_the_one_that_was_foreseen(synthesizer):
    stream = Stream(synthesizer, replace(begun(0), pauses=(7, PAUSE)))
    extend(synthesizer, stream, part(pause_before=2 * PAUSE))
    extend(synthesizer, stream, part(1, goes_on=False, pause_before=3 * PAUSE))
    whole = replace(request(prompts=PROMPTS[:2]), pauses=(7, 3 * PAUSE, 0))
    assert heard(stream.rest()) == heard(answer(synthesizer, whole))


@pytest.mark.parametrize("is_read", [False, True])
def test_a_pause_at_the_end_is_heard_where_the_text_ends_after_its_last_sentence(synthesizer, is_read):
    whole = answer(synthesizer, replace(request(prompts=PROMPTS[:1]), pauses=(5 * PAUSE, 2 * PAUSE)))
    stream = Stream(synthesizer, replace(begun(), pauses=(3 * PAUSE,)))
    extend(synthesizer, stream, part(0, pause_before=5 * PAUSE))
    first = [stream.next()] if is_read else []
    if is_read:
        synthesizer.read(stream.name, stream.replies.put)
    extend(synthesizer, stream, part(goes_on=False, pause_before=2 * PAUSE))
    assert heard([*first, *stream.rest()]) == heard(whole)


def test_refined_text_alone_is_answered_when_the_text_has_ended(synthesizer):
    (whole,) = answer(synthesizer, request(prompts=PROMPTS, refine_only=True))
    stream = Stream(synthesizer, begun(0, 1, refine_only=True))
    extend(synthesizer, stream, part(2, 3, goes_on=False, refine_only=True))
    (found,) = stream.rest()
    assert found.chunk == whole.chunk


def test_one_that_waits_for_text_takes_nothing_of_the_engine_but_its_place(synthesizer, engine):
    stream = Stream(synthesizer, begun())
    extend(synthesizer, stream, part())
    assert is_at_rest(engine)
    assert stream.replies.empty()
    cancel(synthesizer, stream.name)
    assert isinstance(stream.next(), CancelledError)
    assert synthesizer._arrivals.room.num_open == 0


def test_the_deadline_holds_while_text_is_waited_for(synthesizer, engine):
    stream = Stream(synthesizer, begun(deadline_ns=time.monotonic_ns() + 10**8))
    assert isinstance(stream.next(), DeadlineExceededError)
    extend(synthesizer, stream, part(0))
    assert is_at_rest(engine)


def test_a_text_that_has_ended_takes_no_more(synthesizer):
    stream = Stream(synthesizer, begun())
    extend(synthesizer, stream, part(0, 1, 2, goes_on=False))
    extend(synthesizer, stream, part(3))
    assert isinstance(stream.rest()[-1], InvalidInputError)


@pytest.mark.parametrize(
    ("change", "is_right"),
    [
        ({"goes_on": True}, True),
        ({"follows": True}, True),
        ({}, False),
        ({"goes_on": 1}, False),
        ({"follows": 1}, False),
        ({"goes_on": True, "pauses": (-1,)}, False),
        ({"goes_on": True, "pauses": (0, 0)}, False),
        ({"goes_on": True, "manners": (manner(0, "Anna"),)}, False),
    ],
)
def test_only_a_part_of_a_text_may_have_no_sentence(change, is_right):
    written = replace(request(prompts=()), **change).to_json()
    if is_right:
        assert GenerationRequest.from_json(written).texts == ()
    else:
        with pytest.raises(InvalidInputError):
            GenerationRequest.from_json(written)
