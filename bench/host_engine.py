"""What the engine's thread costs where the model costs nothing, without a server: CPU time of a step and of a sentence.

The model is `PacedRunner` at no pace at all. Callers are another thread, whose time does not count.
"""

from __future__ import annotations

import queue
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.model import OFFICIAL, sentence_request
from bench.paced import Pace, PacedRunner, PacedStep
from chattts_serving.engine.batch import Batch
from chattts_serving.engine.engine import Engine
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from chattts_serving.request import GenerationRequest, SamplingOptions
from chattts_serving.speech.opening import Opening, Part
from chattts_serving.speech.synthesizer import Synthesizer
from chattts_serving.speech.windows import ReadingPlan
from chattts_serving.words import SentencePlaces

PREFILL_TOKENS = 512
STEPS = 400  # of a batch that nobody reads
ROUNDS = 4  # sentences of each sequence of the batch
FULL = 0.95  # of a batch: somebody is always about to leave
PROMPT = (5,) * 40
# As the models `speech` and `chattts_stream` read.
PLANS = {"whole": ReadingPlan((512,), 512, sentences_ahead=16), "streams": ReadingPlan((16, 24, 32, 48), 256)}
COLUMNS = ("sequences", "what", "batch", "us/step", "us/sentence", "sentences/s a core")


class _Timed(PacedRunner):
    """Takes the time of each launch.

    Attributes:
        thread_seconds: CPU time of the thread that launches, at each launch.
        batch_sizes: sequences of each launch.
    """

    def __init__(self, tokens: int, batch: int) -> None:
        super().__init__(OFFICIAL, Pace(tokens, ((1, 0.0),)), batch)
        self.thread_seconds: list[float] = []
        self.batch_sizes: list[int] = []

    def launch(self, batch: Batch) -> PacedStep:
        """As `Runner`."""
        self.thread_seconds.append(time.thread_time())
        self.batch_sizes.append(len(batch))
        return super().launch(batch)


class _NoText:
    """`PromptBuilder` of requests that are not refined."""

    def refined_text(self, _ids: tuple[int, ...]) -> str:
        """Never asked for."""
        raise NotImplementedError

    def code_prompt(self, *_: Any, **__: Any) -> tuple[int, ...]:
        """Never asked for."""
        raise NotImplementedError

    def places(self, *_: Any, **__: Any) -> SentencePlaces:
        """Never asked for."""
        raise NotImplementedError


def measure(batches: list[int], tokens: int, advance: Callable[[], object]) -> list[dict[str, object]]:
    """One row for each of `batches` and each way, with the keys of COLUMNS; sentences have `tokens` tokens."""
    rows = []
    for batch in batches:
        for what in ("engine alone", *PLANS):
            runner = _Timed(tokens, batch)
            if what == "engine alone":
                _step_alone(runner, batch, tokens)
            else:
                _speak(runner, batch, tokens, PLANS[what])
            rows.append(_row(runner, batch, what, tokens))
            advance()
    return rows


def num_rows(batches: list[int]) -> int:
    """How many rows `measure` makes."""
    return len(batches) * (1 + len(PLANS))


def _row(runner: _Timed, batch: int, what: str, tokens: int) -> dict[str, object]:
    """Of the steps from the first full batch to the last one."""
    full = [number for number, size in enumerate(runner.batch_sizes) if size >= FULL * batch]
    first, last = full[0], full[-1]
    seconds = runner.thread_seconds[last] - runner.thread_seconds[first]
    sizes = runner.batch_sizes[first:last]
    us_a_sentence = 1e6 * seconds / sum(sizes) * (tokens + 1)  # the end is a draw, too
    values = (batch, what, statistics.mean(sizes), 1e6 * seconds / len(sizes), us_a_sentence, 1e6 / us_a_sentence)
    return dict(zip(COLUMNS, values, strict=True))


def _engine(runner: _Timed, batch: int) -> Engine:
    return Engine(runner, max_sequences=batch, max_prefill_tokens=PREFILL_TOKENS)


def _step_alone(runner: _Timed, batch: int, tokens: int) -> None:
    """Sentences that follow each other, in a batch that is always full, and that nobody reads."""
    engine, number = _engine(runner, batch), 0
    while len(runner.batch_sizes) < STEPS:
        while engine.num_waiting + engine.num_running < batch + 1:
            params = SamplingParams(0.3, 0.7, 20, 1.05, 0, _most_tokens(number, batch, tokens), seed=number, stream=1)
            engine.add(Sequence(Kind.AUDIO, PROMPT, params))
            number += 1
        engine.step()


def _most_tokens(number: int, batch: int, tokens: int) -> int:
    """Of a sentence: more than it has, but for the first ones, so that they do not all end together."""
    return 1 + tokens * (number + 1) // batch if number < batch else tokens + 1


def _speak(runner: _Timed, batch: int, tokens: int, plan: ReadingPlan) -> None:
    """A few more requests of one sentence than fit into the batch, a new one for each that is read to its end."""
    synthesizer = Synthesizer(
        lambda: _engine(runner, batch),
        _NoText(),
        max_requests=4 * batch,
        max_batch_requests=0,
        max_sentences_at_once=16,
        max_sequences=batch,
        lease_s=60.0,
    )
    ended: queue.SimpleQueue[object] = queue.SimpleQueue()
    speaker = np.full(OFFICIAL.hidden_size, OFFICIAL.hidden_size**-0.5, np.float32)

    def start(number: int) -> None:
        def reply(outcome: object) -> None:
            if isinstance(outcome, Part) and not outcome.chunk.is_final:
                synthesizer.read(str(number), reply)
            else:
                ended.put(outcome)

        synthesizer.open(
            str(number), Opening(_request(number, _most_tokens(number, batch, tokens)), speaker, plan), reply
        )

    num_open = batch + max(8, batch // 8)
    for number in range(num_open):
        start(number)
    total = num_open + ROUNDS * batch
    for number in range(num_open, total + num_open):
        outcome = ended.get()
        if not isinstance(outcome, Part):
            raise TypeError(f"a sentence was answered {outcome!r}")
        if number < total:
            start(number)
    synthesizer.close()


def _request(number: int, most_tokens: int) -> GenerationRequest:
    return sentence_request(number, PROMPT, SamplingOptions(max_new_tokens=most_tokens))
