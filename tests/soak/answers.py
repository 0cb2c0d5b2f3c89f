"""What every answer must be, whatever was asked: the contract of `chattts` and `chattts_stream` in numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from chattts_client import Chunk, Speech, joined

from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.text.script import PAUSES

GAPS = set(PAUSES.values())  # samples of silence (docs/streaming.md has them in ms)
CLOSE = 1e-4  # largest difference of samples that were computed in different batches


def fault_of(speech: Speech, *, least: int = 0, most: int) -> str | None:
    """What is wrong with `speech`, whose sentences may have `least` to `most` tokens; None where nothing is."""
    return next(_faults(speech, least, most), None)


def _faults(speech: Speech, least: int, most: int) -> Iterator[str]:
    if speech.sample_rate != SAMPLE_RATE:
        yield f"the sample rate is {speech.sample_rate}"
    if not np.isfinite(speech.audio).all():
        yield "a sample is not finite"
    if speech.refined_text != "\n".join(sentence.text for sentence in speech.sentences):
        yield "the refined text is not that of the sentences"
    if speech.num_tokens != sum(sentence.num_tokens for sentence in speech.sentences):
        yield f"the sentences do not have the {speech.num_tokens} tokens of the answer"
    for sentence in speech.sentences:
        if not least <= sentence.num_tokens <= most:
            yield f"a sentence has {sentence.num_tokens} tokens; asked for were {least} to {most}"
        if sentence.is_cut and sentence.num_tokens != most:
            yield f"a sentence was cut at {sentence.num_tokens} tokens, not at {most}"
    if speech.sentences:
        yield from _faults_of_times(speech)
    else:
        yield "there are no sentences"


def _faults_of_times(speech: Speech) -> Iterator[str]:
    """The sentences' places in the audio, and its length."""
    places = [(_samples(one.start), _samples(one.end)) for one in speech.sentences]
    for (start, end), sentence in zip(places, speech.sentences, strict=True):
        if end - start != num_samples(sentence.num_tokens):
            yield f"a sentence of {sentence.num_tokens} tokens has {end - start} samples"
    gaps = {after[0] - before[1] for before, after in itertools.pairwise(places)}
    if not gaps <= GAPS:
        yield f"the silence between two sentences has {sorted(gaps - GAPS)} samples"
    if places[0][0] != 0 or places[-1][1] != len(speech.audio):
        yield f"the sentences reach from sample {places[0][0]} to {places[-1][1]} of {len(speech.audio)}"


def fault_of_chunks(chunks: Sequence[Chunk], *, least: int = 0, most: int) -> str | None:
    """What is wrong with the chunks of a stream; as `fault_of`."""
    if [chunk.index for chunk in chunks] != list(range(len(chunks))):
        return f"the chunks have the numbers {[chunk.index for chunk in chunks]}"
    if [chunk.is_final for chunk in chunks] != [False] * (len(chunks) - 1) + [True]:
        return "another chunk than the last one is the last one"
    return fault_of(joined(chunks), least=least, most=most)


def difference(speech: Speech, reference: Speech, *, close: float) -> str | None:
    """In what `speech` is not `reference`, samples that differ by `close` at most being the same; None in nothing."""
    if speech.sentences != reference.sentences or speech.seed != reference.seed or speech.speaker != reference.speaker:
        return "the control sentence has other tokens, times or another voice than at first"
    if len(speech.audio) != len(reference.audio):
        return f"the control sentence has {len(speech.audio)} samples, at first it had {len(reference.audio)}"
    furthest = float(np.abs(speech.audio - reference.audio).max())
    return None if furthest <= close else f"the control sentence differs by {furthest:.2g} from the first time"


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)
