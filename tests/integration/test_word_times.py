"""When each word is said: against flite's own timings, and the same whatever else the server does.

`pytest -rP` shows the figures. The demo checkpoint learnt from flite's recordings. It is judged while it reads flite's
own codes, whose times are known, and while it speaks by itself: then its codes are laid beside flite's.
"""

from __future__ import annotations

import asyncio
import random
import re
from itertools import pairwise

import numpy as np
import pytest
from chattts_client import AsyncTTSClient, TTSClient, joined

from chattts_serving.audio import SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.engine.cpu.runner import CpuRunner
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.engine.gpu.runner import TorchRunner
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from chattts_serving.text.prompts import Prompts
from chattts_serving.voice.speaker import decode_sample, decode_speaker, normalize
from chattts_serving.voice.voices import read_library
from chattts_serving.words import timed_words
from tests.integration.test_pieces import pieces_of, text_of
from training.timings import timings
from training.utterances import PIECE

MEDIAN_MS, MOST_MS, WITHIN = 60, 200, 0.95
TOKEN_MS = 1000 * SAMPLES_PER_TOKEN / SAMPLE_RATE
LEVELS = 5  # of a code's digits
TEXT = "Good morning, how are you today? The train to London leaves at half past seven. Thank you very much."
OPTIONS = {"speaker": "slt", "seed": 5, "word_times": True}


class Speaker:
    """The demo checkpoint's engine, without a server."""

    def __init__(self, repository, precision, *, by_pytorch=False):
        folder = repository / "gpt_decoder" / "1"
        if by_pytorch:
            model = GPT.load(folder, "cpu", precision)
            self.runner = TorchRunner(model, kv_cache_gb=0.1, max_sequences=64, max_prefill_tokens=512)
        else:
            self.runner = CpuRunner.load(folder, precision, kv_cache_gb=0.1, num_threads=1)
        self.leads = [head.lead for head in self.runner.text_heads]
        self._engine = Engine(self.runner, max_sequences=64, max_prefill_tokens=512)
        self._prompts = Prompts(folder)
        voices = read_library(repository / "text_frontend" / "1" / "voices.json")
        self._voices = {voice.name: normalize(decode_speaker(voice.speaker)) for voice in voices if voice.speaker}

    def sequence(self, one, codes=(), most=400, seed=0):
        """A sequence that says a `Timing`, after `codes`, and where its words stand."""
        prompt = self._prompts.code_prompt(one.text, "[speed_5]", "", has_speaker=True)
        places = self._prompts.places(one.text, "[speed_5]", "", has_speaker=True)
        params = SamplingParams(0.3, 0.7, 20, 1.05, 0, most, seed, stream=1)
        watched = places.first, places.end
        return Sequence(Kind.AUDIO, prompt, params, codes, self._voices[one.voice], watched=watched), places

    def run(self, sequences):
        for one in sequences:
            self._engine.add(one)
        finished = {}
        while not self._engine.is_idle:
            finished |= {one.sequence: one for one in self._engine.step()}
        return finished


@pytest.fixture(
    scope="module", params=[Precision.FP32, Precision.BF16, Precision.INT8], ids=lambda precision: precision.value
)
def speaker(demo, request):
    return Speaker(demo.repository, request.param)


def errors(words, one, ends):
    """Of the starts of words, in ms; `ends` are the true ones of the words and marks of `one`, in audio tokens."""
    pieces = zip(PIECE.findall(one.text), [0, *ends], strict=False)
    starts = [start for piece, start in pieces if piece.isalpha()]
    return [(word.start - start) * TOKEN_MS for word, start in zip(words, starts, strict=True)]


def check(name, found):
    found = np.abs(found)
    print(
        f"MEASURED: {name}: {len(found)} words, median {np.median(found):.0f} ms, "
        f"95 % within {np.percentile(found, 95):.0f} ms, within {MOST_MS} ms {100 * np.mean(found <= MOST_MS):.1f} %"
    )
    assert np.median(found) <= MEDIAN_MS
    assert np.mean(found <= MOST_MS) >= WITHIN


def test_words_of_flites_own_codes_are_timed_as_flite_times_them(speaker):
    found = []
    for one in timings():
        codes = decode_sample(one.codes)
        sequence, places = speaker.sequence(one, codes, most=1)
        speaker.run([sequence])
        first = len(sequence.prompt_ids) - 1  # what it read of the codes lies before what it drew, in the first slot
        words = timed_words(places, speaker.runner._looks[first : first + len(codes)], speaker.leads)
        found += errors(words, one, one.ends)
    check("flite's codes", found)


def test_words_that_the_model_says_by_itself_are_timed_as_flite_times_them(speaker):
    found, said = [], {number: speaker.sequence(one, seed=number) for number, one in enumerate(timings())}
    finished = speaker.run([sequence for sequence, _ in said.values()])
    for number, (sequence, places) in said.items():
        one, words = timings()[number], timed_words(places, finished[sequence].looks, speaker.leads)
        assert len(words) == len(places.words)
        assert all(word.start < word.end for word in words)
        assert all(word.end <= after.start for word, after in pairwise(words))
        assert all(0 <= word.confidence <= 1 for word in words)
        beside = laid_beside(np.array(decode_sample(one.codes)), sequence.codes(0, sequence.num_new_tokens))
        found += errors(words, one, [beside[min(end, len(beside) - 1)] for end in one.ends])
    check("spoken by itself", found)


def test_the_runner_for_gpus_times_them_as_the_one_for_cpus_does(demo):
    """Here by its operations in PyTorch, which its kernels are compared with."""
    spoken = []
    for by_pytorch in (False, True):
        speaker = Speaker(demo.repository, Precision.FP32, by_pytorch=by_pytorch)
        said = [speaker.sequence(one, seed=number) for number, one in enumerate(timings()[:3])]
        finished = speaker.run([sequence for sequence, _ in said])
        spoken.append([timed_words(places, finished[sequence].looks, speaker.leads) for sequence, places in said])
    assert spoken[0] == spoken[1]


def laid_beside(theirs, mine):
    """For each token of `theirs` the one of `mine` that it sounds like, never falling: dynamic time warping."""
    apart = ((digits(theirs)[:, None] - digits(mine)[None]) ** 2).sum(axis=2)
    cost = np.full((len(theirs) + 1, len(mine) + 1), np.inf)
    cost[0, 0] = 0
    for i, row in enumerate(apart.tolist(), start=1):
        above, here = cost[i - 1].tolist(), [np.inf]
        for j, distance in enumerate(row, start=1):
            here.append(distance + min(above[j], above[j - 1], here[j - 1]))
        cost[i] = here
    i, j, pairs = len(theirs), len(mine), {}
    while i and j:
        pairs.setdefault(i - 1, []).append(j - 1)
        i, j = min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda place: cost[place])
    return [float(np.median(pairs[place])) for place in range(len(theirs))]


def digits(codes):
    """What the codes [n, 4] stand for: two groups of four numbers, each coarse and then fine."""
    places = LEVELS ** np.arange(4)
    levels = codes[..., None] // places % LEVELS - LEVELS // 2
    return (levels[:, 0::2] + levels[:, 1::2] / LEVELS).reshape(len(codes), -1)


@pytest.fixture(scope="module")
def spoken(demo):
    with TTSClient(demo.server.grpc_url) as client:
        return client.synthesize(TEXT, **OPTIONS)


def test_words_are_those_of_the_spoken_text_in_their_order(spoken):
    assert [word.text for word in spoken.words] == TEXT.lower().replace(",", "").replace(".", "").replace(
        "?", ""
    ).split()
    assert spoken.warning == ""
    for word, after in pairwise(spoken.words):
        assert word.start < word.end <= after.start
        assert word.sentence <= after.sentence
    for word in spoken.words:
        sentence = spoken.sentences[word.sentence]
        assert sentence.start <= word.start < word.end <= sentence.end
        assert word.text in re.findall("[a-z]+", sentence.text)
        assert 0.3 < word.confidence <= 1


def test_the_same_is_spoken_with_and_without_them(demo, spoken):
    with TTSClient(demo.server.grpc_url) as client:
        without = client.synthesize(TEXT, **OPTIONS | {"word_times": None})
    assert without.words == ()
    assert (without.num_tokens, without.sentences) == (spoken.num_tokens, spoken.sentences)
    np.testing.assert_array_equal(without.audio, spoken.audio)


@pytest.mark.parametrize("mode", ["exact", "low_latency"])
def test_a_stream_has_the_words_of_the_sentences_that_end_in_its_chunks(demo, spoken, mode):
    with TTSClient(demo.server.grpc_url) as client:
        chunks = list(client.stream(TEXT, mode=mode, **OPTIONS))
    assert joined(chunks).words == spoken.words
    for chunk in chunks:
        assert bool(chunk.words) == bool(chunk.sentences)


@pytest.mark.parametrize("seed", range(4))
def test_a_text_in_pieces_has_the_words_of_the_whole_text(demo, seed):
    random_ = random.Random(seed)
    text, options = text_of(random_), OPTIONS | {"skip_refine": seed % 2 > 0, "max_new_tokens": 60}
    with TTSClient(demo.server.grpc_url) as client:
        chunks = list(client.stream(pieces_of(text, random_), **options))
        whole = client.synthesize(text, **options)
    assert joined(chunks).words == whole.words
    assert len(whole.words) > len(whole.sentences)
    for word, after in pairwise(whole.words):
        assert word.start <= word.end <= after.start


def test_words_are_known_while_the_text_is_written(demo, spoken):
    heard = []

    async def written():
        yield TEXT[:60]
        while not any(chunk.words for chunk in heard):
            await asyncio.sleep(0.01)
        yield TEXT[60:]

    async def run():
        async with AsyncTTSClient(demo.server.grpc_url) as client:
            async for chunk in client.stream(written(), **OPTIONS):
                heard.append(chunk)

    asyncio.run(run())
    assert joined(heard).words == spoken.words


def test_neighbours_change_nothing(demo, spoken):
    async def crowd():
        async with AsyncTTSClient(demo.server.grpc_url, timeout=120) as client:
            others = [client.synthesize(one.text, seed=number) for number, one in enumerate(timings()[:12])]
            mine, *_ = await asyncio.gather(client.synthesize(TEXT, **OPTIONS), *others)
            return mine.words

    assert asyncio.run(crowd()) == spoken.words


def test_words_of_refined_text_and_of_turns_are_in_place(demo):
    turns = [{"text": "Good morning.", "speaker": "slt"}, {"text": "Thank you, my friend.", "speaker": "rms"}]
    with TTSClient(demo.server.http_url, protocol="http") as client:
        speech = client.synthesize("", turns=turns, seed=1, word_times=True)
    assert [(word.text, word.sentence) for word in speech.words] == [
        ("good", 0),
        ("morning", 0),
        ("thank", 1),
        ("you", 1),
        ("my", 1),
        ("friend", 1),
    ]


def test_where_no_head_follows_the_text_sentences_stand_in_place_of_words_and_the_answer_says_so(tiny):
    text = "Hello there. This is a test."
    with TTSClient(tiny.server.grpc_url) as client:
        options = {"seed": 3, "skip_refine": True, "max_new_tokens": 40, "word_times": True}
        speech = client.synthesize(text, **options)
        last = list(client.stream(text, **options))[-1]
        plain = client.synthesize(text, **options | {"word_times": False})
    assert [(word.text, word.start, word.end) for word in speech.words] == [
        (sentence.text, sentence.start, sentence.end) for sentence in speech.sentences
    ]
    assert {word.confidence for word in speech.words} == {0}
    assert "cannot tell when each word is said" in speech.warning
    assert last.warning == speech.warning
    assert (plain.words, plain.warning) == ((), "")
