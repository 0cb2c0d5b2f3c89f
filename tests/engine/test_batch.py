"""Who is in which lane and row, and what the steps drew for whom."""

import random
import time

import numpy as np
import pytest

from chattts_serving.engine.batch import Batch, StepLog
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence


def sequence(kind=Kind.AUDIO, max_new=100, **extra):
    return Sequence(kind, (5, 6, 7), SamplingParams(0.3, 0.7, 20, 1.05, 0, max_new, seed=1, stream=0), **extra)


@pytest.mark.parametrize("seed", range(10))
def test_everybody_gets_what_was_drawn_for_them_however_others_come_and_go(seed):
    """Random joins and leaves, steps that are read one later, a log that is full after a few."""
    rng = random.Random(seed)
    batch, log = Batch(8), StepLog(num_steps=12, num_rows=8, num_codebooks=4)
    inside, drawn_for, in_flight, sent = [], {}, [], np.zeros(0)
    for step in range(200):
        for one in [one for one in inside if one.stay.num_launched == 10 or rng.random() < 0.1]:
            inside.remove(one)
            batch.leave(one)
            one.end_stay()
            assert one.codes(0, one.num_new_tokens).tolist() == drawn_for[one][: one.num_new_tokens]
        while len(inside) < 8 and rng.random() < 0.5:
            one = sequence(rng.choice([*Kind]))
            batch.join(one, log)
            inside.append(one)
            drawn_for[one] = []
        assert sorted(map(id, batch.sequences)) == sorted(map(id, inside))
        assert len(set(batch.rows.tolist())) == len(batch) == len(inside)
        assert [one.draws_text for one in batch.sequences] == sorted((one.draws_text for one in inside), reverse=True)
        assert batch.num_text == sum(one.draws_text for one in inside)
        assert [stay.lane for stay in batch.lanes] == list(range(len(batch)))
        assert set(batch.joined) == {one for one in inside if not one.stay.num_launched}
        if batch.is_changed:
            sent = batch.rows.copy()
        assert sent.tolist() == [stay.row for stay in batch.lanes] == batch.rows.tolist()
        drawn = np.array([[step, lane, 1, 2] for lane in range(len(batch))], np.int32).reshape(-1, 4)
        for one, token in zip(batch.sequences, drawn.tolist(), strict=True):
            drawn_for[one].append(token[: 1 if one.draws_text else 4])
        in_flight.append((batch.rows.copy(), drawn))
        log.num_launched += 1
        batch.settle()
        if len(in_flight) > 1:
            log.store(*in_flight.pop(0))
        for one in inside:
            assert one.num_generated_tokens == len(drawn_for[one])
            assert one.num_new_tokens == len(drawn_for[one]) - 1
            assert one.codes(0, one.num_new_tokens).tolist() == drawn_for[one][:-1]
            assert one.codes(3, 5).tolist() == drawn_for[one][3:5] or one.num_new_tokens < 5


def test_nothing_is_sent_for_a_batch_that_goes_on():
    batch, log = Batch(2), StepLog(8, 2, 4)
    for _ in range(2):
        batch.join(sequence(), log)
    assert (len(batch.joined), batch.is_changed) == (2, True)
    batch.settle()
    assert (batch.joined, batch.moved, batch.is_changed) == ({}, {}, False)


def test_one_that_leaves_at_once_is_never_sent():
    batch, one, log = Batch(2), sequence(), StepLog(8, 2, 4)
    batch.join(one, log)
    batch.move(one)
    batch.leave(one)
    batch.leave(one)  # a second time changes nothing
    batch.move(one)
    assert (len(batch), batch.joined, batch.moved) == (0, {}, {})


def test_those_who_are_watched_are_counted_while_they_are_in_it():
    batch, log = Batch(3), StepLog(8, 3, 4)
    watched = [sequence(watched=(1, 2)), sequence(watched=(0, 1))]
    for one in (*watched, sequence()):
        batch.join(one, log)
    assert batch.num_watched == 2
    for one in (*watched, *watched):
        batch.leave(one)
    assert (len(batch), batch.num_watched) == (1, 0)


def test_looks_stay_with_a_sequence_that_loses_its_cache():
    """Those of steps that were read; in steps that note none, nobody's are wanted."""
    one, log, expected = sequence(max_new=6, watched=(1, 3)), StepLog(3, 1, 4, 2), []
    for _ in range(2):
        batch = Batch(1)
        batch.join(one, log)
        for _ in range(2):
            log.num_launched += 1
            expected.append([10 + log.num_read, 20 + log.num_read])
            log.store(batch.rows, np.zeros((1, 4), np.int32), np.array(expected[-1:], np.int32))
        assert one.looks(len(expected)).tolist() == expected
        one.lose_cache()
        assert one.looks(len(expected)).tolist() == expected
        batch.leave(one)
        batch.join(sequence(), log)
        log.num_launched += 1
        log.store(batch.rows, np.zeros((1, 4), np.int32))
    assert one.looks(3).tolist() == expected[:3]


def test_more_sequences_than_rows_are_refused():
    batch, log = Batch(2), StepLog(8, 2, 4)
    for _ in range(2):
        batch.join(sequence(), log)
    with pytest.raises(ValueError, match="3 sequences in one step; allowed are 2"):
        batch.join(sequence(), log)


def test_a_sequence_goes_on_where_it_was_when_it_lost_its_cache():
    one, log, begun_ns = sequence(max_new=6), StepLog(16, 1, 4), []
    for _ in range(2):
        batch = Batch(1)
        stay = batch.join(one, log)
        for number in range(2):
            begun_ns.append(one.first_token_ns)
            log.begin()
            log.num_launched += 1
            log.store(batch.rows, np.full((1, 4), log.num_read + 10 * number, np.int32))
        one.lose_cache()
    assert one.codes(0, 4).tolist() == [[value] * 4 for value in (0, 11, 2, 13)]
    assert (stay.first, stay.last) == (2, 5)
    assert begun_ns == [None, *[one.first_token_ns] * 3]  # the first step's, for good
    launched_ns, read_ns = one.first_token_ns
    assert 0 < launched_ns <= read_ns <= time.time_ns()
    batch = Batch(1)
    batch.join(one, log)
    log.num_launched += 1
    log.store(batch.rows, np.full((1, 4), 7, np.int32))
    assert one.codes(2, 5).tolist() == [[2] * 4, [13] * 4, [7] * 4]
    assert one.token_at(one.num_prompt_tokens + 4, 0)[1] == (7, 7, 7, 7)
