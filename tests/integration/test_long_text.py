"""A text of 10,000 characters on the live server: every sentence is spoken, in order, in one voice, beside others."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from chattts_client import Chunk, Speech, TTSClient

from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.request import GenerationRequest, SynthesisRequest
from chattts_serving.text.frontend import TextFrontend
from tests.oracle import NEAR_ZERO

NUM_CHARACTERS = 10_000
MAX_NEW_TOKENS = 24
OPTIONS: dict[str, Any] = {"seed": 11, "skip_refine": True, "max_new_tokens": MAX_NEW_TOKENS}
PATIENCE_S = 120.0


def long_text() -> str:
    """Chinese and English in turns, with numbers, abbreviations and tags; a paragraph every seven sentences."""
    text = "这一句没有句号，" * 50 + "\n"  # is cut at its commas
    number = 0
    while len(text) < NUM_CHARACTERS:
        number += 1
        text += f"第{number}天早上，我们在公园里走了{number}.5公里。"
        text += f"On day {number}, Dr. Lee paid $3.50 for tickets [uv_break] and we went home."
        text += "\n" if number % 7 == 0 else " "
    return text


@dataclass(frozen=True)
class Spoken:
    """The long text: what it comes to, and what the server made of it, whole and as a stream."""

    prepared: GenerationRequest
    whole: Speech
    chunks: list[Chunk]


@pytest.fixture(scope="module")
def spoken(tiny) -> Spoken:
    frontend = TextFrontend(tiny.repository / "text_frontend" / "1")
    with TTSClient(tiny.server.grpc_url) as client:
        return Spoken(
            frontend.prepare(SynthesisRequest(text=long_text(), **OPTIONS)).generation,
            client.synthesize(long_text(), **OPTIONS),
            list(client.stream(long_text(), mode="exact", **OPTIONS)),
        )


def to_samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def test_every_sentence_is_spoken_in_order(spoken):
    assert len(spoken.prepared.texts) > 150
    assert [sentence.text for sentence in spoken.whole.sentences] == list(spoken.prepared.texts)
    assert spoken.whole.refined_text.split("\n") == list(spoken.prepared.texts)


def test_sentences_lie_in_the_audio_where_they_say(spoken):
    """Each is followed by its pause, longest where a paragraph ends; the last one by nothing."""
    before, *pauses = spoken.prepared.pauses
    assert (before, pauses[-1], len(set(pauses[:-1]))) == (0, 0, 3)
    start = 0
    for sentence, pause in zip(spoken.whole.sentences, pauses, strict=True):
        assert to_samples(sentence.start) == start
        assert to_samples(sentence.end) == start + num_samples(sentence.num_tokens)
        start += num_samples(sentence.num_tokens) + pause
    assert len(spoken.whole.audio) == to_samples(spoken.whole.sentences[-1].end)
    assert spoken.whole.num_tokens == sum(sentence.num_tokens for sentence in spoken.whole.sentences)


def test_pauses_are_silent_and_sentences_are_not(spoken):
    sounding = np.abs(spoken.whole.audio) > 0
    for one, following in itertools.pairwise(spoken.whole.sentences):
        assert sounding[to_samples(one.start) : to_samples(one.end)].mean() > 0.9
        assert not sounding[to_samples(one.end) : to_samples(following.start)].any()


def test_exact_chunks_make_up_the_whole_answer(spoken):
    whole, chunks = spoken.whole, spoken.chunks
    audio = np.concatenate([chunk.audio for chunk in chunks])
    assert audio.shape == whole.audio.shape
    np.testing.assert_allclose(audio, whole.audio, atol=1e-4, rtol=0)
    assert sum(chunk.num_tokens for chunk in chunks) == whole.num_tokens
    assert "\n".join(chunk.refined_text for chunk in chunks if chunk.refined_text) == whole.refined_text
    assert tuple(sentence for chunk in chunks for sentence in chunk.sentences) == whole.sentences


def test_chunks_are_numbered_and_the_last_one_says_so(spoken):
    assert [chunk.index for chunk in spoken.chunks] == list(range(len(spoken.chunks)))
    assert [chunk.is_final for chunk in spoken.chunks] == [False] * (len(spoken.chunks) - 1) + [True]


def test_one_voice_and_one_seed_hold_for_all(spoken):
    assert {chunk.speaker for chunk in spoken.chunks} == {spoken.whole.speaker}
    assert {chunk.seed for chunk in spoken.chunks} == {spoken.whole.seed} == {OPTIONS["seed"]}


def test_each_sentence_sounds_as_it_does_alone_in_the_same_voice(tiny):
    options = OPTIONS | {"temperature": NEAR_ZERO, "min_new_tokens": MAX_NEW_TOKENS}
    with TTSClient(tiny.server.grpc_url) as client:
        speech = client.synthesize(long_text(), **options)
        for sentence in (speech.sentences[place] for place in (0, 1, 2, 77, len(speech.sentences) - 1)):
            alone = client.synthesize(sentence.text, speaker=speech.speaker, **options)
            assert alone.refined_text == sentence.text
            there = speech.audio[to_samples(sentence.start) : to_samples(sentence.end)]
            np.testing.assert_allclose(there, alone.audio, atol=1e-4, rtol=0)


def test_only_sentences_that_reach_the_limit_are_cut(spoken):
    for sentence in spoken.whole.sentences:
        assert 1 <= sentence.num_tokens <= MAX_NEW_TOKENS
        assert sentence.finish_reason == ("length" if sentence.num_tokens == MAX_NEW_TOKENS else "stop")
    assert {sentence.finish_reason for sentence in spoken.whole.sentences} == {"length", "stop"}


@pytest.mark.parametrize(("limits", "reason"), [((20, 20), "length"), ((0, 400), "stop")])
def test_a_sentence_says_whether_it_was_cut_or_ended_by_itself(tiny, limits, reason):
    min_new_tokens, max_new_tokens = limits
    with TTSClient(tiny.server.grpc_url) as client:
        speech = client.synthesize(
            "The quick brown fox jumps over the lazy dog.",
            seed=1,
            temperature=NEAR_ZERO,
            skip_refine=True,
            min_new_tokens=min_new_tokens,
            max_new_tokens=max_new_tokens,
        )
    (sentence,) = speech.sentences
    assert sentence.finish_reason == reason
    assert sentence.num_tokens == speech.num_tokens
    assert (sentence.num_tokens == max_new_tokens) == (reason == "length")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_sentence_that_goes_on_too_long_is_drawn_again_where_asked_for(tiny, protocol):
    # The weights are random: a sentence ends anywhere. 114 tokens are the most that "Hi" may take.
    options = {"skip_refine": True, "temperature": 1.0, "max_new_tokens": 400}
    with TTSClient(getattr(tiny.server, f"{protocol}_url"), protocol=protocol) as client:
        plain = {seed: client.synthesize("Hi", seed=seed, **options) for seed in range(12)}
        late = {seed for seed, speech in plain.items() if speech.num_tokens > 114}
        assert late
        assert {plain[seed].sentences[0].finish_reason for seed in late} <= {"late", "length"}
        for seed in late:
            speech = client.synthesize("Hi", seed=seed, redraw_long=True, **options)
            assert speech.num_tokens <= 114
            if protocol == "grpc":
                chunks = list(client.stream("Hi", seed=seed, redraw_long=True, **options))
                streamed = np.concatenate([chunk.audio for chunk in chunks])
                np.testing.assert_allclose(streamed, speech.audio, atol=1e-4, rtol=0)


def num_chunks_read(server) -> int:
    """How many chunks of speech the server has made."""
    with tritonclient.http.InferenceServerClient(server.http_url) as triton:
        (statistics,) = triton.get_inference_statistics("speech_chunk")["model_stats"]
    return int(statistics["inference_stats"].get("success", {}).get("count", 0))


def wait_until(happened: Callable[[], bool], running: Future[object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert not running.done(), "the long request ended first"
        assert time.monotonic() < end, f"nothing happened in {PATIENCE_S} s"
        time.sleep(0.01)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_short_requests_are_answered_while_a_long_one_runs(tiny, streamed):
    texts = ["今天天气真不错，我们走吧。", "Short and sweet, isn't it?"] * 4
    before = num_chunks_read(tiny.server)
    with TTSClient(tiny.server.grpc_url) as client, ThreadPoolExecutor(1 + len(texts)) as pool:

        def speak_long() -> object:
            if streamed:
                return list(client.stream(long_text(), **OPTIONS))
            return client.synthesize(long_text(), **OPTIONS)

        long = pool.submit(speak_long)
        wait_until(lambda: num_chunks_read(tiny.server) > before, long)
        short = list(pool.map(lambda text: client.synthesize(text, **OPTIONS), texts))
        assert not long.done()
        assert all(len(speech.sentences) == 1 for speech in short)
        assert long.result()
