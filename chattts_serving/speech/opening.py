"""What opens a request, and what each read of it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from chattts_serving.engine.batch import IntArray
from chattts_serving.errors import ServingError
from chattts_serving.request import GenerationRequest
from chattts_serving.speech.windows import Chunk, ReadingPlan
from chattts_serving.words import SentencePlaces

Hidden = npt.NDArray[np.float32]


class PromptBuilder(Protocol):
    """What is needed to speak a refined sentence; `Prompts` is one."""

    def refined_text(self, ids: tuple[int, ...]) -> str:
        """The text of refined token ids."""

    def code_prompt(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> tuple[int, ...]:
        """Token ids of the prompt that has `text` spoken."""

    def places(self, text: str, prompt: str, sample_text: str, *, has_speaker: bool) -> SentencePlaces:
        """Where `text` and its words stand in the prompt that `code_prompt` makes of the same."""


@dataclass(frozen=True)
class Opening:
    """What opens a request.

    Attributes:
        request: what to say.
        speaker: the voices' normalised vectors, one after the other, float32 [request.num_voices * hidden].
        plan: how the audio is read.
        traceparent: W3C's, of what waits for the first chunk; "" where nobody traces it.
    """

    request: GenerationRequest
    speaker: Hidden
    plan: ReadingPlan
    traceparent: str = ""

    def speaker_of(self, voice: int) -> Hidden:
        """The vector of one voice, float32 [hidden]."""
        speaker: Hidden = self.speaker.reshape(self.request.num_voices, -1)[voice]
        return speaker


@dataclass(frozen=True)
class Beginning:
    """How the first chunk of a traced request came to be; times are ns since 1970.

    Attributes:
        traceparent: of its `Opening`.
        came_ns: it was opened.
        launched_ns: the step that computes its prompt was launched.
        drawn_ns: the first token was there.
        ready_ns: all tokens of the chunk were.
    """

    traceparent: str
    came_ns: int
    launched_ns: int
    drawn_ns: int
    ready_ns: int


@dataclass(frozen=True)
class Part:
    """What one read gets.

    Attributes:
        hidden: the hidden states of the chunk's window, float32 [T, hidden]; None where there is no audio.
        mask: of those, float32 [T or T + 1], as `rows_of` makes it.
        codes: the chunk's audio tokens, int32 [num_tokens, num_codebooks].
        chunk: what they are.
        beginning: of the request, with its first chunk, where it is traced.
    """

    hidden: Hidden | None
    mask: npt.NDArray[np.float32] | None
    codes: IntArray
    chunk: Chunk
    beginning: Beginning | None = None


Reply = Callable[["Part | ServingError"], None]
