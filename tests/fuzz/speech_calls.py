"""Calls of `chattts`, `chattts_stream` and `text_frontend`, which share the contract's inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from chattts_client.options import STREAM_DATATYPES
from hypothesis import strategies as st

from tests.fuzz.calls import Call, Expected, Parameter, Tensor, both
from tests.fuzz.values import VALUES, Value, malformed, often

OUTPUTS = {
    "chattts": (
        "audio",
        "sample_rate",
        "used_seed",
        "used_speaker",
        "warning",
        "refined_text",
        "num_tokens",
        "sentences",
        "words",
    ),
    "text_frontend": ("generation", "speaker_embedding", "used_speaker", "warning"),
}
OUTPUTS["chattts_stream"] = (*OUTPUTS["chattts"], "chunk_index", "is_final")
USUAL: dict[str, bytes | int | bool] = {"text": b"Hi.", "skip_refine": True, "max_new_tokens": 4}
HUGE = (2**31, 2**32, 2**40, 2**62, 2**63 - 1)


def judged(values: dict[str, Value]) -> tuple[Expected, tuple[str, ...]]:
    """What the contract says of these inputs together, and which of them it may blame."""
    expected = Expected.ANSWER
    for value in values.values():
        expected = both(expected, value.expected)
    elements = {name: value.element for name, value in values.items()}
    wrong = [name for name, value in values.items() if value.expected is not Expected.ANSWER]
    if elements.get("refine_only") and elements.get("skip_refine"):
        expected, wrong = Expected.REFUSAL, [*wrong, "refine_only"]
    if elements.get("sample_text") and not elements.get("speaker_sample"):
        expected, wrong = Expected.REFUSAL, [*wrong, "sample_text"]
    least, most = elements.get("min_new_tokens", 0), elements.get("max_new_tokens", 2_048)
    if isinstance(least, int) and isinstance(most, int) and least > most:
        expected, wrong = Expected.REFUSAL, [*wrong, "min_new_tokens", "max_new_tokens"]
    if elements.get("turns"):  # a text beside them is one too many, even where it is none
        expected = Expected.REFUSAL if elements.get("text") else Expected.EITHER
        wrong += ["turns", "ssml"]
    elif "text" not in elements:
        expected, wrong = Expected.REFUSAL, [*wrong, "text", "has 0 inputs"]
    if elements.get("ssml"):
        expected, wrong = both(expected, Expected.EITHER), [*wrong, "text", "ssml"]
    if expected is not Expected.REFUSAL:  # a prompt that is too long blames what is longest
        wrong += ["text", "speaker_sample", "deadline exceeded"]
    return expected, tuple(wrong)


@st.composite
def speech_calls(draw: st.DrawFn, model: str, *, shapes: bool = True, huge: bool = False) -> Call:
    """A call of `model`, most of it right.

    Args:
        draw: Hypothesis'.
        model: one of OUTPUTS.
        shapes: whether the wire carries shapes, datatypes and names of outputs (`generate_stream` does not); without,
            a malformed tensor may be a right one.
        huge: whether shapes may claim what no memory holds.
    """
    names = [name for name in STREAM_DATATYPES if name != "mode" or model == "chattts_stream"]
    drawn = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    values = {name: Value(element, Expected.ANSWER) for name, element in USUAL.items()}
    values |= {name: draw(VALUES[name]) for name in drawn}
    if draw(often(st.just(False), st.just(True), share=30)):
        del values["text"]
    expected, blames = judged(values)
    tensors = {name: Tensor(name, STREAM_DATATYPES[name], (1, 1), (value.element,)) for name, value in values.items()}
    if draw(often(st.just(False), st.just(True), share=6)):
        name = draw(st.sampled_from(names))
        tensors[name] = draw(malformed(name, claims=HUGE if huge else ()))
        is_certain = shapes and tensors[name].raw is None
        expected = Expected.REFUSAL if is_certain else both(expected, Expected.EITHER)
        blames = ()
    call = Call(model, tuple(tensors.values()), expected=expected, blames=blames)
    return draw(_addressed(call, names_outputs=shapes))


@st.composite
def _addressed(draw: st.DrawFn, call: Call, *, names_outputs: bool) -> Call:
    """`call` once in a while to a place that is not there, or with more or less around it."""
    outputs = OUTPUTS[call.model]
    places = ["version", "model", "input", "parameters", *(["outputs", "output"] if names_outputs else [])]
    what = draw(often(st.just(""), st.sampled_from(places)))
    changes: dict[str, Any] = {}
    if what == "outputs":
        changes["outputs"] = tuple(draw(st.lists(st.sampled_from(outputs), min_size=1, unique=True)))
    elif what == "output":
        changes["outputs"] = (draw(st.sampled_from(["", "Audio", "seed", "audio ", "\0", "x" * 1_000])), outputs[0])
    elif what == "version":
        changes["version"] = draw(st.sampled_from(["1", "2", "99", "0"]))
    elif what == "model":
        others = ["nope", "CHATTTS", "chattts2", "x" * 2_000, "..", "chattts_", "speech-chunk"]
        changes["model"] = draw(st.sampled_from(others))
    elif what == "input":
        name = draw(st.sampled_from(["volume", "", "Text", "text ", "generation", "é", "x" * 1_000]))
        changes["tensors"] = (*call.tensors, Tensor(name, "FP32", (1, 1), (1.0,)))
    elif what == "parameters":
        keys = st.sampled_from(_PARAMETERS)
        changes["parameters"] = draw(st.dictionaries(keys, _parameter_values(), min_size=1, max_size=3))
    else:
        return call
    is_there = what == "outputs" or changes.get("version") == "1"
    unknown = Expected.EITHER if what == "parameters" else Expected.REFUSAL
    expected = call.expected if is_there else both(call.expected, unknown)
    return replace(call, **{"blames": (), "expected": expected, **changes})


# Of Triton's sequences, priorities, timeouts and answers, and one that nobody knows. `classification` of a STRING
# output crashes Triton 2.51, but belongs to an output and not to a request.
_PARAMETERS = (
    *("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "binary_data_output", "headers"),
    *("triton_enable_empty_final_response", "classification", "shared_memory_region", "anything", "é", ""),
)


def _parameter_values() -> st.SearchStrategy[Parameter]:
    return st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.sampled_from(["", "x", "1"]), st.floats(-1, 1))
