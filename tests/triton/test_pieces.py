"""Texts in pieces without a server: what their pieces may be, and how long they are waited for."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from chattts_serving.errors import DeadlineExceededError, InvalidInputError
from chattts_serving.text.lexicon import Lexicon
from chattts_serving.text.part import Part, SoFar
from chattts_serving.text.sentences import End
from chattts_serving.text.unfinished import Sentence
from chattts_serving.triton.pieces import OpenText, OpenTexts, Piece

LONG = 60.0


def piece(part: str = "next", text: str = "", text_id: str = "a text") -> Piece:
    return Piece(text_id, part, text, None)


def texts_of(part: Part) -> list[str]:
    return [sentence.text for sentence in part.sentences]


def test_a_request_without_inputs_of_pieces_is_a_whole_text() -> None:
    assert Piece.of({"text": "Hello", "seed": 1}) is None
    assert Piece.of({"text_id": "a", "part": "first", "seed": 1}) == Piece("a", "first", "", None)


def test_parts_have_each_sentence_once_and_say_whether_others_follow() -> None:
    text = OpenText({}, LONG, None)
    text.add(piece("first", "The first one is here. And the second "))
    text.add(piece("next", "one is there."))
    first = text.take()
    assert (texts_of(first), first.is_first, first.goes_on) == (["The first one is here."], True, True)
    text.add(piece("last"))
    so_far = SoFar(7, 1, 12)
    last = text.take(so_far)
    assert texts_of(last) == ["And the second one is there."]
    assert (last.is_first, last.goes_on, last.so_far) == (False, False, so_far)
    assert not text.goes_on


def test_the_options_of_the_request_hold_for_its_text() -> None:
    text = OpenText({"normalize": np.array([False]), "strict_tags": np.array([True])}, LONG, None)
    text.add(piece("first", "A **word** stays. "))
    text.add(piece("last"))
    assert texts_of(text.take()) == ["A **word** stays."]
    text = OpenText({"strict_tags": np.array([True])}, LONG, None)
    text.add(piece("first", "Not a [tag] at all.\n\nx"))
    with pytest.raises(InvalidInputError, match=r"'\[tag\]'"):
        text.take()


def test_words_are_those_of_the_server_and_of_the_request() -> None:
    texts = OpenTexts(LONG, num_instances=1, lexicon=Lexicon({"SQL": "S Q L", "nginx": "N"}))
    first = Piece.of({"text_id": "a", "part": "first", "text": "We run ngi", "lexicon": '{"nginx": "engine x"}'})
    with texts.opened(first, {}) as text:
        texts.add(piece("last", "nx and SQL.", "a"))
        assert texts_of(text.take()) == ["We run engine x and S Q L."]
    for wrong in ("[]", "x" * 200_001, 5):
        with (
            pytest.raises(InvalidInputError, match="'lexicon' is"),
            texts.opened(Piece.of({"text_id": "a", "part": "first", "lexicon": wrong}), {}),
        ):
            pass


def test_waiting_ends_with_a_sentence_with_the_end_or_with_an_error() -> None:
    async def run(*pieces: Piece) -> OpenText:
        text = OpenText({}, LONG, None)
        waiting = asyncio.create_task(text.wait())
        for one in pieces:
            await asyncio.sleep(0)
            assert not waiting.done()
            text.add(one)
        await waiting
        return text

    text = asyncio.run(run(piece(text="The first one is"), piece(text=" here. And then we shall go")))
    assert texts_of(text.take()) == ["The first one is here."]
    assert texts_of(asyncio.run(run(piece(text="The first one is"), piece("last"))).take()) == ["The first one is"]
    with pytest.raises(InvalidInputError, match="pieces of 1 to 20,000"):
        asyncio.run(run(piece(text="x" * 20_001))).take()


def test_a_text_whose_pieces_stay_away_is_given_up() -> None:
    with pytest.raises(DeadlineExceededError, match=r"^deadline exceeded: no piece of the text came for 0.01 s$"):
        asyncio.run(OpenText({}, 0.01, None).wait())


def test_what_seems_complete_is_taken_once_pieces_stay_away() -> None:
    async def run() -> list[str]:
        text = OpenText({}, LONG, 0.01)
        text.add(piece("first", "We look, and then"))
        await text.wait()
        first = text.take()
        text.add(piece("last"))
        return texts_of(first) + texts_of(text.take())

    assert asyncio.run(run()) == ["We look,", "and then"]


def test_names_are_those_of_open_texts() -> None:
    texts = OpenTexts(LONG, num_instances=1)
    with pytest.raises(InvalidInputError, match="'text_id' is 'a text'; allowed is the name of a text that is open"):
        texts.add(piece())
    with texts.opened(piece("first"), {}):
        with (
            pytest.raises(InvalidInputError, match="allowed is a name that no other open text has"),
            texts.opened(piece("first"), {}),
        ):
            pass
        texts.add(piece("last"))
        with pytest.raises(InvalidInputError, match="'part' is 'next'; allowed is none: the last piece of 'a text'"):
            texts.add(piece())
    with pytest.raises(InvalidInputError, match="the name of a text that is open"):
        texts.add(piece())


def test_several_processes_refuse_texts_in_pieces() -> None:
    message = "allowed is none: chattts_stream has several instances"
    texts = OpenTexts(LONG, num_instances=2)
    with pytest.raises(InvalidInputError, match=message), texts.opened(piece("first"), {}):
        pass


SAID = (Sentence('say "hi"', End.CUT, "zh"), Sentence("", End.CUT, "zh", 240))
PART = Part(SAID, False, True, SoFar(7, 1, 12, None, 24), "say")


def test_a_part_survives_json() -> None:
    assert Part.from_json(PART.to_json()) == PART


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        *(PART.to_json().replace(*change) for change in [("CUT", "END"), ("12", "-1"), ("12", "null"), ("240", "-1")]),
    ],
)
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="'part' is"):
        Part.from_json(text)
