"""Which reads are looked at in which step."""

import numpy as np

from chattts_serving.speech.open_request import OpenRequest
from chattts_serving.speech.opening import Opening
from chattts_serving.speech.waiting_reads import WaitingReads
from chattts_serving.speech.windows import ReadingPlan
from tests.speech.test_synthesizer import request


def some(number):
    return [
        OpenRequest(str(n), Opening(request(), np.zeros(4, np.float32), ReadingPlan((1,), 1))) for n in range(number)
    ]


def test_a_read_is_taken_once_and_not_before_its_step():
    reads, (first, second, third) = WaitingReads(), some(3)
    for one, step in ((first, 7), (second, 5), (third, 5)):
        reads.put(one, step)
    assert list(reads.take(4)) == []
    assert list(reads.take(6)) == [second, third]
    assert list(reads.take(9)) == [first]
    assert list(reads.take(9)) == []


def test_the_last_step_that_a_read_waits_for_counts():
    reads, (one, other) = WaitingReads(), some(2)
    reads.put(one, 3)
    reads.put(one, 6)
    reads.put(other, 4)
    reads.drop(other)
    reads.drop(other)
    assert list(reads.take(5)) == []
    assert list(reads.take(6)) == [one]
    reads.put(other, 4)
    assert list(reads.take(6)) == [other]
