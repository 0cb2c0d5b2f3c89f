"""What a picture shows of `bench peers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bench.peers.table import Group, Point, Turn, median_ms, points_of, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]
Panel = Callable[["Axes", Sequence[Run], Sequence[str]], None]

MEASURES = {"cpu_ms": "CPU ms a step, one thread", "wall_ms": "ms a step, all threads"}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


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
    """Bars of the systems for each number of sequences; where ours stand, by how many times the best peer's time."""
    run = runs[place]
    turns, settings = turns_of(run), run["settings"]
    context = max(settings["contexts"])
    points = [
        point for point in points_of(turns, 1 if what == "cpu_ms" else settings["threads"]) if point.context == context
    ]
    width = 0.8 / len(group.systems)
    for number, system in enumerate(group.systems):
        x = [at + width * number for at in range(len(points))]
        times = [median_ms(turns, system, point, what) or 0.0 for point in points]
        bars = axes.bar(x, times, width, color=COLOURS[number % len(COLOURS)], label=system)
        if system == group.ours:
            ratios = [ratio(turns, group, point, what) for point in points]
            axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in ratios], fontsize=8)
    names = [f"{point.sequences}" + (f"\n{point.busy} loops" if point.busy else "\nquiet") for point in points]
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(points))], names)
    axes.set_yscale("log")
    axes.set_xlabel(f"sequences, context {context}; above ours: by the quickest peer's")
    axes.set_ylabel(MEASURES[what])
    axes.set_title(labels[place] if len(runs) > 1 else group.precision, fontsize=9)
    axes.legend(fontsize=8)
