"""Chunks that lie ready for a reader, and how it hears of them: both ends over a synthesizer made up here."""

from __future__ import annotations

import asyncio
import queue
import time

import pytest

from chattts_serving.errors import InvalidInputError, OverloadedError, ShuttingDownError
from chattts_serving.speech.mailbox import Mailbox
from chattts_serving.speech.reader import Reader

WAIT_S = 20


class Synthesizer:
    """Remembers what is read, by name; `answer` replies."""

    def __init__(self):
        self.replies = {}
        self.refusal = None

    def open(self, name, _opening, reply):
        if self.refusal:
            raise self.refusal
        self.replies[name] = reply

    def read(self, name, reply):
        self.replies[name] = reply

    def answer(self, name, outcome):
        self.replies.pop(name)(outcome)


@pytest.fixture
def synthesizer():
    return Synthesizer()


@pytest.fixture
def mailbox(synthesizer):
    mailbox = Mailbox(synthesizer, keep_s=60)
    yield mailbox
    mailbox.close()


class Told:
    """What a reader was told."""

    def __init__(self):
        self._answers = queue.Queue()

    def __call__(self, names):
        self._answers.put(list(names))

    def get(self):
        return self._answers.get(timeout=WAIT_S)

    @property
    def is_empty(self):
        return self._answers.empty()


def test_a_reader_is_told_of_whichever_of_its_requests_comes_first(synthesizer, mailbox):
    for name in "abc":
        mailbox.open("reader", name, None)
    told = Told()
    mailbox.wait("reader", [], told)
    synthesizer.answer("b", "part of b")
    assert told.get() == ["b"]
    assert (mailbox.take("a"), mailbox.take("b"), mailbox.take("b")) == (None, "part of b", None)


def test_what_came_while_nobody_waited_is_told_in_one_answer(synthesizer, mailbox):
    for name in "abc":
        mailbox.open("reader", name, None)
    for name in "ca":
        synthesizer.answer(name, name.upper())
    told = Told()
    mailbox.wait("reader", [], told)
    assert told.get() == ["c", "a"]


def test_a_reader_hears_of_its_own_requests_alone(synthesizer, mailbox):
    one, other = Told(), Told()
    mailbox.open("one", "a", None)
    mailbox.open("other", "b", None)
    mailbox.wait("one", [], one)
    mailbox.wait("other", [], other)
    synthesizer.answer("b", "part")
    assert other.get() == ["b"]
    assert one.is_empty


def test_a_later_call_of_a_reader_ends_the_one_before(mailbox):
    mailbox.open("reader", "a", None)
    first, second = Told(), Told()
    mailbox.wait("reader", [], first)
    mailbox.wait("reader", [], second)
    assert first.get() == []
    assert second.is_empty


def test_a_chunk_is_read_once_it_is_expected_and_not_before(synthesizer, mailbox):
    """Chunks grow where their reader lags."""
    mailbox.open("reader", "a", None)
    synthesizer.answer("a", "first")
    assert mailbox.take("a") == "first"
    assert not synthesizer.replies
    told = Told()
    mailbox.wait("reader", ["a"], told)
    assert told.get() == ["a"]  # of the first one, which it had not heard of
    mailbox.wait("reader", [], told)
    synthesizer.answer("a", "second")
    assert told.get() == ["a"]
    assert mailbox.take("a") == "second"


def test_who_expects_nothing_does_not_wait(mailbox):
    told = Told()
    mailbox.wait("nobody", [], told)
    assert told.get() == []


def test_a_refused_request_is_not_expected(synthesizer, mailbox):
    synthesizer.refusal = OverloadedError("overloaded")
    with pytest.raises(OverloadedError):
        mailbox.open("reader", "a", None)
    told = Told()
    mailbox.wait("reader", [], told)
    assert told.get() == []


def test_what_nobody_takes_is_thrown_away(synthesizer, mailbox, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for name in "ab":
        mailbox.open("reader", name, None)
    synthesizer.answer("a", "part")
    now = 61.0
    synthesizer.answer("b", "part")
    told = Told()
    mailbox.wait("reader", [], told)
    assert told.get() == ["b"]
    assert mailbox.take("a") is None


def test_the_end_of_the_server_is_told(synthesizer, mailbox):
    mailbox.open("reader", "a", None)
    told = Told()
    mailbox.wait("reader", [], told)
    synthesizer.answer("a", ShuttingDownError("the server is shutting down"))
    mailbox.close()
    assert told.get() == ["a"]
    with pytest.raises(ShuttingDownError):
        mailbox.wait("reader", [], told)


def test_closing_answers_who_waits(mailbox):
    mailbox.open("reader", "a", None)
    told = Told()
    mailbox.wait("reader", [], told)
    mailbox.close()
    assert told.get() == []


# Both ends


class Calls:
    """Calls of gpt_decoder that reach `mailbox`, and how many last."""

    def __init__(self, mailbox):
        self.mailbox = mailbox
        self.num_open = self.most_open = 0
        self.number = 0

    async def call(self, model, inputs, outputs):
        assert (model, outputs) == ("gpt_decoder", ["ready"])
        self.number += 1
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            if "generation" in inputs:
                self.mailbox.open(inputs["reader"], inputs["stream_id"], None)
                return {"ready": ""}
            loop, told = asyncio.get_running_loop(), asyncio.Queue()
            names = inputs["expected"].split("\n") if inputs["expected"] else []
            self.mailbox.wait(
                inputs["stream_id"], names, lambda ready: loop.call_soon_threadsafe(told.put_nowait, list(ready))
            )
            return {"ready": "\n".join(await told.get())}
        finally:
            self.num_open -= 1


NUM_REQUESTS = 200


def test_any_number_of_requests_is_waited_for_in_two_calls(synthesizer, mailbox):
    calls = Calls(mailbox)
    reader = Reader(calls.call)

    async def read(number):
        await reader.first(f"r{number}", {"generation": "{}"})
        assert mailbox.take(f"r{number}") == 0
        for index in range(1, 4):
            await reader.next(f"r{number}")
            assert mailbox.take(f"r{number}") == index

    async def run():
        reading = [asyncio.create_task(read(number)) for number in range(NUM_REQUESTS)]
        while len(synthesizer.replies) < NUM_REQUESTS:
            await asyncio.sleep(0.001)
        calls.most_open = 0
        for index in range(4):
            while len(synthesizer.replies) < NUM_REQUESTS:
                await asyncio.sleep(0.001)
            for number in range(NUM_REQUESTS):
                synthesizer.answer(f"r{number}", index)
        await asyncio.wait_for(asyncio.gather(*reading), WAIT_S)

    asyncio.run(run())
    assert calls.most_open <= 3  # the one that waits, the one that comes after it, and what is about to end


def test_an_error_of_the_call_reaches_everybody_who_waits(mailbox):
    calls = Calls(mailbox)
    reader = Reader(calls.call)

    async def run():
        reading = [asyncio.create_task(reader.first(name, {"generation": "{}"})) for name in "ab"]
        await asyncio.sleep(0.05)
        mailbox.close()
        return await asyncio.wait_for(asyncio.gather(*reading, return_exceptions=True), WAIT_S)

    assert [type(error) for error in asyncio.run(run())] == [ShuttingDownError] * 2


def test_nothing_is_asked_while_a_request_is_being_opened():
    number = 0

    async def slow(_model, inputs, _outputs):
        nonlocal number
        number += 1
        if "generation" in inputs:
            await asyncio.sleep(0.05)
            raise InvalidInputError("generation", "", "planted")
        return {"ready": ""}

    async def run():
        await Reader(slow).first("a", {"generation": "{}"})

    with pytest.raises(InvalidInputError):
        asyncio.run(run())
    assert number == 1
