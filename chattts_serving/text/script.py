"""What a request says, in order: sentences, and the silence around them."""

from __future__ import annotations

from chattts_serving.audio import HOP_LENGTH, SAMPLE_RATE, SAMPLES_PER_TOKEN
from chattts_serving.errors import InvalidInputError
from chattts_serving.request import MAX_SENTENCES, MAX_SILENCE_S, MAX_SILENCES_S
from chattts_serving.text.part import NOTHING, SoFar
from chattts_serving.text.sentences import End

# Samples of silence after a piece of text where none is asked for: so many audio tokens of 21.33 ms, and the hop that a
# sentence's last frame lacks. What the model itself leaves at its ends comes on top.
PAUSES = {
    end: num_tokens * SAMPLES_PER_TOKEN + HOP_LENGTH
    for end, num_tokens in {
        End.PARAGRAPH: 28,  # 597 ms
        End.SENTENCE: 12,  # 256 ms
        End.CUT: 4,  # 85 ms: the sentence goes on
    }.items()
}


class Script:
    """Sentences as they are added, and silence in samples: before the first of them and after each.

    Silence that is asked for stands in place of PAUSES and adds up; of PAUSES in one place the longest is kept.
    """

    def __init__(self, before: SoFar = NOTHING) -> None:
        """Nothing is said yet, or the parts `before` of one text are."""
        self.texts: list[str] = []
        self._before = before
        self._usual: list[int] = [before.usual]
        self._asked: list[int | None] = [before.asked]

    @property
    def is_empty(self) -> bool:
        """Whether there is no sentence, nor was one before."""
        return not (self.texts or self._before.num_texts)

    def say(self, text: str) -> None:
        """Add a sentence."""
        self.texts.append(text)
        self._usual.append(0)
        self._asked.append(None)

    def end(self, end: End) -> None:
        """What was read up to here, said or not, ended like this."""
        self._usual[-1] = max(self._usual[-1], PAUSES[end])

    def close(self, end: End) -> None:
        """What was read up to here ended like this, whatever was said of it before."""
        self._usual[-1] = PAUSES[end]

    def pause(self, samples: int) -> None:
        """So much silence is asked for."""
        self._asked[-1] = (self._asked[-1] or 0) + samples

    def pauses(self, name: str) -> tuple[int, ...]:
        """The silence before the first sentence and after each, [len(texts) + 1]; `name` is that of the input.

        The first one is that after the last sentence before, where there was one. The last one is that of an end.

        Raises:
            InvalidInputError: it is too long in one place or altogether, or there are too many sentences.
        """
        num_texts = self._before.num_texts + len(self.texts)
        if num_texts > MAX_SENTENCES:
            raise InvalidInputError(name, f"{num_texts} sentences", f"at most {MAX_SENTENCES} of them")
        silences = [samples for samples in self._asked if samples]
        for samples, most, where in (
            (max(silences, default=0), MAX_SILENCE_S, "in one place"),
            (self._before.silences + sum(silences), MAX_SILENCES_S, "in one request"),
        ):
            if samples > most * SAMPLE_RATE:
                seconds = f"pauses of {samples / SAMPLE_RATE:g} s {where}"
                raise InvalidInputError(name, seconds, f"at most {most} s of pauses {where}")
        usual = [*self._usual[:-1], 0]
        usual[0] = usual[0] if self._before.num_texts else 0
        return tuple(one if asked is None else asked for one, asked in zip(usual, self._asked, strict=True))

    def so_far(self, work: int) -> SoFar:
        """What the next part of the text is told, `work` among it."""
        silences = self._before.silences + sum(samples for samples in self._asked[:-1] if samples)
        num_texts = self._before.num_texts + len(self.texts)
        return SoFar(work, num_texts, self._usual[-1], self._asked[-1], silences)
