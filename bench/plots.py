"""Pictures of runs, drawn from their JSON files: one run, or several of the same part in one picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import report
from bench.gpu.panels import gpu_panels
from bench.peers.panels import peers_panels
from chattts_serving.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Run = dict[str, Any]
Panel = Callable[["Axes", Sequence[Run], Sequence[str]], None]
"""(axes, runs, labels of the runs) draws one panel."""

PANEL_INCHES = (6.0, 4.2)
DOTS_PER_INCH = 110
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
LIMITS = {"bandwidth_limit_ms": "--", "compute_limit_ms": ":"}
PERCENTILES = {"p50_s": "-", "p90_s": "--", "p99_s": ":"}
FIRST_AUDIO = {f"first_{key}": style for key, style in PERCENTILES.items()}  # as a level has them
OVERLOAD_RATES = {"arrived": "arrivals_per_s", "answered": "answered_per_s", "refused": "refused_per_s"}
SHARES = (-0.02, 1.02)  # limits of an axis of shares


def draw_beside(paths: Sequence[Path]) -> None:
    """Draw the picture of a benchmark that has just run, and say where it is; without matplotlib, say that instead."""
    try:
        print(f"plot: {draw(paths)}")
    except ConfigError as error:
        print(f"no plot: {error}")


def draw(paths: Sequence[Path]) -> Path:
    """Draw one picture of the runs in `paths`; it lies beside the first, named after it, "-and-N" for N more runs.

    Raises:
        ConfigError: a file cannot be read, the runs are of different parts, or there is no matplotlib.
    """
    runs = [report.read(path) for path in paths]
    parts = {run["part"] for run in runs}
    if len(parts) > 1 or not parts <= set(PARTS):
        raise ConfigError(f"one picture shows runs of one of {', '.join(PARTS)}, not of {', '.join(sorted(parts))}")
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # may be missing
    except ImportError as error:
        raise ConfigError(f"matplotlib is not installed ({error})") from error
    panels = PARTS[runs[0]["part"]](runs)
    if not panels:
        raise ConfigError(f"nothing was measured in {', '.join(map(str, paths))} that a picture could show")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.5), layout="constrained")
    figure.suptitle(_title(runs), fontsize=10)
    labels = _labels(runs)
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.set_axisbelow(True)
        panel(axes, runs, labels)
    target = paths[0].with_name(paths[0].stem + (f"-and-{len(paths) - 1}" if len(paths) > 1 else "") + ".png")
    figure.savefig(target, dpi=DOTS_PER_INCH)
    return target


def _title(runs: Sequence[Run]) -> str:
    """What all runs have in common: the part, the hardware, the workload."""
    part, settings = runs[0]["part"], dict(runs[0]["settings"])
    settings["answers"] = "streams, " if all(map(_is_stream, runs)) else ""
    settings["dry"] = " (a dry run: no figure means anything)" if settings.get("dry_run") else ""
    what = {
        "server": "server over {protocol}, {answers}{tokens} tokens a sentence",
        "engine": "decode steps of the GPT, official sizes",
        "compare": "{tokens} tokens a sentence, {rounds} turns each",
        "peers": "decode steps beside llama.cpp and OpenVINO, official sizes, {rounds} turns of {steps} steps",
        "gpu": "GPU check{dry}, official sizes, random weights",
        "overload": "{factor:g} times what {callers} callers get, {tokens} tokens a sentence, room for {max_requests}",
    }[part].format(**settings)
    machines = dict.fromkeys(report.hardware(run["environment"]) for run in runs)
    return "\n".join([what, *machines])


def _labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run: its precision, of streams their mode too; where two share it, the time too."""
    names = [_name(run) for run in runs]
    if len(set(names)) == len(names):
        return names
    return [f"{name} {run['environment']['time'][:16]}" for name, run in zip(names, runs, strict=True)]


def _name(run: Run) -> str:
    settings = run["settings"]
    name = str(settings.get("precision") or settings.get("url") or ", ".join(settings.get("precisions", ())))
    return f"{name} {settings['mode']}" if _is_stream(run) else name


def _is_stream(run: Run) -> bool:
    """Whether its answers were streams; runs from before there were any do not say."""
    return bool(run["settings"].get("stream"))


def _server_panels(runs: Sequence[Run]) -> list[Panel]:
    panels: list[Panel] = []
    streams = [run for run in runs if _is_stream(run)]
    underruns = partial(
        _panel, styles={"underrun_share": "-"}, label="share of streams with an underrun", limits=SHARES
    )
    if any(_levels(run, "closed") for run in streams):
        panels.append(partial(_panel, plot=_plot_closed, styles=FIRST_AUDIO, label="first audio, s"))
        panels.append(partial(underruns, plot=_plot_closed))
    if any(_levels(run, "closed") for run in runs):
        panels.append(partial(_panel, plot=_plot_closed, styles={"sentences_per_s": "-"}, label="sentences/s"))
        panels.append(partial(_panel, plot=_plot_closed, styles=PERCENTILES, label="latency, s"))
    if any(_levels(run, "open") for run in streams):
        panels.append(partial(_panel, plot=_plot_open, styles=FIRST_AUDIO, label="first audio from the moment due, s"))
        panels.append(partial(underruns, plot=_plot_open))
    if any(_levels(run, "open") for run in runs):
        panels.append(partial(_panel, plot=_plot_open, styles=PERCENTILES, label="latency from the moment due, s"))
    if any(run["soak"] for run in runs):
        panels.append(_soak_panel)
    return panels


def _levels(run: Run, loop: str, key: str = "answered") -> list[dict[str, Any]]:
    """Levels of `loop` at which something was answered, and whose field `key` was measured; nothing ran beside them."""
    levels = [level for level in run["levels"] if level["loop"] == loop and level["answered"] and key in level]
    return [level for level in levels if not (level.get("beside_long_text") or level.get("beside_whole"))]


def _panel(
    axes: Axes,
    runs: Sequence[Run],
    labels: Sequence[str],
    *,
    plot: Callable[[Axes, Sequence[Run], Sequence[str], Mapping[str, str]], None],
    styles: Mapping[str, str],
    label: str,
    limits: tuple[float, float] | None = None,
) -> None:
    """Fields of the levels, each with its style of line, by `plot`; `label` and `limits` are of the y axis."""
    plot(axes, runs, labels, styles)
    axes.set_ylabel(label)
    if limits is not None:
        axes.set_ylim(*limits)


def _plot_closed(axes: Axes, runs: Sequence[Run], labels: Sequence[str], styles: Mapping[str, str]) -> None:
    """Fields of a level (each with its style of line) against the number of sentences at once."""
    for run, label, colour in zip(runs, labels, _colours(), strict=False):
        for key, style in styles.items():
            if levels := _levels(run, "closed", key):
                x = [level["concurrency"] for level in levels]
                name = _curve_name(label, key, styles)
                axes.plot(x, [level[key] for level in levels], f"o{style}", color=colour, label=name)
    _powers_of_two(axes, "sentences at once (closed loop)")
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1)  # 1 where all values are 0
    axes.legend()


def _curve_name(label: str, key: str, styles: Mapping[str, str]) -> str:
    """`label`, and the percentile where there are several: "p50" of "p50_s" and "first_p50_s"."""
    return f"{label} {key.split('_')[-2]}" if len(styles) > 1 else label


def _plot_open(axes: Axes, runs: Sequence[Run], labels: Sequence[str], styles: Mapping[str, str]) -> None:
    """Fields of a level against the rate: a line through the median of the seeds; every seed is a point."""
    for run, label, colour in zip(runs, labels, _colours(), strict=False):
        for key, style in styles.items():
            if levels := _levels(run, "open", key):
                points = [(level["rate"], level[key]) for level in levels]
                axes.plot(*zip(*points, strict=True), ".", color=colour, alpha=0.5)
                rates = sorted({rate for rate, _ in points})
                medians = [statistics.median(y for at, y in points if at == rate) for rate in rates]
                axes.plot(rates, medians, style, color=colour, label=_curve_name(label, key, styles))
    axes.set_ylim(0, 1.1 * axes.dataLim.y1 or 1)
    axes.set_xlabel("sentences/s offered (open loop, Poisson)")
    axes.legend()


def _soak_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    for run, label, colour in zip(runs, labels, _colours(), strict=False):
        if soak := run["soak"]:
            slope = f"{soak['second_half_slope_mb_per_100']:+.2f} MB per 100 requests in the second half"
            axes.plot(soak["requests"], soak["memory_mb"], "--", color=colour, label=f"{label} with pages of files")
            axes.plot(soak["requests"], soak["held_mb"], "o-", color=colour, label=f"{label} {slope}")
    axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    axes.set_xlabel("requests")
    axes.set_ylabel("memory of the server (PSS), MB")
    axes.legend(loc="lower left")


def _engine_panels(_runs: Sequence[Run]) -> list[Panel]:
    return [_step_panel, _roofline_panel]


def _step_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    for (points, label), colour in zip(_curves(runs, labels), _colours(), strict=False):
        x = [point["sequences"] for point in points]
        axes.plot(x, [point["ms/step"] for point in points], "o-", color=colour, label=label)
    axes.set_yscale("log")
    _powers_of_two(axes, "sequences in the batch")
    axes.set_ylabel("ms a step")
    axes.legend()


def _roofline_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    """Measured speed below its limit, the lower of bandwidth and arithmetic, both measured in the same run."""
    for (points, label), colour in zip(_curves(runs, labels), _colours(), strict=False):
        x = [point["sequences"] for point in points]
        axes.plot(x, [point["tokens/s"] for point in points], "o-", color=colour, label=label)
        for key, style in LIMITS.items():
            limit = [1e3 * point["sequences"] / point[key] for point in points]
            axes.plot(x, limit, style, color=colour)
    for key, style in LIMITS.items():  # in the legend once, for all colours
        axes.plot([], [], style, color="grey", label=key.removesuffix("_ms").replace("_", " "))
    axes.set_yscale("log")
    _powers_of_two(axes, "sequences in the batch")
    axes.set_ylabel("tokens/s")
    axes.legend()


def _curves(runs: Sequence[Run], labels: Sequence[str]) -> list[tuple[list[dict[str, Any]], str]]:
    """The points of each run and context, and their label."""
    curves = []
    for run, label in zip(runs, labels, strict=True):
        for context in dict.fromkeys(point["context"] for point in run["points"]):
            points = [point for point in run["points"] if point["context"] == context]
            curves.append((points, f"{label}, context {context}"))
    return curves


def _compare_panels(_runs: Sequence[Run]) -> list[Panel]:
    return [_single_panel, _concurrent_panel]


def _single_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    _bars(axes, runs, labels, lambda _run: 1, lambda _run, seconds: seconds)
    axes.set_ylabel("s for one sentence (less is better)")


def _concurrent_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str]) -> None:
    _bars(
        axes,
        runs,
        labels,
        lambda run: int(run["settings"]["concurrency"]),
        lambda run, seconds: run["settings"]["concurrency"] / seconds,
    )
    at_once = ", ".join(dict.fromkeys(str(run["settings"]["concurrency"]) for run in runs))
    axes.set_ylabel(f"sentences/s, {at_once} at once (more is better)")


def _overload_panels(runs: Sequence[Run]) -> list[Panel]:
    """Each run has panels of its own."""
    return [partial(panel, place=place) for place in range(len(runs)) for panel in (_rates_panel, _latency_panel)]


def _rates_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, place: int) -> None:
    """Counts of each second from the beginning of the overload."""
    run, timeline = runs[place], runs[place]["timeline"]
    for (name, key), colour in zip(OVERLOAD_RATES.items(), _colours(), strict=False):
        axes.plot(range(len(timeline[key])), timeline[key], drawstyle="steps-post", color=colour, label=name)
    axes.axhline(run["capacity"]["sentences_per_s"], ls="--", color="grey", label="capacity")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("requests/s")
    _seconds_of_overload(axes, run, labels[place])


def _latency_panel(axes: Axes, runs: Sequence[Run], labels: Sequence[str], *, place: int) -> None:
    """Every answer and refusal, at the moment at which its request was due; then those of the one caller."""
    run, timeline, recovery = runs[place], runs[place]["timeline"], runs[place]["recovery"]
    end_s = run["overload"]["end_s"]
    probes = [(end_s + due, s) for due, s in zip(recovery["due_s"], recovery["latencies_s"], strict=True) if s]
    points = {
        "answered": list(zip(timeline["answered_due_s"], timeline["answered_latencies_s"], strict=True)),
        "refused": list(zip(timeline["refused_due_s"], timeline["refused_latencies_s"], strict=True)),
        "one caller, afterwards": probes,
    }
    for (name, dots), colour in zip(points.items(), _colours()[1:], strict=False):
        if dots:
            axes.plot(*zip(*dots, strict=True), ".", ms=4, color=colour, label=name)
    axes.axhline(recovery["limit_s"], ls="--", color="grey", label="recovered")
    axes.set_yscale("log")
    axes.set_ylabel("s from the moment due")
    _seconds_of_overload(axes, run, labels[place])


def _seconds_of_overload(axes: Axes, run: Run, label: str) -> None:
    for moment in ("settle_s", "end_s"):
        axes.axvline(run["overload"][moment], ls=":", color="grey")
    axes.set_xlabel("s of the overload; it counts between the dotted lines")
    axes.set_title(label, fontsize=9)
    axes.legend(loc="best", fontsize=8)


def _bars(
    axes: Axes,
    runs: Sequence[Run],
    labels: Sequence[str],
    count: Callable[[Run], int],
    value: Callable[[Run, float], float],
) -> None:
    """One bar for each system and run: the median over the turns, and a whisker from the least to the most."""
    names, medians, below, above, colours = [], [], [], [], []
    for run, label in zip(runs, labels, strict=True):
        for place, system in enumerate(dict.fromkeys(turn["system"] for turn in run["turns"])):
            turns = [t for t in run["turns"] if (t["system"], t["concurrency"]) == (system, count(run))]
            values = [value(run, turn["seconds"]) for turn in turns]
            names.append(f"{system}\n{label}" if len(runs) > 1 else system)
            medians.append(statistics.median(values))
            below.append(medians[-1] - min(values))
            above.append(max(values) - medians[-1])
            colours.append(COLOURS[place % len(COLOURS)])
    bars = axes.bar(range(len(names)), medians, yerr=(below, above), capsize=4, color=colours)
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.set_xticks(range(len(names)), names)
    axes.margins(y=0.12)


def _powers_of_two(axes: Axes, label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_xlabel(label)


def _colours() -> list[str]:
    return list(COLOURS) * 10


PARTS: dict[str, Callable[[Sequence[Run]], list[Panel]]] = {
    "server": _server_panels,
    "engine": _engine_panels,
    "compare": _compare_panels,
    "overload": _overload_panels,
    "gpu": gpu_panels,
    "peers": peers_panels,
}
