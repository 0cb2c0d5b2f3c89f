"""The phases in the order of their worth, and what each takes at least on a GPU."""

from __future__ import annotations

from bench.gpu import checks, speech, steps
from bench.gpu.machine import Machine
from bench.gpu.phases import Phase

PHASES: list[Phase[Machine]] = [
    Phase("hardware", 2, steps.hardware),
    Phase("logits", 15, checks.logits),
    Phase("draws", 10, checks.draws),
    Phase("needles", 10, checks.needles),
    Phase("decode steps", 20, steps.grid),
    Phase("profile", 10, steps.profile),
    Phase("prompts", 8, steps.prompts),
    Phase("sampling", 8, steps.sampling),
    Phase("joins", 10, steps.joins),
    Phase("word times", 5, steps.word_times),
    Phase("synthesizer", 10, speech.synthesizer),
    Phase("decoder and vocoder", 10, speech.rendering),
    Phase("ChatTTS", 45, speech.chattts),
]
