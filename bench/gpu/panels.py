"""What a picture shows of GPU checks, drawn from their records on any machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]
Panel = Callable[["Axes", Sequence[Run], Sequence[str]], None]

STEP_TIMES = {"GPU ms": "-", "wall p50 ms": "--", "floor ms": ":"}
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def gpu_panels(runs: Sequence[Run]) -> list[Panel]:
    """Panels of what any of `runs` measured."""
    panels: list[Panel] = []
    if any(_rows(run, "decode steps", "GPU ms") for run in runs):
        panels += [partial(_step_panel, styles=STEP_TIMES, label="ms a step: GPU, wall (--), floor (:)")]
        panels += [partial(_step_panel, styles={"tokens/s": "-"}, label="tokens/s")]
        panels += [partial(_step_panel, styles={"% of bandwidth": "-"}, label="% of the bandwidth measured")]
    if any(_rows(run, "prompts", "GPU ms") for run in runs):
        panels.append(_prompt_panel)
    return panels


def _rows(run: Run, phase: str, key: str) -> list[dict[str, Any]]:
    """What `phase` found, where there is a `key`."""
    rows = (row for entry in run["phases"] if entry["name"] == phase for row in entry["rows"])
    return [row for row in rows if row.get(key) is not None]


def _step_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, styles: dict[str, str], label: str) -> None:
    """Fields of the decode steps against the number of sequences, a colour for each context."""
    first = next(iter(styles))
    curves = [
        (run, context, name)
        for run, name in zip(runs, labels, strict=True)
        for context in sorted({row["context"] for row in _rows(run, "decode steps", first)})
    ]
    for place, (run, context, name) in enumerate(curves):
        for key, style in styles.items():
            rows = [row for row in _rows(run, "decode steps", key) if row["context"] == context]
            named = f"{name}, context {context}" if key == first else None
            colour = COLOURS[place % len(COLOURS)]
            marker = "o" if key == first else ""
            x, y = [row["sequences"] for row in rows], [row[key] for row in rows]
            axes.plot(x, y, marker + style, color=colour, label=named)
    if label[0] != "%":
        axes.set_yscale("log")
    _against(axes, "sequences in the batch", label)


def _prompt_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    for place, (run, name) in enumerate(zip(runs, labels, strict=True)):
        rows = _rows(run, "prompts", "GPU ms")
        x, y = [row["prompt tokens"] for row in rows], [row["GPU ms"] for row in rows]
        axes.plot(x, y, "o-", color=COLOURS[place % len(COLOURS)], label=name)
    axes.set_yscale("log")
    _against(axes, "prompt tokens of a pass", "ms on the GPU")


def _against(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(fontsize=8)
