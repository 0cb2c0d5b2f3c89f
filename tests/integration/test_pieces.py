"""Texts in pieces on a live server: whenever they come and wherever they are cut, what is heard is the whole text."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chattts_client import AsyncTTSClient, DeadlineExceededError, InvalidInputError, TTSClient, joined

from tests.metrics import time_to_rest, wait_until
from tests.oracle import NEAR_ZERO
from tests.streams import GrpcStream, HttpStream, StreamError, tensors
from tests.streams import joined as added_up

TOLERANCE = 1e-4  # of samples, as between a stream and a whole answer
SENTENCES = [
    *(
        "The library opens at nine.",
        "Dr. Smith came with 3.5 kg of apples!",
        "Is that so?",
        "Yes.",
        "No. 5 is **really** alive.",
    ),
    *("今天天气真不错，我们去公园吧。", "好。", "他有3个苹果。", "第二句话在这里说！", "1,000", "[laugh]", "..."),
    *("- an item of a list", "A paragraph without a stop", "See [the page](http://a.b) of `code` & more."),
    *("[pause 300ms]", "[pause 1.2s]", "Your code is [spell A1-B2].", "nginx's page", "他在重庆。"),
]
LEXICON = {"nginx": "engine x", "重庆": "虫庆", "The library opens": "It [pause 0.1s] opens", "来重庆": "no"}
OPTIONS = {"skip_refine": True, "temperature": NEAR_ZERO, "min_new_tokens": 10, "max_new_tokens": 14}
WITHIN_S = 10.0  # far above what it takes, so that a busy machine does not decide


def text_of(random_: random.Random) -> str:
    marks = [" ", " ", " ", "", "\n", "\n\n"]
    return (
        "".join(random_.choice(SENTENCES) + random_.choice(marks) for _ in range(random_.randint(1, 12))) + "End of it"
    )


def pieces_of(text: str, random_: random.Random):
    """`text` cut anywhere; now and then the next piece takes its time."""
    while text:
        length = random_.choice((1, 2, 4, 8, 30, 200))
        if random_.random() < 0.1:
            time.sleep(random_.random() * 0.05)
        yield text[:length]
        text = text[length:]


def check_equal(found, whole):
    np.testing.assert_allclose(found.audio, whole.audio, atol=TOLERANCE, rtol=0)
    for name in ("seed", "speaker", "refined_text", "num_tokens", "sentences", "words", "warning"):
        assert getattr(found, name) == getattr(whole, name), name


@pytest.mark.parametrize("mode", ["exact", "low_latency"])
def test_a_text_in_pieces_is_the_whole_text(tiny, mode):
    """Many at once; what low latency says differs in its samples, but not in their number."""

    def speak(seed):
        random_ = random.Random(seed)
        text = text_of(random_)
        options = OPTIONS | {"seed": seed, "normalize": seed % 4 > 0, "lexicon": LEXICON if seed % 2 else None}
        options |= {"word_times": seed % 5 < 2}
        if seed % 3 == 0:
            options |= {"skip_refine": False, "refine_max_new_tokens": 12, "refine_temperature": NEAR_ZERO}
        with TTSClient(tiny.server.grpc_url) as client:
            return joined(list(client.stream(pieces_of(text, random_), mode=mode, **options))), client.synthesize(
                text, **options
            )

    with ThreadPoolExecutor(8) as pool:
        for found, whole in pool.map(speak, range(24 if mode == "exact" else 4)):
            if mode == "exact":
                check_equal(found, whole)
            else:
                assert (len(found.audio), found.sentences) == (len(whole.audio), whole.sentences)


def test_asyncio_takes_pieces_from_either_kind_of_iterable(tiny):
    text = " ".join(SENTENCES[:6])

    async def written():
        for piece in pieces_of(text, random.Random(1)):
            await asyncio.sleep(0)
            yield piece

    async def run():
        async with AsyncTTSClient(tiny.server.grpc_url) as client:
            found = []
            for source in (written(), pieces_of(text, random.Random(2)), [text]):
                found.append(joined([chunk async for chunk in client.stream(source, seed=3, **OPTIONS)]))
            return found, await client.synthesize(text, seed=3, **OPTIONS)

    found, whole = asyncio.run(run())
    for one in found:
        check_equal(one, whole)


def test_a_sentence_is_heard_while_the_next_is_written(tiny):
    heard = []

    def written():
        yield "The first sentence is here. And the second one"
        while not heard:
            time.sleep(0.01)
        yield " follows when the first was heard."

    with TTSClient(tiny.server.grpc_url) as client:
        for chunk in client.stream(written(), seed=1, **OPTIONS):
            heard.append(chunk)
    assert [sentence.text for chunk in heard for sentence in chunk.sentences] == [
        "The first sentence is here.",
        "And the second one follows when the first was heard.",
    ]


def test_a_seed_that_was_drawn_says_the_same_again(tiny):
    with TTSClient(tiny.server.grpc_url) as client:
        found = joined(list(client.stream(["One sentence comes first. ", "Another one follows."], **OPTIONS)))
        again = client.synthesize("One sentence comes first. Another one follows.", seed=found.seed, **OPTIONS)
    check_equal(found, again)


def test_who_writes_slowly_is_spoken_clause_by_clause_if_asked(tiny):
    heard = []

    def written():
        yield "Let me look that up, and then"
        while not heard:
            time.sleep(0.01)
        yield " we see."

    with TTSClient(tiny.server.grpc_url) as client:
        for chunk in client.stream(written(), seed=1, max_wait_ms=20, **OPTIONS):
            heard.append(chunk)
    assert [sentence.text for chunk in heard for sentence in chunk.sentences] == [
        "Let me look that up,",
        "and then we see.",
    ]


def test_what_the_iterable_raises_is_raised_and_frees_the_place(tiny):
    class PlantedError(Exception):
        pass

    def written():
        yield "The first sentence is here. And the second"
        raise PlantedError

    with TTSClient(tiny.server.grpc_url) as client, pytest.raises(PlantedError):
        list(client.stream(written(), **OPTIONS))

    async def run():
        async with AsyncTTSClient(tiny.server.grpc_url) as client:
            return [chunk async for chunk in client.stream(written(), **OPTIONS)]

    with pytest.raises(PlantedError):
        asyncio.run(run())
    time_to_rest(tiny.server, WITHIN_S)


def test_a_piece_that_is_no_text_is_named(tiny):
    with TTSClient(tiny.server.grpc_url) as client:
        with pytest.raises(InvalidInputError, match="'text' is 5; allowed is a string"):
            list(client.stream(["Hello there. ", 5], **OPTIONS))
        with pytest.raises(InvalidInputError, match="'text' is 5; allowed is a string, or Iterable of strings"):
            client.stream(5)
        with pytest.raises(InvalidInputError, match="'max_wait_ms' is 5; allowed is none"):
            client.stream("Hello", max_wait_ms=5)
    with (
        TTSClient(tiny.server.http_url, "http") as client,
        pytest.raises(InvalidInputError, match="'protocol' is 'http'; allowed is grpc where the text comes in"),
    ):
        client.stream(["Hello"])


WRONG = [
    ([""], "'text' is ''; allowed is text with at least one word"),
    (["...", " ", "!?"], "'text' is '...'; allowed is text with at least one word"),
    (
        ["word " * 3_000, "word " * 1_001],
        "'text' is .*; allowed is pieces of 1 to 20,000 characters together, got 20,005",
    ),
    (["Hello. [Stts] there.\n", "And"], r"'text' is '\[Stts\]'"),
    (["a\0b"], "'text' is .*NUL"),
]


@pytest.mark.parametrize(("pieces", "message"), WRONG)
def test_a_wrong_text_is_refused_in_words(tiny, pieces, message):
    with TTSClient(tiny.server.grpc_url) as client, pytest.raises(InvalidInputError, match=message):
        list(client.stream(pieces, **OPTIONS))
    time_to_rest(tiny.server, WITHIN_S)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"turns": [{"text": "Hello."}]}, "'turns' is .*; allowed is none with a text that comes in pieces"),
        ({"ssml": True}, "'ssml' is True; allowed is false with a text that comes in pieces"),
        ({"lexicon": {"word": ""}}, "'lexicon' is .*; allowed is 1 to 200 printable characters"),
    ],
)
def test_what_needs_the_whole_text_and_a_wrong_lexicon_are_refused(tiny, options, message):
    with TTSClient(tiny.server.grpc_url) as client, pytest.raises(InvalidInputError, match=message):
        list(client.stream(["Hello there. "], **OPTIONS, **options))


def test_wrong_options_are_refused_before_a_piece_comes(tiny):
    def written():
        while not refused:
            time.sleep(0.01)
            yield ""

    refused = []
    with TTSClient(tiny.server.grpc_url, timeout=30) as client:
        with pytest.raises(InvalidInputError, match="'top_k' is 0"):
            list(client.stream(written(), top_k=0))
        refused.append(True)


class Open(GrpcStream):
    """A gRPC stream of which any number of requests are parts."""

    def send(self, **inputs) -> None:
        self._client.async_stream_infer("chattts_stream", tensors(inputs))


FIRST = {"text_id": "a text", "part": "first", "seed": 1, **OPTIONS}


def test_any_client_sends_the_parts_in_one_stream(tiny):
    with Open(tiny.server.grpc_url, FIRST) as stream:
        stream.send(text_id="a text", part="next", text="One sentence comes first. Ano")
        stream.send(text_id="a text", part="next", text="ther one follows.")
        stream.send(text_id="a text", part="last")
        heard = added_up(list(stream))
    with TTSClient(tiny.server.grpc_url) as client:
        whole = client.synthesize("One sentence comes first. Another one follows.", seed=1, **OPTIONS)
    np.testing.assert_allclose(heard["audio"], whole.audio, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"text_id": "none", "part": "next", "text": "x"},
            "'text_id' is 'none'; allowed is the name of a text that is open",
        ),
        (
            {"text_id": "a text", "part": "first"},
            "'text_id' is 'a text'; allowed is a name that no other open text has",
        ),
        ({"text_id": "a text", "part": "more"}, "'part' is 'more'; allowed is one of first, next, last"),
        ({"text_id": "a text"}, "'part' is ''; allowed is one of first, next, last"),
        ({"part": "next"}, "'text_id' is ''; allowed is the name of a text in pieces, 1 to 64 characters"),
        ({"text_id": "x" * 65, "part": "next"}, "'text_id' is .*; allowed is the name of a text in pieces, 1 to 64"),
        ({"text_id": "a text", "part": "next", "seed": 1}, "'seed' is 1; allowed is none with a part that is 'next'"),
        ({"text_id": "b", "part": "first", "max_wait_ms": 0}, "'max_wait_ms' is 0; allowed is an integer from 1 to"),
        ({"text": "hello", "max_wait_ms": 5}, "'text_id' is ''; allowed is"),
    ],
)
def test_a_wrong_part_is_refused_and_harms_no_text(tiny, part, message):
    with Open(tiny.server.grpc_url, FIRST) as stream:
        stream.send(text_id="a text", part="next", text="One sentence comes")
        with Open(tiny.server.grpc_url, part) as other, pytest.raises(StreamError, match=message):
            other.next()
        stream.send(text_id="a text", part="last", text=" first.")
        assert added_up(list(stream))["refined_text"] == "One sentence comes first."


def test_a_part_after_the_last_is_refused(tiny):
    endless = FIRST | {"min_new_tokens": 2_000, "max_new_tokens": 2_000}
    with Open(tiny.server.grpc_url, endless) as stream:
        stream.send(text_id="a text", part="last", text="This sentence takes very long to say. " * 20)
        stream.next()
        late = {"text_id": "a text", "part": "next", "text": "x"}
        message = "'part' is 'next'; allowed is none: the last piece of 'a text' has come"
        with Open(tiny.server.grpc_url, late) as other, pytest.raises(StreamError, match=message):
            other.next()
    time_to_rest(tiny.server, WITHIN_S)


@pytest.mark.parametrize("said", ["", "The first sentence is here. And the second one is"])
def test_one_that_leaves_while_text_is_waited_for_frees_its_place(tiny, said):
    with Open(tiny.server.grpc_url, FIRST | {"text": said}) as stream:
        if said:
            stream.next()
        wait_until(tiny.server, lambda engine: engine.requests_open == 1, WITHIN_S)
    time_to_rest(tiny.server, WITHIN_S)
    with Open(tiny.server.grpc_url, FIRST | {"text": "It is free again."}) as stream:
        stream.send(text_id="a text", part="last")
        assert added_up(list(stream))["refined_text"] == "It is free again."


def test_the_deadline_holds_while_text_is_waited_for(tiny):
    with TTSClient(tiny.server.grpc_url) as client, pytest.raises(DeadlineExceededError):
        list(client.stream(endless_pieces(), deadline_ms=500, **OPTIONS))
    time_to_rest(tiny.server, WITHIN_S)


def endless_pieces():
    """Nothing is ever finished."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        yield ""
        time.sleep(0.1)


def test_over_http_the_parts_are_requests_of_their_own(tiny):
    with HttpStream(tiny.server.http_url, FIRST) as stream:
        wait_until(tiny.server, lambda engine: engine.requests_open == 1, WITHIN_S)
        last = {"text_id": "a text", "part": "last", "text": "Hello there."}
        with HttpStream(tiny.server.http_url, last) as other, pytest.raises(StreamError, match="the connection ended"):
            other.next()
        assert added_up(list(stream))["refined_text"] == "Hello there."
