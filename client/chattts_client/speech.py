"""The answer to a synthesis, whole or in chunks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from chattts_client import audio_file
from chattts_client.errors import ServerError, invalid_input

Outputs = Callable[[str], "NDArray[Any] | None"]
"""Name of an output -> its array, None where there is none."""
Listed = TypeVar("Listed")


@dataclass(frozen=True)
class Sentence:
    """One sentence as it was spoken.

    Attributes:
        text: its words, control tags included.
        start, end: its place in the audio, in seconds; in a stream from the start of the stream.
        num_tokens: audio tokens, 512 samples each.
        finish_reason: "stop"; "length" where it reached `max_new_tokens` and was cut; or "late" where it ended long
            after its text can have been said.
        turn: which of the option `turns` it belongs to, 0 or more; None where there are none.
        name: who speaks in that turn.
    """

    text: str
    start: float
    end: float
    num_tokens: int
    finish_reason: str
    turn: int | None = None
    name: str = ""

    @property
    def is_cut(self) -> bool:
        """Whether `max_new_tokens` was too few for it."""
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Word:
    """One word as it was spoken, or a whole sentence where the server cannot tell when its words are said.

    Attributes:
        text: the word, in Chinese a character, without marks; of a sentence as `Sentence` has it.
        start, end: its place in the audio, in seconds; in a stream from the start of the stream.
        sentence: which sentence of the answer it belongs to, 0 or more.
        confidence: how sure its times are, 0 to 1; 0 of a sentence.
    """

    text: str
    start: float
    end: float
    sentence: int
    confidence: float


@dataclass(frozen=True, eq=False)  # comparing arrays gives an array
class Speech:
    """What the server said.

    Attributes:
        audio: FP32 [num_samples], mono, within about -1 to 1; no sample after `refine_only`.
        sample_rate: samples per second, 24,000.
        seed: the seed that made it, to make it again.
        speaker: the ChatTTS speaker string of the voice, to use it again; "" where a recording alone decided. Several
            voices have a line each, in the order in which they first speak.
        refined_text: the text as it was spoken, a sentence a line, control tags included.
        num_tokens: audio tokens, 512 samples each.
        sentences: where in the audio each sentence is; none after `refine_only`.
        warning: what of the text is not spoken, or that words have no times, in words; "" where all is as wanted.
        words: when each word is said, where the option `word_times` asks for that.
    """

    audio: NDArray[np.float32]
    sample_rate: int
    seed: int
    speaker: str
    refined_text: str
    num_tokens: int
    sentences: tuple[Sentence, ...]
    warning: str = field(default="", kw_only=True)
    words: tuple[Word, ...] = field(default=(), kw_only=True)

    @property
    def duration(self) -> float:
        """Length of the audio in seconds."""
        return len(self.audio) / self.sample_rate

    def save(self, path: str | os.PathLike[str], *, floating: bool = False) -> None:
        """Write an audio file by the ending of `path`: .wav (16-bit; `floating`: 32-bit float), .flac, .ogg, .mp3.

        A file of that name is replaced; after an error no partial file stays.

        Raises:
            InvalidInputError: the ending is unknown, `floating` with another than .wav, or no audio to write.
            OSError: the audio cannot be encoded, or the file not written.
        """
        audio_file.save(path, self.audio, self.sample_rate, floating=floating)


@dataclass(frozen=True, eq=False)
class Chunk(Speech):
    """The next part of a stream: its audio and tokens, the text that begins and the sentences that end in it.

    Attributes:
        index: 0 for the first chunk.
        is_final: whether it is the last one, which may have no sample.
    """

    index: int
    is_final: bool


def joined(chunks: Sequence[Chunk]) -> Speech:
    """The speech that `chunks`, all of one stream in their order, make up.

    Raises:
        InvalidInputError: there is none.
    """
    if not chunks:
        raise invalid_input("chunks", chunks, "1 or more chunks")
    return Speech(
        audio=np.concatenate([chunk.audio for chunk in chunks]),
        sample_rate=chunks[0].sample_rate,
        seed=chunks[0].seed,
        speaker=chunks[0].speaker,
        refined_text="\n".join(chunk.refined_text for chunk in chunks if chunk.refined_text),
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        sentences=tuple(sentence for chunk in chunks for sentence in chunk.sentences),
        warning=chunks[-1].warning,  # of a text that came in pieces, the last one knows all of it
        words=tuple(word for chunk in chunks for word in chunk.words),
    )


def speech_from(outputs: Outputs) -> Speech:
    """The `Speech` in an answer of `chattts`.

    Raises:
        ServerError: an output of the contract is missing, or not what the contract says.
    """
    return Speech(**_fields(outputs))


def chunk_from(outputs: Outputs) -> Chunk:
    """The `Chunk` in an answer of `chattts_stream`.

    Raises:
        ServerError: as `speech_from`.
    """
    index, is_final = int(value_of(outputs, "chunk_index")), bool(value_of(outputs, "is_final"))
    return Chunk(**_fields(outputs), index=index, is_final=is_final)


def value_of(outputs: Outputs, name: str) -> Any:
    """The one element of an output.

    Raises:
        ServerError: it is missing, or has no or several elements.
    """
    array = _array(outputs, name)
    if array.size != 1:
        raise ServerError(f"output '{name}' has {array.size} elements; the contract says 1", "INTERNAL")
    return array.reshape(-1)[0]


def text_of(outputs: Outputs, name: str) -> str:
    """The one element of a STRING output.

    Raises:
        ServerError: as `value_of`.
    """
    value: bytes = value_of(outputs, name)
    return value.decode("utf-8")


def _array(outputs: Outputs, name: str) -> NDArray[Any]:
    array = outputs(name)
    if array is None:
        raise ServerError(f"the answer has no output '{name}'", "INTERNAL")
    return array


def _fields(outputs: Outputs) -> dict[str, Any]:
    """The fields that whole answers and chunks share."""
    return {
        # A copy, since the answer's buffer is read-only, and without the batch of one.
        "audio": np.array(_array(outputs, "audio").reshape(-1), dtype=np.float32),
        "sample_rate": int(value_of(outputs, "sample_rate")),
        "seed": int(value_of(outputs, "used_seed")),
        "speaker": text_of(outputs, "used_speaker"),
        "refined_text": text_of(outputs, "refined_text"),
        "num_tokens": int(value_of(outputs, "num_tokens")),
        "sentences": _listed(Sentence, outputs, "sentences"),
        "words": _listed(Word, outputs, "words") if outputs("words") is not None else (),  # as servers once were
        "warning": text_of(outputs, "warning"),
    }


def _listed(kind: Callable[..., Listed], outputs: Outputs, name: str) -> tuple[Listed, ...]:
    text = text_of(outputs, name)
    try:
        return tuple(kind(**entry) for entry in json.loads(text))
    except (TypeError, ValueError) as error:
        raise ServerError(f"output '{name}' is not the contract's list: {text[:100]}", "INTERNAL") from error
