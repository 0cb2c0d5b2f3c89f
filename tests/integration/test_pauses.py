"""Pauses that a text asks for, on the live server: silence of exactly that length, whole or streamed."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from chattts_serving.audio import SAMPLE_RATE, num_samples
from tests.oracle import NEAR_ZERO
from tests.streams import Chunk, StreamError, joined, read_stream, speak

TEXT = (
    "[pause 300ms] Hello there. [pause 1.5s] And so [pause 41ms] it goes on.\n[pause 0s]\nThe end is near. [pause 2s]"
)
PAUSES = (7_200, 36_000, 984, 0, 48_000)  # samples, before the first sentence and after each
OPTIONS: dict[str, Any] = {
    "text": TEXT,
    "seed": 7,
    "temperature": NEAR_ZERO,
    "min_new_tokens": 70,
    "max_new_tokens": 90,
}


@pytest.fixture(scope="module", params=[True, False], ids=["as written", "refined"])
def options(request) -> dict[str, Any]:
    refining = {"refine_temperature": NEAR_ZERO, "refine_max_new_tokens": 12}
    return OPTIONS | ({"skip_refine": True} if request.param else refining)


@pytest.fixture(scope="module")
def whole(tiny, options) -> Chunk:
    return speak(tiny.server.grpc_url, **options)


def check_pauses(answer: Chunk) -> None:
    """That the sentences say where they lie, and that between them is silence of the asked length and nothing else."""
    audio = answer["audio"]
    places = [(round(one["start"] * SAMPLE_RATE), round(one["end"] * SAMPLE_RATE)) for one in answer["sentences"]]
    for (start, end), sentence in zip(places, answer["sentences"], strict=True):
        assert end - start == num_samples(sentence["num_tokens"])
        assert audio[start:end].any()
    ends = [0, *itertools.chain.from_iterable(places), len(audio)]
    gaps = list(zip(ends[::2], ends[1::2], strict=True))
    assert tuple(after - before for before, after in gaps) == PAUSES
    assert not any(audio[before:after].any() for before, after in gaps)


def test_pauses_of_a_whole_answer_are_exact_to_a_sample(whole):
    assert len(whole["sentences"]) == 4
    check_pauses(whole)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_stream_has_the_same_pauses(tiny, options, whole, protocol):
    found = joined(read_stream(tiny.server, protocol, **options))
    check_pauses(found)
    assert found["sentences"] == whole["sentences"]
    np.testing.assert_allclose(found["audio"], whole["audio"], atol=1e-4, rtol=0)


def test_a_stream_of_low_latency_has_the_same_pauses(tiny, options):
    check_pauses(joined(read_stream(tiny.server, "grpc", mode="low_latency", **options)))


SSML = """<?xml version="1.0"?>
<speak version="1.1" xmlns="http://www.w3.org/2001/10/synthesis" xml:lang="en">
  <break time="300ms"/><s>Hello there</s><break time="1.5s"/>
  <voice name="seed-1">And so <break time="41ms"/> it goes on.</voice>
  <break strength="none"/><prosody rate="fast">The end is near.</prosody><break time="2s"/>
</speak>"""


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_document_of_ssml_has_the_same_pauses_whole_and_streamed(tiny, protocol):
    options = OPTIONS | {"text": SSML, "ssml": True, "skip_refine": True, "speaker": "default"}
    answer = speak(tiny.server.grpc_url, **options)
    check_pauses(answer)
    assert [one["text"] for one in answer["sentences"]] == ["Hello there.", "And so", "it goes on.", "The end is near."]
    assert [one["name"] for one in answer["sentences"]] == ["default", "seed-1", "seed-1", "default"]
    found = joined(read_stream(tiny.server, protocol, **options))
    np.testing.assert_allclose(found.pop("audio"), answer.pop("audio"), atol=1e-4, rtol=0)
    assert found == answer


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_bad_document_is_refused_with_its_place(tiny, protocol):
    wrong = {"text": "<speak>\n<audio/></speak>", "ssml": True}
    with pytest.raises(StreamError, match="input 'text' is '<audio>'; allowed is at line 2, column 1: one of break, p"):
        read_stream(tiny.server, protocol, **wrong)
