"""A picture of how the losses fell: of the files that `loop` writes."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure

from training import language, sound

PANELS = {  # title -> file, and the losses in it
    "codec: log mel": (sound.CODEC_FILE, ("mel",)),
    "vocoder: magnitudes": (sound.VOCODER_FILE, ("loss",)),
    "language model: audio codes": (language.FILE, ("code_0", "code_1", "code_2", "code_3")),
    "language model: mel, attention, refining": (language.FILE, ("mel", "guide", "text")),
}


def draw(folder: Path, out: Path) -> None:
    """Draw the curves of `folder` to `out`, a PNG file; what was not trained stays empty."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2).flat
    for axis, (title, (name, losses)) in zip(axes, PANELS.items(), strict=True):
        file = (folder / name).with_suffix(".jsonl")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
        for loss in losses:
            axis.plot([line["minutes"] for line in lines], [line[loss] for line in lines], label=loss)
        axis.set(title=title, xlabel="minutes", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out, dpi=80)
