"""What a command line asks for, once it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chattts_client.client import Endpoint
from chattts_client.options import Mode, SynthesisOptions

STANDARD_STREAM = "-"


@dataclass(frozen=True)
class Job:
    """One text and where its audio goes.

    Attributes:
        number: 1 for the first text.
        text: what to say.
        audio: the audio file; None for standard output, and with `--refine-only`.
        subtitles: the subtitle file, None for none.
    """

    number: int
    text: str
    audio: Path | None
    subtitles: Path | None

    @property
    def name(self) -> str:
        """The output as messages call it."""
        return STANDARD_STREAM if self.audio is None else str(self.audio)


@dataclass(frozen=True)
class SpeakCommand:
    """Speak texts.

    Attributes:
        mode: of streams; None asks for whole answers.
        concurrency: texts in flight at once.
        floating: whether samples are written as 32-bit floats.
        json: whether reports go to standard output as JSON.
    """

    endpoint: Endpoint
    options: SynthesisOptions
    mode: Mode | None
    jobs: tuple[Job, ...]
    concurrency: int
    floating: bool
    json: bool


@dataclass(frozen=True)
class VoicesCommand:
    """List the server's voices."""

    endpoint: Endpoint
    json: bool


@dataclass(frozen=True, eq=False)  # comparing arrays gives an array
class CloneCommand:
    """Encode a recording.

    Attributes:
        audio: its samples, [num_samples].
        sample_rate: in Hz.
        transcript: what is said in it, on one line; None where it is not given.
        output: file for the result, None for standard output.
    """

    endpoint: Endpoint
    audio: NDArray[np.float32]
    sample_rate: int
    transcript: str | None
    output: Path | None
