"""How much each phase measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """Sizes of a run.

    Attributes:
        read_bytes: read and copied to measure the memory's bandwidth.
        product_rows: of the square matrices whose product is timed.
        waits: for an event, timed.
        repeats: of whatever is timed by events.
        steps: of the engine, timed by the wall.
        draws, draw_tokens: sequences compared with PyTorch, and tokens that each draws.
        needles, crowd, needle_tokens: requests run alone and among others, those others included, and their tokens.
        grid_lanes, grid_contexts: sequences, and tokens of context, of the grid of decode steps.
        profiled: (sequences, context) whose kernels are listed.
        sampled_lanes: sequences that draw at once.
        prefill_tokens: prompt tokens of one step at most; the largest bucket of prompts.
        watched, rounds: (sequences, context) whose words are timed, and how often.
        join_lanes, join_rates, join_s: sequences that run, newcomers a second, and for how long, s.
        spoken: (lanes, tokens of a sentence, sentences) through the synthesizer.
        rendered: (rows, tokens of each) through decoder and vocoder.
        chattts: (tokens of a sentence, sentences at once) of the ChatTTS package.
    """

    read_bytes: int = 2**31
    product_rows: int = 8192
    waits: int = 200
    repeats: int = 20
    steps: int = 40
    draws: int = 24
    draw_tokens: int = 24
    needles: int = 8
    crowd: int = 64
    needle_tokens: int = 40
    grid_lanes: tuple[int, ...] = (1, 8, 64, 128, 256)
    grid_contexts: tuple[int, ...] = (300, 150, 1500)
    profiled: tuple[tuple[int, int], ...] = ((1, 300), (64, 300), (256, 150))
    sampled_lanes: tuple[int, ...] = (1, 64, 256)
    prefill_tokens: int = 4096
    watched: tuple[tuple[int, int], ...] = ((1, 150), (64, 150), (64, 300))
    rounds: int = 3
    join_lanes: int = 64
    join_rates: tuple[int, ...] = (100, 300)
    join_s: float = 1.5
    spoken: tuple[tuple[int, int, int], ...] = ((64, 96, 512), (256, 96, 2048), (256, 192, 1024))
    rendered: tuple[tuple[int, int], ...] = ((1, 160), (16, 160), (64, 160))
    chattts: tuple[int, int] = (96, 4)


DRY = Counts(
    read_bytes=2**20,
    product_rows=64,
    waits=2,
    repeats=2,
    steps=3,
    draws=4,
    draw_tokens=3,
    needles=2,
    crowd=4,
    needle_tokens=3,
    grid_lanes=(1, 4),
    grid_contexts=(20,),
    profiled=((4, 20),),
    sampled_lanes=(1, 4),
    prefill_tokens=128,
    watched=((4, 20),),
    rounds=1,
    join_lanes=4,
    join_rates=(100,),
    join_s=0.1,
    spoken=((4, 6, 8),),
    rendered=((1, 16), (2, 16)),
    chattts=(6, 2),
)
