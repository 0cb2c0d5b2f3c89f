"""What a server may answer to anything: the sound that the contract promises, or a refusal that names its cause."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.text.script import PAUSES
from chattts_serving.voice.speaker import decode_speaker
from tests.fuzz.calls import Call, Expected

Outputs = Mapping[str, np.ndarray]
"""The output tensors of one response by name, the batch dimension included."""

OK = "OK"
OF_A_STREAM = "STREAM"  # Triton sends the errors of a gRPC stream without a status
# The statuses that say that the caller did something wrong or has to wait; all others are failures of the server.
REFUSALS = frozenset(
    ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "UNAVAILABLE", "CANCELLED", "OUT_OF_RANGE", OF_A_STREAM)
)
# Words of a failure that says nothing of its cause.
UNNAMED = re.compile(
    "the server's log has the cause|Traceback|Failed to process the request|Stub process|unexpected deadlock"
)


@dataclass(frozen=True)
class TritonsOwn:
    """A status of Triton's own that would be a failure of ours: with a `message` (a pattern), and why it is none."""

    status: str
    message: str
    reason: str


TRITONS_OWN = (
    TritonsOwn(
        "500",
        r"failed to parse the request JSON buffer|Unable to parse|Unable to set|attempt to get members for non-object"
        r"|Expected JSON object|attempt to access",
        "Triton's JSON reader knows INTERNAL alone; the message says where the JSON is wrong",
    ),
    TritonsOwn("INTERNAL", "^Unable to parse request$", "gRPC's own answer to bytes that are not the method's message"),
    TritonsOwn("UNIMPLEMENTED", "^$", "gRPC's own answer to a method that there is not; it has no words"),
    TritonsOwn("501", "Unsupported compression type", "a Content-Encoding other than gzip and deflate"),
    TritonsOwn("405", "Method Not Allowed", "a path that wants another method"),
    TritonsOwn(
        "INTERNAL",
        r"onnx runtime error [12]: Non-zero status code returned while running \w+ node",
        "ONNX Runtime's codes do not tell whose fault tensors are that do not fit each other; it names the node. Only "
        "callers of dvae_decoder, dvae_encoder and vocos themselves can send such",
    ),
    TritonsOwn("500", r"onnx runtime error [12]: ", "the same over HTTP"),
)


class UnexpectedError(AssertionError):
    """An answer that the contract does not know; the message says how it differs."""


@dataclass(frozen=True)
class Answer:
    """What came back: OK and the responses, or the status and the message of a refusal."""

    status: str
    message: str = ""
    responses: tuple[Outputs, ...] = ()


def check_refusal(answer: Answer, blames: Sequence[str] = ()) -> None:
    """Check that `answer`, which is not OK, is the caller's fault and says what is.

    Raises:
        UnexpectedError: it is not, or does not.
    """
    for own in TRITONS_OWN:
        if answer.status == own.status and re.search(own.message, answer.message):
            return
    is_ours = answer.status in REFUSALS or (answer.status.isdecimal() and 400 <= int(answer.status) < 500)
    if not (is_ours or answer.status == "503"):
        raise UnexpectedError(f"status {answer.status}: {answer.message}")
    if not answer.message or UNNAMED.search(answer.message):
        raise UnexpectedError(f"a refusal without a cause: {answer}")
    if blames and not any(blame in answer.message for blame in blames):
        raise UnexpectedError(f"a refusal that names none of {', '.join(blames)}: {answer.message}")


def check(call: Call, answer: Answer) -> None:
    """Check `answer` against what the contract says of `call`.

    Raises:
        UnexpectedError: it differs.
    """
    if answer.status != OK:
        if call.expected is Expected.ANSWER:
            raise UnexpectedError(f"a good call was refused: {answer.status}: {answer.message}")
        check_refusal(answer, call.blames)
        return
    if call.expected is Expected.REFUSAL:
        raise UnexpectedError(f"a bad call was answered with {[sorted(one) for one in answer.responses]}")
    if call.model == "chattts_stream":
        check_stream(call, answer.responses)
        return
    if len(answer.responses) != 1:
        raise UnexpectedError(f"{len(answer.responses)} responses")
    if call.model in CHECKS:
        CHECKS[call.model](call, answer.responses[0])


def check_stream(call: Call, responses: Sequence[Outputs]) -> None:
    """Check the chunks of a stream one by one, and what they add up to."""
    if not responses:
        raise UnexpectedError("a stream without a chunk")
    for index, chunk in enumerate(responses):
        _expect("names of outputs", set(chunk), set(call.outputs) or set(chunk))
        if "chunk_index" in chunk:
            _expect("chunk_index", chunk["chunk_index"].tolist(), [[index]])
        if "is_final" in chunk:
            _expect("is_final", chunk["is_final"].tolist(), [[index == len(responses) - 1]])
    first = responses[0]
    whole = {name: first[name] for name in ("sample_rate", "used_seed", "used_speaker", "warning") if name in first}
    if "audio" in first:
        whole["audio"] = np.concatenate([chunk["audio"] for chunk in responses], axis=1)
    if "num_tokens" in first:
        whole["num_tokens"] = sum(chunk["num_tokens"] for chunk in responses)
    for name in {"sentences", "words"} & set(first):
        listed = [one for chunk in responses for one in json.loads(chunk[name].item())]
        whole[name] = np.array([[json.dumps(listed).encode()]], np.object_)
    if "refined_text" in first:
        texts = [chunk["refined_text"].item() for chunk in responses]
        whole["refined_text"] = np.array([[b"\n".join(text for text in texts if text)]], np.object_)
    check_speech(call, whole)


def check_speech(call: Call, outputs: Outputs) -> None:
    """Check that the samples are what tokens and sentences say; outputs that were not asked for are left out."""
    for name, array in outputs.items():
        if name != "audio":
            _expect(f"shape of {name}", array.shape, (1, 1))
    if "sample_rate" in outputs:
        _expect("sample_rate", outputs["sample_rate"].item(), SAMPLE_RATE)
    seed = call.value("seed")
    if "used_seed" in outputs and seed is not None:
        _expect("used_seed", outputs["used_seed"].item(), seed)
    if "used_speaker" in outputs and outputs["used_speaker"].item():
        decode_speaker(outputs["used_speaker"].item().decode())
    if "audio" in outputs:
        _expect("dimensions of audio", outputs["audio"].shape[:-1], (1,))
        _expect("finite samples", bool(np.isfinite(outputs["audio"]).all()), True)
    if not {"audio", "num_tokens", "sentences"} <= set(outputs):
        return
    sentences = json.loads(outputs["sentences"].item())
    _expect("num_tokens", outputs["num_tokens"].item(), sum(one["num_tokens"] for one in sentences))
    _expect("samples", outputs["audio"].shape[1], _samples_of(sentences))
    if call.value("refine_only"):
        _expect("sentences of refine_only", sentences, [])
        return
    _check_words(call, outputs, sentences)
    if "refined_text" in outputs:
        _expect("refined_text", outputs["refined_text"].item().decode(), "\n".join(one["text"] for one in sentences))
    for one in sentences:
        most = call.value("max_new_tokens", one["num_tokens"])
        if not max(1, call.value("min_new_tokens", 0)) <= one["num_tokens"] <= most:
            raise UnexpectedError(f"{one['num_tokens']} tokens, but max_new_tokens is {most}")
        _expect("finish_reason", one["finish_reason"] in ("stop", "length", "late"), True)
        if one["finish_reason"] == "length":
            _expect("num_tokens of a sentence that was cut", one["num_tokens"], most)


def _check_words(call: Call, outputs: Outputs, sentences: list[dict[str, Any]]) -> None:
    """Check that words are in order, each within its sentence, and that there are some where they are wanted."""
    if "words" not in outputs:
        return
    words, wanted = json.loads(outputs["words"].item()), range(len(sentences)) if call.value("word_times") else ()
    _expect("sentences with words", {one["sentence"] for one in words}, set(wanted))
    ends = [0.0, *(one["end"] for one in words)]
    for word, before in zip(words, ends, strict=False):
        within = sentences[word["sentence"]]
        times = before, within["start"], word["start"], word["end"], within["end"]
        _expect("order of words", max(times[:2]) <= times[2] <= times[3] <= times[4], True)


def _samples_of(sentences: Sequence[Mapping[str, Any]]) -> int:
    """How many samples `sentences` take, whose times are checked on the way."""
    pauses = set(PAUSES.values())
    end = 0
    for place, one in enumerate(sentences):
        start = round(one["start"] * SAMPLE_RATE)
        if (start - end not in pauses) if place else start:
            raise UnexpectedError(f"sentence {place} starts {start - end} samples after the end of the one before")
        end = start + num_samples(one["num_tokens"])
        _expect(f"end of sentence {place} in samples", round(one["end"] * SAMPLE_RATE), end)
    return end


def _check_frontend(call: Call, outputs: Outputs) -> None:
    if "generation" in outputs:
        generation = json.loads(outputs["generation"].item())
        _expect("sentences", len(generation["texts"]), len(generation["prompts"]))
    if "speaker_embedding" in outputs:
        _expect("finite embedding", bool(np.isfinite(outputs["speaker_embedding"]).all()), True)
        norm = float(np.linalg.norm(outputs["speaker_embedding"]))
        _expect("norm of the embedding, to 1 %", abs(norm - 1) < 0.01, True)


def _check_speech_of(call: Call, outputs: Outputs) -> None:
    _expect("names of outputs", set(outputs), set(call.outputs) or set(outputs))
    check_speech(call, outputs)


CHECKS = {"chattts": _check_speech_of, "speech": check_speech, "text_frontend": _check_frontend}


def _expect(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise UnexpectedError(f"{what}: {found}, not {wanted}")
