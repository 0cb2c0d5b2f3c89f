"""Whether the engine is right: its logits, its draws, and whether a request is the same whoever is beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from bench.gpu.machine import Machine
from bench.gpu.phases import NotHereError, Row, Wrong
from bench.model import logit_error, logits_too_far, sequence
from chattts_serving.engine.engine import Engine, Finished
from chattts_serving.engine.gpt_config import Precision
from chattts_serving.engine.sequence import Kind
from chattts_serving.engine.sequence import Sequence as Spoken

TEXT_EVERY = 4  # of the sequences compared with PyTorch, every fourth draws text
# In float32 two orders of summing decide a draw between two neighbours once in thousands. In 16 bits a batch of another
# size rounds otherwise, and a sequence goes its own way from the first draw that this decides: its beginning counts.
DRAWN_ALIKE = 0.95  # of the sequences, by the kernels and by PyTorch, in float32
NEEDLES_ALIKE = 0.85  # of the requests, to their end, alone and among others, in float32
LOOKS_ALIKE = 0.98  # of where text heads look; two scores can be equal but for rounding
BEGUN_ALIKE = 0.7  # of the requests, their first token, in 16 bits


def logits(machine: Machine) -> Iterator[Row | Wrong]:
    """Audio logits in each precision against float32 in PyTorch, over the same tokens."""
    for precision in machine.precisions:
        machine.need(10, f"{precision.value} was left out")
        started = time.monotonic()
        engine = machine.crowd_engine(precision)
        warm_s = time.monotonic() - started
        error = logit_error(engine, machine.model(Precision.FP32))
        yield {"precision": precision.value, **error, "warm after s": warm_s}
        if wrong := logits_too_far(precision, error):
            yield Wrong(wrong)


def draws(machine: Machine) -> Iterator[Row | Wrong]:
    """The same sequences by the kernels and by PyTorch in float32, text and audio, prompts of many lengths."""
    counts = machine.counts
    if not machine.computes:
        raise NotHereError("PyTorch's operations need a device that computes")

    def drawn(engine: Engine) -> list[Finished]:
        sequences = [
            sequence(
                machine.config,
                number,
                5 + 11 * number,
                counts.draw_tokens,
                Kind.TEXT if number % TEXT_EVERY == TEXT_EVERY - 1 else Kind.AUDIO,
            )
            for number in range(counts.draws)
        ]
        for one in sequences:
            one.watched = (0, one.num_prompt_tokens)
        ended = {one.sequence: one for one in _run(engine, sequences)}
        return [ended[one] for one in sequences]

    kernels = drawn(machine.crowd_engine(Precision.FP32))
    tokens = sum(one.sequence.max_num_tokens for one in kernels)
    pytorch = drawn(machine.pytorch_engine(Precision.FP32, counts.draws, tokens))
    ones, others = ([one.sequence for one in ended] for ended in (kernels, pytorch))
    yield from _compared("kernels and PyTorch", Precision.FP32, ones, others, DRAWN_ALIKE)
    yield from _looks_compared(kernels, pytorch)


def needles(machine: Machine) -> Iterator[Row | Wrong]:
    """Seeded requests alone, and in a crowd that they join while it runs."""
    counts = machine.counts
    for precision in dict.fromkeys((Precision.FP32, machine.precision)):
        machine.need(5, f"{precision.value} was left out")
        engine = machine.crowd_engine(precision)

        def one(number: int) -> Spoken:
            return sequence(machine.config, number, 20 + 3 * number, counts.needle_tokens)

        alone = [one(number) for number in range(counts.needles)]
        for needle in alone:
            _run(engine, [needle])
        others = [
            sequence(machine.config, 1_000 + number, 10 + 7 * number % 190, 2 * counts.needle_tokens)
            for number in range(counts.crowd - counts.needles)
        ]
        for other in others:
            engine.add(other)
        among = [one(number) for number in range(counts.needles)]
        for needle in among:
            engine.step()
            engine.add(needle)
        _run(engine, [])
        least = NEEDLES_ALIKE if precision is Precision.FP32 else None
        yield from _compared(f"alone and among {counts.crowd - 1}", precision, alone, among, least)


def _run(engine: Engine, sequences: Sequence[Spoken]) -> list[Finished]:
    for one in sequences:
        engine.add(one)
    finished = []
    while not engine.is_idle:
        finished += engine.step()
    return finished


def _looks_compared(ones: Sequence[Finished], others: Sequence[Finished]) -> Iterator[Row | Wrong]:
    """Whether text heads look at the same tokens, in sequences that are alike."""
    pairs = [
        (one.looks, other.looks)
        for one, other in zip(ones, others, strict=True)
        if one.sequence.tokens == other.sequence.tokens and one.looks is not None and other.looks is not None
    ]
    alike = [float(np.mean(one == other)) for one, other in pairs if one.size]
    if not alike:  # which is wrong anyway
        return
    share = float(np.mean(alike))
    yield {"looks compared": "kernels and PyTorch", "sequences": len(alike), "% alike": 100 * share}
    if share < LOOKS_ALIKE:
        yield Wrong(f"text heads look at the same token in {share:.0%} of draws; {LOOKS_ALIKE:.0%} must be")


def _compared(
    what: str, precision: Precision, ones: Sequence[Spoken], others: Sequence[Spoken], least: float | None
) -> Iterator[Row | Wrong]:
    """How many sequences are alike; at least a share `least` must be, or BEGUN_ALIKE of their first tokens."""
    count = len(ones)
    alike = sum(one.tokens == other.tokens for one, other in zip(ones, others, strict=True))
    begun = sum(one.tokens[:1] == other.tokens[:1] for one, other in zip(ones, others, strict=True))
    same = [_same_tokens(one, other) for one, other in zip(ones, others, strict=True)]
    yield {
        "compared": what,
        "precision": precision.value,
        "sequences": count,
        "alike": alike,
        "first token alike": begun,
        "tokens until they differ, mean": float(np.mean(same)),
        "of": float(np.mean([one.params.max_new_tokens for one in ones])),
    }
    short = [one.finish_reason for one in (*ones, *others) if len(one.tokens) < one.params.max_new_tokens]
    if short:
        yield Wrong(f"{what}, {precision.value}: {len(short)} sequences ended early: {short[0]}")
    if least is not None and alike < least * count:
        yield Wrong(f"{what}, {precision.value}: {alike} of {count} sequences are alike; {least:.0%} must be")
    if least is None and begun < BEGUN_ALIKE * count:
        yield Wrong(f"{what}, {precision.value}: {begun} of {count} begin alike; {BEGUN_ALIKE:.0%} must")


def _same_tokens(one: Spoken, other: Spoken) -> int:
    pairs = zip(one.tokens, other.tokens, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one.tokens), len(other.tokens)))
