"""Who speaks in a request: the voices of its turns, and in which manner each turn is spoken."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_NAME_CHARACTERS, MAX_VOICES, Manner, SynthesisRequest
from chattts_serving.text.turns import Turn
from chattts_serving.voice.speaker import decode_sample
from chattts_serving.voice.voices import Speaker


class Cast:
    """Voices and manners as turns bring them; those that are equal are one.

    Attributes:
        manners: how sentences are spoken.
    """

    def __init__(self) -> None:
        """Nobody speaks yet."""
        self.manners: list[Manner] = []
        self._speakers: list[Speaker] = []
        self._strings: list[str] = []
        self._turn_manners: list[int] = []
        self._turns: list[int] = []

    def add(self, turn: Turn, speaker: Speaker, num_sentences: int) -> None:
        """`turn` has so many sentences, in the voice of `speaker`, whose vector stands in the prompt if `has_speaker`.

        Raises:
            InvalidInputError: its recording is none, or there are too many voices.
        """
        request = turn.request
        manner = Manner(
            prompt=request.prompt,
            sample_text=request.sample_text,
            sample_codes=decode_sample(request.speaker_sample) if request.speaker_sample else (),
            has_speaker=has_speaker(request),
            sampling=request.sampling,
            voice=self._voice(speaker, is_heard=has_speaker(request)),
            name=turn.name or (request.speaker if len(request.speaker) <= MAX_NAME_CHARACTERS else ""),
        )
        if manner not in self.manners:
            self.manners.append(manner)
        self._turns += [len(self._turn_manners)] * num_sentences
        self._turn_manners.append(self.manners.index(manner))

    @property
    def embedding(self) -> npt.NDArray[np.float32]:
        """The voices' vectors at length 1, one after the other, float32 [num_voices * hidden]."""
        return np.concatenate([speaker.embedding for speaker in self._speakers])

    @property
    def used_speakers(self) -> str:
        """The voices' speaker strings, a line each; empty where a recording alone decides."""
        return "\n".join(self._strings)

    def parts(self) -> dict[str, Any]:
        """The fields of `GenerationRequest` that say who speaks in which turn."""
        return {
            "manners": tuple(self.manners),
            "turn_manners": tuple(self._turn_manners),
            "turns": tuple(self._turns),
        }

    def _voice(self, speaker: Speaker, *, is_heard: bool) -> int:
        """The place of `speaker` among the vectors."""
        string = speaker.text if is_heard else ""
        for place, (known, of_known) in enumerate(zip(self._speakers, self._strings, strict=True)):
            if of_known == string and np.array_equal(known.embedding, speaker.embedding):
                return place
        if len(self._speakers) == MAX_VOICES:
            raise InvalidInputError("speaker", string, f"one of at most {MAX_VOICES} voices in one request")
        self._speakers.append(speaker)
        self._strings.append(string)
        return len(self._speakers) - 1


def has_speaker(request: SynthesisRequest) -> bool:
    """A recording without a speaker string decides the voice alone, as in ChatTTS: a sampled voice would blur it."""
    return bool(request.speaker) or not request.speaker_sample
