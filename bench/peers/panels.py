"""What a picture shows of `bench peers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.peers.table import Group, Point, Turn, median_ms, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]
Panel = Callable[["Axes", Sequence[Run], Sequence[str]], None]

MEASURES = {"cpu_ms": "CPU ms a step, one thread", "wall_ms": "ms a step, all threads"}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def peers_panels(runs: Sequence[Run]) -> list[Panel]:
    """Of each run, a panel for each precision and measure, quiet and beside busy loops, at the longest context."""
    return [
        partial(_panel, place=place, group=group, what=what)
        for place, run in enumerate(runs)
        for group in groups_of(run)
        for what in MEASURES
    ]


def groups_of(run: Run) -> list[Group]:
    """The groups that were measured, as they were."""
    return [
        Group(**{**group, "peers": tuple(group["peers"]), "others": tuple(group["others"])}) for group in run["groups"]
    ]


def turns_of(run: Run) -> list[Turn]:
    """Its turns."""
    return [Turn(**{**turn, "point": Point(**turn["point"])}) for turn in run["turns"]]


def _panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, place: int, group: Group, what: str) -> None:
    """Bars of the others' times by ours, up from 1 where they are slower; below, sequences and our time."""
    run = runs[place]
    turns, settings = turns_of(run), run["settings"]
    context = max(settings["contexts"])
    threads = 1 if what == "cpu_ms" else settings["threads"]
    points = [point for point in points_of(turns, threads) if point.context == context]
    ours = [median_ms(turns, group.ours, point, what) or math.nan for point in points]
    there = {turn.system for turn in turns if turn.point.threads == threads}
    others = [system for system in group.systems[1:] if system in there]
    width = 0.8 / len(others)
    for number, system in enumerate(others):
        times = [median_ms(turns, system, point, what) or math.nan for point in points]
        x = [at + width * number for at in range(len(points))]
        heights = [time / own - 1 for time, own in zip(times, ours, strict=True)]
        bars = axes.bar(x, heights, width, bottom=1, color=COLOURS[number % len(COLOURS)], label=system)
        axes.bar_label(bars, [f"{1 + height:.2f}" for height in heights], fontsize=7)
    axes.axhline(1, color="black", lw=0.8)
    names = [
        f"{point.sequences}\n{own:.3g} ms\n" + (f"{point.busy} loops" if point.busy else "quiet")
        for point, own in zip(points, ours, strict=True)
    ]
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(points))], names, fontsize=8)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.margins(y=0.25)
    axes.set_xlabel(f"sequences, and our time of a step; context {context}")
    axes.set_ylabel(f"{MEASURES[what]}, by ours")
    name = f"{group.ours} is 1"
    axes.set_title(f"{name}, {labels[place]}" if len(runs) > 1 else name, fontsize=9)
    axes.legend(fontsize=8)
