"""Streams equal the whole sentence: every length and schedule through decoder and vocoder as deep as the official ones.

The language model alone is a stand-in, so that hidden states are known and tokens come when the test wants them.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format, text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from chattts_serving.audio import CONTEXT_TOKENS, N_FFT, SAMPLE_RATE, SAMPLES_PER_TOKEN, num_samples
from chattts_serving.engine.engine import Finished
from chattts_serving.engine.sequence import FinishReason
from chattts_serving.request import GenerationRequest, SamplingOptions
from chattts_serving.speech.opening import Opening, Part
from chattts_serving.speech.reader import Reader
from chattts_serving.speech.session import BEGINNING, Heard, SpeechSession
from chattts_serving.speech.session import Models as AllModels
from chattts_serving.speech.synthesizer import Synthesizer
from chattts_serving.speech.windows import Chunk, ReadingPlan, rows_of
from chattts_serving.triton.config import ReadingConfig
from export import synthetic
from export.layout import ConvNeXtSizes, VocosSizes
from export.onnx_models import export_onnx_models
from export.onnx_parity import open_session
from tests.engine.models import launch, read, seat
from tests.speech.test_synthesizer import Prompts

HIDDEN = 32  # as narrow as the layers allow, and as deep as the official model
LONGEST = 200
TOLERANCE = 1e-4  # of samples, whose rms is 0.13: what windows of other lengths round differently
ONES = ReadingPlan((1,), 1)
END = 10**6  # token of the stand-in

Array = np.ndarray
States = tuple[Array, Array]
Render = Callable[[Array, Array, States], tuple[Array, States]]
"""Hidden states [T, HIDDEN] of a call, its mask, what decoder and vocoder kept -> samples, and what they keep."""

Planted = Callable[[Array, States, Chunk], tuple[Array, States, Chunk]]


def shipped_plan(model: str, mode: str = "exact") -> ReadingPlan:
    """What the config.pbtxt of `model` makes of `mode`."""
    path = Path(__file__).parents[2] / "model_repository" / model / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    return ReadingConfig.from_triton(json_format.MessageToJson(config, preserving_proto_field_name=True)).plan(mode)


STREAM_PLAN = shipped_plan("chattts_stream")


@pytest.fixture(scope="module")
def render(tmp_path_factory) -> Render:
    folder = tmp_path_factory.mktemp("deep")
    tiny, official = synthetic.SIZES["tiny"], synthetic.SIZES["synthetic"]
    deep = replace(
        tiny,
        gpt=replace(tiny.gpt, hidden=HIDDEN),
        decoder=ConvNeXtSizes(idim=16, odim=16, hidden=16, num_layers=official.decoder.num_layers, bn_dim=16),
        vocos=VocosSizes(dim=16, intermediate=32, num_layers=official.vocos.num_layers),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.SIZES, "deep", deep)
        checkpoint = synthetic.write_checkpoint("deep", folder / "checkpoint")
    export_onnx_models(checkpoint, folder)
    decoder, vocos = (open_session(folder / model / "1" / "model.onnx") for model in ("dvae_decoder", "vocos"))

    def run(hidden: Array, mask: Array, states: States) -> tuple[Array, States]:
        kept = [state[np.newaxis] for state in states]
        mel, mel_mask, decoder_state = decoder.run(
            None, {"hidden": hidden[np.newaxis], "mask": mask[np.newaxis], "state": kept[0]}
        )
        waveform, vocoder_state = vocos.run(None, {"mel": mel, "mel_mask": mel_mask, "state": kept[1]})
        return waveform[0], (decoder_state[0], vocoder_state[0])

    return run


def at_once(render: Render, hidden: Array) -> Array:
    """A sentence rendered in one call."""
    return render(*rows_of(hidden, closes=True, ends=True), tuple(BEGINNING.values()))[0][: num_samples(len(hidden))]


@pytest.fixture(scope="module")
def whole_sentences(render) -> list[Array]:
    """Of every length up to LONGEST: the hidden states of NOISE's beginning, rendered in one call."""
    return [at_once(render, NOISE[:length]) for length in range(1, LONGEST + 1)]


def noise(length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((length, HIDDEN), np.float32)


NOISE = noise(LONGEST)


class ScriptedEngine:
    """Speaks sentences whose hidden states are given; each step adds the next of `arrivals` tokens to each of them.

    It works while a read waits and rests in between, so that chunks depend on `arrivals` and not on the clock.
    """

    num_waiting = num_resting = num_used_cache_tokens = num_cache_tokens = batch_size = 0
    num_generated: dict[Any, int] = {}  # noqa: RUF012

    def __init__(self, sentences: Sequence[Array], arrivals: Sequence[int]) -> None:
        self._sentences = sentences
        self._arrivals = itertools.cycle(arrivals)
        self._running: list[Any] = []
        self._turn = threading.Condition()
        self._may_step = self._rests = False
        self.num_steps_read = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def is_idle(self) -> bool:
        return not self._running

    def add(self, sequence: Any) -> None:
        seat(sequence)
        self._running.append(sequence)

    def remove(self, sequence: Any) -> None:
        self._running.remove(sequence)

    def hidden(self, sequence: Any, first: int, last: int) -> Array:
        return self._sentence(sequence)[first:last]

    def step(self) -> list[Finished]:
        with self._turn:
            self._rests = True
            self._turn.notify_all()
            assert self._turn.wait_for(lambda: self._may_step, timeout=60)
            self._rests = False
        count = next(self._arrivals)
        self.num_steps_read += count  # of an engine that brings one token a step
        finished = [sequence for sequence in self._running if self._ends(sequence, count)]
        self._running = [sequence for sequence in self._running if sequence not in finished]
        return [Finished(sequence, self._sentence(sequence)) for sequence in finished]

    def rest(self) -> None:
        """Hold the next step back."""
        self._may_step = False

    def work(self) -> None:
        """Step on."""
        with self._turn:
            self._may_step = True
            self._turn.notify_all()

    def wait_until_it_rests(self) -> None:
        with self._turn:
            assert self._turn.wait_for(lambda: self._rests or self.is_idle, timeout=60)

    def _sentence(self, sequence: Any) -> Array:
        return self._sentences[sequence.params.stream // 2]

    def _ends(self, sequence: Any, count: int) -> bool:
        """Add `count` tokens; the end comes in a draw of its own, as it does where the end token is drawn."""
        for _ in range(count):
            place = sequence.num_new_tokens
            if place == len(self._sentence(sequence)):
                sequence.finish_reason = FinishReason.STOP
            else:
                launch(sequence)
                read(sequence, (place,) * 4)
                if not sequence.needs_step:
                    sequence.finish_reason = FinishReason.LENGTH
            if sequence.is_finished:
                sequence.end_stay()
                return True
        return False


@dataclass
class Models:
    """Answers what a session calls; `planted` may spoil what a call gets and says."""

    engine: ScriptedEngine
    synthesizer: Synthesizer
    render: Render
    planted: Planted
    opening: Any = None  # given, and not read yet

    async def call(self, model: str, inputs: Any, outputs: Sequence[str]) -> Any:
        if model == "gpt_decoder":
            if "generation" in inputs:
                self.opening = inputs
            return {"ready": inputs.get("expected") or self.opening["stream_id"]}
        replies: queue.Queue[Any] = queue.Queue()

        def reply(outcome: Any) -> None:
            self.engine.rest()
            replies.put(outcome)

        self.engine.wait_until_it_rests()
        if self.opening:
            given, self.opening = self.opening, None
            request = GenerationRequest.from_json(given["generation"])
            opening = Opening(request, given["speaker_embedding"], ReadingPlan.from_json(given["reading"]))
            self.synthesizer.open(inputs["stream_id"], opening, reply)
        else:
            self.synthesizer.read(inputs["stream_id"], reply)
        self.engine.work()
        part = replies.get(timeout=60)
        if not isinstance(part, Part):
            raise part
        states = (inputs["decoder_state"], inputs["vocoder_state"])
        hidden, states, chunk = self.planted(part.hidden, states, part.chunk)
        waveform, states = self.render(hidden, part.mask, states)
        return {
            "waveform": waveform,
            "chunk": chunk.to_json(),
            "next_decoder_state": states[0],
            "next_vocoder_state": states[1],
        }


def unchanged(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    return hidden, states, chunk


def stream(
    render: Render,
    sentences: Sequence[Array],
    plan: ReadingPlan,
    arrivals: Sequence[int] = (1,),
    pauses: Sequence[int] | None = None,
    planted: Planted = unchanged,
) -> list[Heard]:
    """What is heard of `sentences` under `plan`."""
    number = len(sentences)
    request = GenerationRequest(
        prompts=((5,),) * number,
        texts=tuple(map(str, range(number))),
        pauses=tuple(pauses or (0,) * (number + 1)),
        fewest_tokens=(0,) * number,
        most_tokens=(2_048,) * number,
        redraw_long=False,
        refine=False,
        refine_only=False,
        prompt="",
        sample_text="",
        sample_codes=(),
        has_speaker=True,
        seed=1,
        deadline_ns=None,
        priority="interactive",
        sampling=SamplingOptions(),
    )
    engine = ScriptedEngine(sentences, arrivals)
    synthesizer = Synthesizer(
        lambda: engine,
        Prompts(),
        max_requests=1,
        max_batch_requests=1,
        max_sentences_at_once=16,
        max_sequences=64,
        lease_s=60,
    )
    call = Models(engine, synthesizer, render, planted).call
    session = SpeechSession(
        AllModels(call, Reader(call)),
        plan,
        {"generation": request.to_json(), "speaker_embedding": np.zeros(HIDDEN, np.float32)},
    )

    async def read() -> list[Heard]:
        return [heard async for heard in session.chunks()]

    try:
        return asyncio.run(read())
    finally:
        engine.work()
        synthesizer.close()


def joined(heard: Sequence[Heard]) -> Array:
    return np.concatenate([one.audio for one in heard])


def with_pauses(sentences: Sequence[Array], pauses: Sequence[int]) -> Array:
    """The audio of whole sentences in one, with silence before the first and after each."""
    lead, *silences = (np.zeros(pause, np.float32) for pause in pauses)
    return np.concatenate([lead, *(part for pair in zip(sentences, silences, strict=True) for part in pair)])


def check_equal(found: Array, expected: Array) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


# The property


@pytest.mark.parametrize("arrivals", [(1,), (7, 1, 90), (1_000,)], ids=["one by one", "in bursts", "all at once"])
def test_a_stream_of_any_length_equals_the_whole_sentence(render, whole_sentences, arrivals):
    step = 1 if arrivals == (1,) else 3
    for length in range(1, LONGEST + 1, step):
        check_equal(joined(stream(render, [NOISE[:length]], STREAM_PLAN, arrivals)), whole_sentences[length - 1])


@pytest.mark.parametrize("length", [1, 2, 3, 51, 52, 53, 54, 104, 105, 106, 120])
def test_a_stream_of_single_tokens_equals_the_whole_sentence(render, whole_sentences, length):
    heard = stream(render, [NOISE[:length]], ONES)
    waits_for = CONTEXT_TOKENS
    assert [one.chunk.num_tokens for one in heard] == [1] * (length - waits_for) + [min(length, waits_for)]
    check_equal(joined(heard), whole_sentences[length - 1])


@st.composite
def plans(draw) -> ReadingPlan:
    most = draw(st.integers(10, 120))
    least = draw(st.lists(st.integers(10, most), min_size=1, max_size=5))
    return ReadingPlan(tuple(least), most, sentences_ahead=draw(st.integers(1, 3)))


silences = st.one_of(st.just(0), st.integers(0, 50_000))
sentences_and_pauses = st.lists(st.tuples(st.integers(1, LONGEST), silences), min_size=1, max_size=3)
bursts = st.lists(st.integers(1, 100), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(lead=silences, lengths=sentences_and_pauses, plan=plans(), arrivals=bursts)
def test_any_schedule_equals_the_whole_sentences_and_the_silence_between_them(render, lead, lengths, plan, arrivals):
    sentences = [noise(length, place) for place, (length, _) in enumerate(lengths)]
    pauses = [lead, *(pause for _, pause in lengths)]
    heard = stream(render, sentences, plan, arrivals, pauses)
    wholes = [at_once(render, sentence) for sentence in sentences]
    audio = joined(heard)
    check_equal(audio, with_pauses(wholes, pauses))
    spoken = [sentence for one in heard for sentence in one.chunk.sentences]
    for sentence, whole in zip(spoken, wholes, strict=True):
        start, end = round(sentence.start * SAMPLE_RATE), round(sentence.end * SAMPLE_RATE)
        check_equal(audio[start:end], whole)
    assert sum(one.chunk.num_tokens for one in heard) == sum(map(len, sentences))


@pytest.mark.parametrize(("length", "calls"), [(512, 1), (564, 1), (565, 2), (1_100, 3)])
def test_a_sentence_that_the_whole_answer_takes_in_several_calls_equals_one_call(render, length, calls):
    hidden = noise(length)
    heard = stream(render, [hidden], shipped_plan("speech"), (64,))
    assert len(heard) == calls
    check_equal(joined(heard), at_once(render, hidden))


@st.composite
def low_latency_plans(draw) -> ReadingPlan:
    lookahead = draw(st.integers(1, CONTEXT_TOKENS))
    most = draw(st.integers(1, 60))
    return ReadingPlan((draw(st.integers(1, most)),), most, (lookahead,), draw(st.integers(0, min(lookahead, 3))))


@settings(max_examples=60, deadline=None)
@given(lead=silences, lengths=sentences_and_pauses, plan=low_latency_plans(), arrivals=bursts)
def test_any_lookahead_gives_as_many_samples_as_there_are(lead, lengths, plan, arrivals):
    def silent(hidden: Array, mask: Array, states: States) -> tuple[Array, States]:
        waits = (CONTEXT_TOKENS if states[0][0] else 0) - (0 if len(mask) > len(hidden) else CONTEXT_TOKENS)
        return np.zeros((len(hidden) + waits) * SAMPLES_PER_TOKEN, np.float32), (np.ones(1), np.ones(1))

    pauses = [lead, *(pause for _, pause in lengths)]
    heard = stream(silent, [noise(length) for length, _ in lengths], plan, arrivals, pauses)
    wholes = [np.zeros(num_samples(length), np.float32) for length, _ in lengths]
    assert len(joined(heard)) == len(with_pauses(wholes, pauses))


@pytest.mark.parametrize("lookahead", [1, 8])
@pytest.mark.parametrize("arrivals", [(1,), (7, 1, 90)], ids=["one by one", "in bursts"])
def test_guesses_are_not_kept(render, whole_sentences, lookahead, arrivals):
    """A sentence's last chunk is exact, whatever was guessed before, and so is what lies far enough behind a guess."""
    heard = stream(render, [NOISE], ReadingPlan((4, 6, 8), 16, (lookahead,), fade_tokens=1), arrivals)
    *guessed, last = [one.audio for one in heard]
    faded = SAMPLES_PER_TOKEN
    check_equal(last[faded:], whole_sentences[-1][-len(last) :][faded:])
    assert guessed
    with pytest.raises(AssertionError):
        check_equal(np.concatenate([*guessed, last]), whole_sentences[-1])


# The context is what decoder and vocoder see, not more and not less


def test_samples_depend_on_all_of_the_context_and_on_nothing_beyond(render):
    """NaN spreads to whatever depends on it, however little."""
    place = CONTEXT_TOKENS + 10
    hidden = noise(2 * place)
    hidden[place] = np.nan
    spoilt = np.flatnonzero(np.isnan(at_once(render, hidden))) // SAMPLES_PER_TOKEN
    assert (spoilt.min(), spoilt.max()) == (place - CONTEXT_TOKENS, place + CONTEXT_TOKENS)


# Would the comparison notice?


def a_sample_late(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    return hidden, states, replace(chunk, first_sample=chunk.first_sample + 1)


def a_sample_twice(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    more = 1 if chunk.is_final else 0
    return hidden, states, replace(chunk, num_samples=chunk.num_samples + more)


def a_sample_less(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    return hidden, states, replace(chunk, num_samples=chunk.num_samples - chunk.is_final)


def a_token_exchanged(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    return np.concatenate([hidden[:1] + 0.1, hidden[1:]]), states, chunk


def forgotten(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
    return hidden, tuple(np.concatenate([state[:1], 0 * state[1:]]) for state in states), chunk


def a_frame_exchanged(which: int, place: int) -> Planted:
    """In what decoder (0) or vocoder (1) kept."""

    def planted(hidden: Array, states: States, chunk: Chunk) -> tuple[Array, States, Chunk]:
        spoilt = states[which].copy()
        if len(spoilt) > 1:
            spoilt[place * 16 :][1:17] += 0.1
        return hidden, (*states[:which], spoilt, *states[which + 1 :]), chunk

    return planted


def test_the_comparison_would_notice_a_wrong_frame_wherever_it_is_kept(render, whole_sentences):
    decoder, vocoder = render(*rows_of(NOISE[:80], closes=False, ends=False), tuple(BEGINNING.values()))[1]
    # The vocoder's last are three windows of the inverse STFT, of which the oldest has but a quarter to give.
    for which, length in enumerate((len(decoder), len(vocoder) - 3 * N_FFT)):
        for place in np.linspace(0, length // 16 - 2, 12, dtype=int):
            found = joined(stream(render, [NOISE], STREAM_PLAN, planted=a_frame_exchanged(which, place)))
            with pytest.raises(AssertionError):
                check_equal(found, whole_sentences[-1])


def test_nothing_planted_is_equal(render, whole_sentences):
    check_equal(joined(stream(render, [NOISE], STREAM_PLAN, planted=unchanged)), whole_sentences[-1])


@pytest.mark.parametrize("planted", [a_sample_late, a_sample_twice, a_sample_less, a_token_exchanged, forgotten])
def test_the_comparison_notices(render, whole_sentences, planted):
    found = joined(stream(render, [NOISE], STREAM_PLAN, planted=planted))
    with pytest.raises(AssertionError):
        check_equal(found, whole_sentences[-1])


def test_the_comparison_notices_too_little_look_ahead(render, whole_sentences):
    found = joined(stream(render, [NOISE], shipped_plan("chattts_stream", "low_latency")))
    assert found.shape == whole_sentences[-1].shape
    with pytest.raises(AssertionError):
        check_equal(found, whole_sentences[-1])
