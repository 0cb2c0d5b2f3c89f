"""Pictures for the pages: how the losses fell, and what a recording looks like."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile
import torch
from matplotlib.figure import Figure

from chattts_serving.audio import SAMPLE_RATE
from training import language, sound
from training.modules import LogMel
from training.utterances import VOICES

HEARD_FILE = "heard.jsonl"  # a line each time that somebody listened
PANELS = {  # title -> file, and the losses in it
    "codec: log mel": (sound.CODEC_FILE, ("mel",)),
    "vocoder: magnitudes": (sound.VOCODER_FILE, ("loss",)),
    "language model: audio codes": (language.FILE, ("code_0", "code_1", "code_2", "code_3")),
    "language model: mel, attention, refining": (language.FILE, ("mel", "guide", "text")),
    "words heard wrong": (HEARD_FILE, VOICES),
}


def draw_losses(folder: Path, out: Path) -> None:
    """Draw the curves of what was trained in `folder` to `out`, a PNG file."""
    files = {title: (folder / name).with_suffix(".jsonl") for title, (name, _) in PANELS.items()}
    shown = [title for title, file in files.items() if file.exists()]
    figure = Figure(figsize=(5 * len(shown), 3.5), layout="constrained")
    for title, axis in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        name, losses = PANELS[title]
        lines = [json.loads(line) for line in files[title].read_text(encoding="utf-8").splitlines()]
        for loss in losses:
            minutes, values = ([line[key] for line in lines if loss in line] for key in ("minutes", loss))
            axis.plot(minutes, values, label=loss, marker="." if name == HEARD_FILE else "")
        axis.set(title=title, xlabel="minutes", ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(out, dpi=80)


def draw_recording(recording: Path, out: Path, title: str) -> None:
    """Draw the mel spectrogram of `recording`, a WAV file, to `out`, a PNG file."""
    samples, rate = soundfile.read(recording, dtype="float32")
    if rate != SAMPLE_RATE:
        raise ValueError(f"{recording} has {rate} Hz; allowed is {SAMPLE_RATE}")
    mel = LogMel()(torch.from_numpy(samples)[None])[0].numpy()
    figure = Figure(figsize=(11, 3), layout="constrained")
    axis = figure.subplots()
    axis.imshow(mel, origin="lower", aspect="auto", cmap="magma", vmin=-8, extent=(0, len(samples) / rate, 0, len(mel)))
    axis.set(title=title, xlabel="seconds", ylabel="mel band")
    figure.savefig(out, dpi=80)
