"""The voices of `voices/`, or of a checkpoint: what a server's voice library is made of."""

from __future__ import annotations

from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.shipped import shipped
from chattts_serving.voice.voices import DEFAULT_VOICE, Voice, load_voices

SOURCE_VOICES = shipped("voices")
VOICES_FOLDER = "voices"  # beside a checkpoint's `asset/`: voices of its own
VOICES_FILE = "text_frontend/1/voices.json"  # in a model repository


def voices_for(folder: Path, hidden_size: int) -> tuple[tuple[Voice, ...], tuple[Voice, ...]]:
    """The voices of `folder` that fit a checkpoint of `hidden_size`, and those that do not.

    Raises:
        ConfigError: as `load_voices`, or the default voice is one that does not fit.
    """
    voices = load_voices(folder)
    fitting = tuple(voice for voice in voices if voice.hidden_size in (None, hidden_size))
    others = tuple(voice for voice in voices if voice not in fitting)
    for voice in others:
        if voice.name == DEFAULT_VOICE:
            raise ConfigError(f"{folder}: {why_left_out(voice, hidden_size)}, which every server must offer")
    return fitting, others


def why_left_out(voice: Voice, hidden_size: int) -> str:
    """What is to be said of a voice that `voices_for` left out."""
    return f"voice '{voice.name}' has {voice.hidden_size} values; this checkpoint's voices have {hidden_size}"
