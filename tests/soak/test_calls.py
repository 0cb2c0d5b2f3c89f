"""How calls are judged, whatever they do; nothing here needs a server."""

import asyncio
import random

import pytest
from chattts_client import DeadlineExceededError, OverloadedError, ServerError

from bench.load import KINDS as ERROR_NAMES
from tests.soak import calls
from tests.soak.calls import ANSWERED, FULL, KINDS, LATE, LEFT, NO_ANSWER, REFUSED, WRONG, Caller, Settings
from tests.soak.calls import WrongAnswerError as Wrong
from tests.soak.run import DECK

SETTINGS = Settings("127.0.0.1:1", "127.0.0.1:2", burst=3, tokens=96, timeout_s=0.05)


def outcomes(monkeypatch, call, expected=(ANSWERED, FULL), kind="made up"):
    monkeypatch.setattr(calls, "PATIENCE_S", 0.05)
    monkeypatch.setitem(KINDS, kind, (call, frozenset(expected)))
    return asyncio.run(Caller(SETTINGS, None, random.Random(0)).outcomes("burst" if kind == "one of a burst" else kind))


def ends(how):
    """A call that raises `how`, or returns it."""

    async def call(_caller):
        if isinstance(how, Exception):
            raise how
        return how

    return call


@pytest.mark.parametrize(
    ("how", "ending", "fault"),
    [
        (ANSWERED, ANSWERED, None),
        (LEFT, LEFT, "left was not expected"),
        (OverloadedError("full"), FULL, None),
        (DeadlineExceededError("late"), LATE, "late"),
        (ServerError("broken", "INTERNAL"), "INTERNAL", "INTERNAL: broken"),
        (Wrong("a sample is not finite"), WRONG, "a sample is not finite"),
        (ZeroDivisionError("of the soak"), WRONG, "ZeroDivisionError('of the soak')"),
    ],
)
def test_a_call_is_judged_by_how_it_ends(monkeypatch, how, ending, fault):
    (outcome,) = outcomes(monkeypatch, ends(how))
    assert (outcome.ending, outcome.fault) == (ending, fault)


def test_a_deadline_is_no_fault_of_who_asked_for_it(monkeypatch):
    (outcome,) = outcomes(monkeypatch, ends(DeadlineExceededError("late")), (ANSWERED, LATE))
    assert (outcome.ending, outcome.fault) == (LATE, None)


def test_a_call_that_never_ends_is_unanswered(monkeypatch):
    async def hangs(_caller):
        await asyncio.sleep(60)

    (outcome,) = outcomes(monkeypatch, hangs)
    assert outcome.ending == NO_ANSWER
    assert outcome.fault


def test_a_burst_has_an_outcome_for_each_of_it(monkeypatch):
    burst = outcomes(monkeypatch, ends(OverloadedError("full")), kind="one of a burst")
    assert [(one.kind, one.ending) for one in burst] == [("one of a burst", FULL)] * 3


def test_the_deck_has_every_kind():
    assert set(DECK) == set(KINDS) - {"one of a burst"} | {"burst"}


def test_errors_have_the_names_that_the_kinds_expect():
    assert {FULL, LATE, REFUSED} <= set(ERROR_NAMES.values())
