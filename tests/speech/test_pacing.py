"""Who rests, from what listeners have left to hear; times are those that the tests say."""

import time
from dataclasses import replace

import numpy as np
import pytest

from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.speech.open_request import OpenRequest
from chattts_serving.speech.opening import Opening
from chattts_serving.speech.pacing import (
    AHEAD_S,
    ENOUGH_S,
    FIRST_S,
    FIRST_SOUND_S,
    LEAST_WORK_S,
    LOOK_S,
    MOST_REST_S,
    SHORT_S,
    Pacing,
)
from chattts_serving.speech.windows import ReadingPlan
from tests.speech.test_synthesizer import request

START = 1_000.0
WHOLE = ReadingPlan((512,), 512)


def opened(plan=WHOLE, **values):
    one = OpenRequest("name", Opening(request(**values), np.zeros(4, np.float32), plan))
    one.text_since = START
    return one


def stream(left_s=None, now=START, chunk=1, **values):
    """A stream whose next chunk wants `chunk` tokens; of what was sent, `left_s` seconds are to be heard."""
    one = opened(ReadingPlan((chunk,), 512, lookahead_tokens=(1,), live=True), **values)
    if left_s is not None:
        one.heard_since, one.num_samples = now - 1.0, round((1.0 + left_s) * SAMPLE_RATE)
    return one


def rests(pacing, requests, now=START):
    """Those that rest after a look at `now`."""
    for started, ended in [pacing.changes(requests, now)]:
        for one in (*started, *ended):
            one.rests, one.rest_changed_at = one in started, now
    return [one for one in requests if one.rests]


def test_whole_answers_rest_while_a_stream_runs_dry():
    whole, dry = opened(), stream(left_s=SHORT_S / 2)
    pacing = Pacing()
    assert rests(pacing, [whole, dry]) == [whole]
    assert pacing.rests_from_now(opened())
    assert not pacing.rests_from_now(stream())


def test_they_go_on_once_it_has_enough():
    whole, dry = opened(), stream(left_s=SHORT_S / 2)
    pacing = Pacing()
    rests(pacing, [whole, dry])
    dry.num_samples += round((ENOUGH_S - 2 * SHORT_S) * SAMPLE_RATE)
    assert rests(pacing, [whole, dry], START + LOOK_S) == [whole]
    dry.num_samples += round(3 * SHORT_S * SAMPLE_RATE)
    assert rests(pacing, [whole, dry], START + 2 * LOOK_S) == []
    assert not pacing.rests_from_now(whole)


def test_nobody_rests_where_nobody_runs_dry():
    assert rests(Pacing(), [opened(), stream(left_s=2 * SHORT_S), stream()]) == []
    assert rests(Pacing(), [opened(), opened()]) == []


def test_streams_far_ahead_rest_and_those_near_go_on():
    far, near = stream(left_s=AHEAD_S + 0.1), stream(left_s=AHEAD_S - 0.1)
    assert rests(Pacing(), [far, near, stream(left_s=0.0)]) == [far]


def test_what_the_next_chunk_takes_counts():
    whole, dry = opened(), stream(left_s=1.0, chunk=40)
    pacing = Pacing()
    assert rests(pacing, [whole, dry]) == []
    for _ in range(100):
        pacing.took_step(0.02)  # 41 of them
    assert rests(pacing, [whole, dry], START + LOOK_S) == []
    pacing = Pacing()
    for _ in range(100):
        pacing.took_step(0.02)
        pacing.took_sound(dry, 0.1)
    assert rests(pacing, [whole, dry]) == [whole]


def test_a_stream_that_nobody_hears_yet_is_late_after_a_while():
    whole, new = opened(), stream()
    pacing = Pacing()
    assert rests(pacing, [whole, new], START + FIRST_S - SHORT_S - 0.01) == []
    assert rests(pacing, [whole, new], START + FIRST_S) == [whole]


@pytest.mark.parametrize("plan", [WHOLE, ReadingPlan((1,), 512, lookahead_tokens=(1,), live=True)])
def test_requests_of_the_batch_hold_nobody_up(plan):
    batch = opened(plan, priority="batch")
    assert rests(Pacing(), [opened(), batch], START + 60) == []
    assert rests(Pacing(), [batch, stream(left_s=0.0)]) == [batch]


def test_nobody_rests_for_long():
    """A fifth of the time is left even beside a stream that never has enough."""
    whole, dry = opened(), stream(left_s=-100.0)
    pacing = Pacing()
    times = np.arange(START, START + 10.0, LOOK_S)
    share = np.mean([whole in rests(pacing, [whole, dry], float(now)) for now in times])
    assert share == pytest.approx(MOST_REST_S / (MOST_REST_S + LEAST_WORK_S), abs=0.05)


def text_in_pieces(left_s):
    """A stream that has said all that is written, of which `left_s` seconds are to be heard."""
    one = stream(left_s, prompts=())
    one.opening = replace(one.opening, request=replace(one.request, goes_on=True))
    one.reply = print
    return one


def further(*prompts):
    return replace(request(prompts=prompts), goes_on=True, follows=True)


def test_nobody_rests_because_a_text_is_not_written():
    """Nor does the text, which would have to wait when it goes on."""
    whole, unwritten, dry = opened(), text_in_pieces(-60.0), stream(left_s=0.0)
    pacing = Pacing()
    assert rests(pacing, [whole, unwritten]) == []
    assert not pacing.rests_from_now(whole)
    assert rests(pacing, [whole, unwritten, dry], START + LOOK_S) == [whole]


def test_a_text_that_goes_on_is_as_a_new_stream(monkeypatch):
    whole, text = opened(), text_in_pieces(-60.0)
    monkeypatch.setattr(time, "monotonic", lambda: START)
    text.extend(further((5, 6)))
    assert rests(Pacing(), [whole, text], START + FIRST_S - SHORT_S - 0.01) == []
    assert rests(Pacing(), [whole, text], START + FIRST_S) == [whole]
    text.heard_since, text.num_samples = START + FIRST_S, text.num_samples + SAMPLE_RATE
    other = opened()
    assert rests(Pacing(), [other, text], START + FIRST_S + 1.0 - 2 * SHORT_S) == []
    assert rests(Pacing(), [other, text], START + FIRST_S + 1.0) == [other]


def test_a_text_that_goes_on_in_time_has_left_what_was_sent(monkeypatch):
    whole, text = opened(), text_in_pieces(2 * FIRST_S)
    monkeypatch.setattr(time, "monotonic", lambda: START)
    text.extend(further((5, 6)))
    assert rests(Pacing(), [whole, text], START + FIRST_S) == []
    assert rests(Pacing(), [whole, text], START + 2 * FIRST_S) == [whole]


def test_looks_are_apart():
    whole, dry = opened(), stream(left_s=10.0)
    pacing = Pacing()
    assert rests(pacing, [whole, dry]) == []
    dry.num_samples = 0
    assert rests(pacing, [whole, dry], START + LOOK_S / 2) == []
    assert rests(pacing, [whole, dry], START + LOOK_S) == [whole]


def test_the_engine_waits_for_first_sounds():
    first, second = stream(), stream()
    pacing = Pacing(waits_for_sound=True)
    assert pacing.waits_s(START) == 0
    pacing.begins_sound(first, START)
    pacing.begins_sound(second, START + FIRST_SOUND_S / 2)
    assert pacing.waits_s(START + FIRST_SOUND_S) == pytest.approx(FIRST_SOUND_S / 2)
    pacing.took_sound(second, 0.01)
    assert pacing.waits_s(START) == pytest.approx(FIRST_SOUND_S)
    assert pacing.waits_s(START + FIRST_SOUND_S) == 0  # whatever has become of it
    pacing.forget(first)
    assert pacing.waits_s(START) == 0


def test_a_stream_that_runs_dry_goes_before_first_sounds():
    pacing = Pacing(waits_for_sound=True)
    pacing.begins_sound(stream(), START)
    rests(pacing, [stream(left_s=SHORT_S / 2)])
    assert pacing.waits_s(START) == 0
    rests(pacing, [stream(left_s=1.0)], START + LOOK_S)
    assert pacing.waits_s(START) == pytest.approx(FIRST_SOUND_S)


@pytest.mark.parametrize("one", [opened(), stream(left_s=1.0), stream(priority="batch")])
def test_the_engine_waits_for_no_other_sound(one):
    pacing = Pacing(waits_for_sound=True)
    pacing.begins_sound(one, START)
    assert pacing.waits_s(START) == 0


def test_an_engine_with_a_device_of_its_own_waits_for_no_sound():
    pacing = Pacing()
    pacing.begins_sound(stream(), START)
    assert pacing.waits_s(START) == 0
