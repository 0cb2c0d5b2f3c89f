"""Calls of the models inside, which a caller can reach as well, and conversations with `gpt_decoder`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from hypothesis import strategies as st

from chattts_serving.audio import FRAMES_PER_TOKEN, HOP_LENGTH, NUM_MELS
from chattts_serving.speech.session import BEGINNING, NEXT
from chattts_serving.speech.windows import Chunk, ReadingPlan
from chattts_serving.voice.speaker import decode_sample
from chattts_serving.voice.voice_encoder import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from tests.fuzz.answers import OK, Answer, Outputs, UnexpectedError, check
from tests.fuzz.calls import Call, Expected, Tensor, float_tensor, text_tensor
from tests.fuzz.values import TINY_HIDDEN_SIZE, malformed, often
from tests.fuzz.wires import Wire

Json = Any
PLAN = ReadingPlan(least_tokens=(16,), most_tokens=16, lookahead_tokens=(4,))  # several reads for a short sentence
_ODD = [math.nan, math.inf, -math.inf, 0.0, 1e30, -1e30, 1e-45]
_JUNK: tuple[Json, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 0.5, -1e308, math.nan, math.inf, "", "x", "\0", "\ud800"),
    *([], [[]], [[[]]], [None], [-1], [2**40], ["x"], [0.5], [True], {}, {"a": 1}, [1] * 3_000, [[1]] * 2_001),
)


def mutated(good: Mapping[str, Json]) -> st.SearchStrategy[str]:
    """`good` as JSON with one or two places changed, or no such JSON at all."""

    @st.composite
    def changed(draw: st.DrawFn) -> str:
        values = json.loads(json.dumps(good))
        for _ in range(draw(st.integers(1, 2))):
            place, key = values, draw(st.sampled_from(sorted(values) or [""]))
            if key in place and isinstance(place[key], dict) and place[key] and draw(st.booleans()):
                place = place[key]
                key = draw(st.sampled_from(sorted(place)))
            what = draw(st.sampled_from(["replace", "replace", "replace", "delete", "add"]))
            if what == "replace":
                place[key] = draw(st.sampled_from(_JUNK))
            elif what == "delete":
                place.pop(key, None)
            else:
                place[draw(st.sampled_from(["", "more", "self", "cls"]))] = draw(st.sampled_from(_JUNK))
        return json.dumps(values)

    text = json.dumps(good)
    cut = st.integers(0, len(text) - 1).map(lambda length: text[:length])
    odd = [
        "",
        "null",
        "[]",
        "{}",
        "0",
        '"x"',
        "[" * 10_000,
        '{"a":' * 5_000,
        "\ufeff{}",
        "NaN",
        text + text,
        "\u00e9" * 99,
    ]
    return st.one_of(changed(), changed(), changed(), cut, st.sampled_from(odd), st.text(max_size=20))


def _embedding(draw: st.DrawFn) -> tuple[Tensor, Expected]:
    """`speaker_embedding`, of another size or with values that are none once in a while."""
    size = draw(often(st.just(TINY_HIDDEN_SIZE), st.sampled_from([0, 1, 63, 65, 768, 100_000]), share=8))
    value = draw(often(st.just(0.125), st.sampled_from(_ODD), share=8))
    is_good = size == TINY_HIDDEN_SIZE and math.isfinite(value)
    # Any finite vector is taken, however long; what it says is then the caller's own business.
    expected = Expected.EITHER if value != 0.125 else Expected.ANSWER
    return float_tensor("speaker_embedding", (1, size), [value] * size), expected if is_good else Expected.REFUSAL


def _as_utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@st.composite
def speech_calls(draw: st.DrawFn, generation: Mapping[str, Json]) -> Call:
    """Calls of `speech`; `generation` is what text_frontend wrote."""
    embedding, expected = _embedding(draw)
    text = json.dumps(generation)
    if draw(st.booleans()):
        text = draw(mutated(generation))
        expected = Expected.EITHER if expected is Expected.ANSWER else expected
    tensors = [text_tensor("generation", _as_utf8(text)), embedding]
    if draw(often(st.just(False), st.just(True), share=8)):
        place = draw(st.sampled_from([0, 1]))
        tensors[place] = draw(malformed(tensors[place].name))
        expected = Expected.EITHER
    if draw(often(st.just(False), st.just(True), share=15)):
        tensors.pop()
        expected = Expected.REFUSAL
    return Call("speech", tuple(tensors), expected=expected)


def _lengths(usual: int) -> st.SearchStrategy[int]:
    return often(st.integers(1, usual), st.just(0), share=15)


@st.composite
def _floats(draw: st.DrawFn, name: str, shape: tuple[int, ...]) -> Tensor:
    """FP32 noise, with one odd value once in a while."""
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(math.prod(shape)).astype(np.float32)
    if values.size and draw(often(st.just(False), st.just(True), share=6)):
        values[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(_ODD))
    return float_tensor(name, shape, values.tolist())


@st.composite
def _masked(draw: st.DrawFn, model: str, names: tuple[str, str], usual_width: int) -> Call:
    """Rows [batch, time, width], a mask [batch, time + 1] and a state [batch, 1] that fit each other, or not."""
    batch = draw(often(st.integers(1, 3), st.sampled_from([16, 17]), share=15))
    length = draw(_lengths(80))
    width = draw(often(st.just(usual_width), st.sampled_from([0, 1, usual_width - 1, usual_width + 1]), share=10))
    mask_shape = draw(
        often(
            st.just((batch, length + 1)),
            st.sampled_from([(batch, length), (batch, length + 9), (batch, 1), (batch + 1, length)]),
            share=8,
        )
    )
    state_shape = draw(
        often(st.just((batch, 1)), st.sampled_from([(batch, 0), (batch, 500), (batch + 1, 1)]), share=12)
    )
    rows = draw(_floats(names[0], (batch, length, width)))
    mask = float_tensor(
        names[1],
        mask_shape,
        [draw(often(st.just(1.0), st.sampled_from([0.0, *_ODD]), share=8))] * math.prod(mask_shape),
    )
    state = draw(_floats("state", state_shape))
    shapes_fit = (mask_shape, state_shape) == ((batch, length + 1), (batch, 1))
    fits = shapes_fit and width == usual_width and length > 0 and batch <= 16
    return Call(model, (rows, mask, state), expected=Expected.ANSWER if fits else Expected.EITHER)


@st.composite
def _encoder(draw: st.DrawFn) -> Call:
    length = draw(_lengths(6_000))
    number = draw(often(st.just(length), st.sampled_from([0, -1, 1, length + 1, 2**31 - 1, -(2**31)]), share=4))
    fits = 0 < number <= length
    tensors = (draw(_floats("audio", (1, length))), Tensor("num_samples", "INT32", (1, 1), (number,)))
    return Call(
        "dvae_encoder", tensors, expected=Expected.ANSWER if fits and length >= HOP_LENGTH * 2 else Expected.EITHER
    )


@st.composite
def _voice(draw: st.DrawFn) -> Call:
    """Recordings of about a second, the shortest that are taken."""
    borders = [
        MIN_SAMPLE_RATE - 1,
        MIN_SAMPLE_RATE,
        24_000,
        MAX_SAMPLE_RATE,
        MAX_SAMPLE_RATE + 1,
        0,
        -1,
        2**31 - 1,
        -(2**31),
    ]
    rate = draw(often(st.sampled_from([16_000, 22_050, 24_000, 48_000]), st.sampled_from(borders), share=4))
    length = draw(often(st.just(max(1, min(rate, 50_000))), st.sampled_from([0, 1, 15_999, 31 * 16_000]), share=4))
    gain = draw(often(st.just(0.1), st.sampled_from([0.0, 1e-5, 3.0, 40.0, math.nan, math.inf]), share=4))
    audio = np.random.default_rng(length).standard_normal(length).astype(np.float32) * np.float32(gain)
    tensors = (float_tensor("audio", (1, length), audio.tolist()), Tensor("sample_rate", "INT32", (1, 1), (rate,)))
    is_good = rate in (16_000, 22_050, 24_000, 48_000) and length == rate and gain == 0.1
    return Call("voice_encoder", tensors, expected=Expected.ANSWER if is_good else Expected.EITHER)


def tensor_calls() -> st.SearchStrategy[Call]:
    """Calls of the models that take and give sound: decoder, vocoder and the two encoders."""
    decoder = _masked("dvae_decoder", ("hidden", "mask"), TINY_HIDDEN_SIZE)
    vocoder = _masked("vocos", ("mel", "mel_mask"), NUM_MELS)
    return st.one_of(decoder, vocoder, _encoder(), _voice())


def check_tensors(call: Call, answer: Answer) -> None:
    """Check shapes and, where only numbers went in, that only numbers come out.

    Raises:
        UnexpectedError: they are not what the model's config.pbtxt says.
    """
    check(call, answer)
    if answer.status != OK:
        return
    (outputs,) = answer.responses
    batch, length = (*call.tensors[0].shape, 1)[:2]
    shapes = {
        "dvae_decoder": {
            "mel": (batch, FRAMES_PER_TOKEN * length, NUM_MELS),
            "mel_mask": (batch, FRAMES_PER_TOKEN * length + 1),
        },
        "vocos": {"waveform": (batch, length * HOP_LENGTH)},
    }.get(call.model if [tensor.shape for tensor in call.tensors[1:]] == [(batch, length + 1), (batch, 1)] else "", {})
    found = {name: outputs[name].shape for name in shapes}
    if found != shapes:
        raise UnexpectedError(f"shapes {found}, not {shapes}")
    ordinary = all(abs(value) < 100 for tensor in call.tensors for value in tensor.values if isinstance(value, float))
    if ordinary and not all(np.isfinite(array).all() for array in outputs.values() if array.dtype != np.object_):
        raise UnexpectedError("numbers went in, and others came out")
    if call.model == "voice_encoder":
        codes = decode_sample(outputs["speaker_sample"].item().decode())
        if len(codes) != outputs["num_tokens"].item():
            raise UnexpectedError(f"{outputs['num_tokens'].item()} tokens are said, {len(codes)} are in speaker_sample")


class Act(Enum):
    """What a caller of `gpt_decoder` may do."""

    OPEN = "open"
    OPEN_BADLY = "open with junk"
    READ = "read"
    CANCEL = "cancel"
    FINISH = "read to the end"


@dataclass(frozen=True)
class Step:
    """One act on one stream; `junk` is the `generation` (or, on odd `number`, `reading`) of OPEN_BADLY."""

    act: Act
    stream: int
    through_chunk: bool = False  # by `speech_chunk`
    junk: str = ""
    junk_is_plan: bool = False


@dataclass(frozen=True)
class Conversation:
    """What one caller does with three streams, in order; `name` makes their ids unlike all others."""

    name: str
    generation: str
    steps: tuple[Step, ...]


def conversations(generation: Mapping[str, Json]) -> st.SearchStrategy[Conversation]:
    """Acts in any order; `generation` is what text_frontend wrote."""
    plan = json.loads(PLAN.to_json())

    @st.composite
    def steps(draw: st.DrawFn) -> Step:
        act = draw(st.sampled_from([Act.OPEN, *Act]))
        is_plan = act is Act.OPEN_BADLY and draw(st.booleans())
        junk = draw(mutated(plan if is_plan else generation)) if act is Act.OPEN_BADLY else ""
        return Step(act, draw(st.integers(0, 2)), act is not Act.CANCEL and draw(st.booleans()), junk, is_plan)

    ids = st.text(st.characters(min_codepoint=33, max_codepoint=0x3FF), max_size=12)
    return st.builds(
        Conversation, ids, st.just(json.dumps(generation)), st.lists(steps(), min_size=1, max_size=8).map(tuple)
    )


class Caller:
    """Has a conversation, and knows what the answers must be."""

    def __init__(self, wire: Wire, conversation: Conversation, serial: int) -> None:
        self._wire, self._conversation = wire, conversation
        self._ids = [f"{serial}-{stream}-{conversation.name}" for stream in range(3)]
        self._is_open = [False] * 3
        self._by_chunk = [False] * 3  # opened by `speech_chunk`, which has then made sound of all that was read
        self._states = [BEGINNING] * 3

    def talk(self) -> int:
        """Do everything, and cancel what is left open; how many requests were answered.

        Raises:
            UnexpectedError: an answer was not what it had to be.
        """
        calls = 0
        try:
            for step in self._conversation.steps:
                calls += self._do(step)
        finally:
            for stream in range(3):
                self._cancel(stream)
        return calls + 3

    def _do(self, step: Step) -> int:
        if step.act is Act.CANCEL:
            self._cancel(step.stream)
        elif step.act in (Act.OPEN, Act.OPEN_BADLY):
            self._open(step)
        else:
            return self._read(step)
        return 1

    def _open(self, step: Step) -> None:
        is_bad = step.act is Act.OPEN_BADLY
        generation = step.junk if is_bad and not step.junk_is_plan else self._conversation.generation
        plan = step.junk if is_bad and step.junk_is_plan else PLAN.to_json()
        inputs = (
            text_tensor("stream_id", _as_utf8(self._ids[step.stream])),
            text_tensor("generation", _as_utf8(generation)),
            float_tensor("speaker_embedding", (1, TINY_HIDDEN_SIZE), [0.125] * TINY_HIDDEN_SIZE),
            text_tensor("reading", _as_utf8(plan)),
        )
        expected = Expected.EITHER if is_bad else Expected.ANSWER
        self._ask(step, inputs, Expected.REFUSAL if self._is_open[step.stream] else expected)

    def _read(self, step: Step) -> int:
        reads = 0
        while True:
            was_open = self._is_open[step.stream]
            inputs = (text_tensor("stream_id", _as_utf8(self._ids[step.stream])),)
            self._ask(step, inputs, Expected.EITHER if was_open else Expected.REFUSAL)
            reads += 1
            if step.act is Act.READ or not self._is_open[step.stream] or reads > 200:
                return reads

    def _ask(self, step: Step, inputs: tuple[Tensor, ...], expected: Expected) -> None:
        stream = step.stream
        if step.act in (Act.OPEN, Act.OPEN_BADLY) and not self._is_open[stream]:
            self._by_chunk[stream], self._states[stream] = step.through_chunk, BEGINNING
        model = "speech_chunk" if self._by_chunk[stream] else "gpt_decoder"
        if self._by_chunk[stream]:
            inputs += tuple(
                float_tensor(name, (1, len(state)), state.tolist()) for name, state in self._states[stream].items()
            )
        answer = self._wire(Call(model, inputs, expected=expected))
        check(Call(model, inputs, expected=expected), answer)
        if answer.status == OK:
            chunk = Chunk.from_json(answer.responses[0]["chunk"].item().decode())
            self._is_open[stream] = not chunk.is_final
            if self._by_chunk[stream] and chunk.keeps_state:
                kept = {name: answer.responses[0][NEXT.format(name)][0] for name in BEGINNING}
                self._states[stream] = kept
            else:
                self._states[stream] = BEGINNING
            _check_window(chunk, answer.responses[0])
        elif self._is_open[stream] and step.act in (Act.READ, Act.FINISH):
            self._is_open[step.stream] = False  # a read that failed has ended the request

    def _cancel(self, stream: int) -> None:
        inputs = (text_tensor("stream_id", _as_utf8(self._ids[stream])), Tensor("cancel", "BOOL", (1, 1), (True,)))
        check(
            Call("gpt_decoder", inputs, expected=Expected.ANSWER),
            self._wire(Call("gpt_decoder", inputs, outputs=("chunk",))),
        )
        self._is_open[stream] = False


def _check_window(chunk: Chunk, outputs: Outputs) -> None:
    if "waveform" in outputs:
        length = outputs["waveform"].shape[1]
        if chunk.first_sample + chunk.num_samples + chunk.fade_samples > length:
            raise UnexpectedError(f"the chunk ends after the window's {length} samples: {chunk}")
        if not np.isfinite(outputs["waveform"]).all():
            raise UnexpectedError("samples that are not finite")
    elif outputs["codes"].shape[1] != chunk.num_tokens:
        raise UnexpectedError(f"{outputs['codes'].shape[1]} tokens of codes for {chunk}")
