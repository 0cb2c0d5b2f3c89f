"""The voices of `voices/`, or of a checkpoint: what a server's voice library is made of."""

from __future__ import annotations

from pathlib import Path

from chattts_serving.errors import ConfigError, shown
from chattts_serving.shipped import shipped
from chattts_serving.voice.speaker import decode_speaker
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
    plain = {voice.name for voice in voices if voice.hidden_size in (None, hidden_size) and not voice.mixture}
    known = {voice.name for voice in voices}
    fitting = tuple(
        voice for voice in voices if voice.name in plain or (voice.mixture and plain >= {*voice.ingredients} & known)
    )
    others = tuple(voice for voice in voices if voice not in fitting)
    for voice in fitting:
        _check_ingredients(voice, known)
    for voice in others:
        if voice.name == DEFAULT_VOICE:
            raise ConfigError(f"{folder}: {why_left_out(voice, hidden_size)}, which every server must offer")
    return fitting, others


def _check_ingredients(voice: Voice, known: set[str]) -> None:
    """Refuse a mixture of what is neither in the library nor a speaker string.

    Raises:
        ConfigError: it is one.
    """
    for ingredient in {*voice.ingredients} - known:
        try:
            decode_speaker(ingredient)
        except ValueError as error:
            raise ConfigError(
                f"voice '{voice.name}' is a mixture of {shown(ingredient)}, which is none: {error}"
            ) from error


def why_left_out(voice: Voice, hidden_size: int) -> str:
    """What is to be said of a voice that `voices_for` left out."""
    if voice.mixture:
        return f"voice '{voice.name}' is a mixture ({voice.mixture}) of one that was left out, or of a mixture"
    return f"voice '{voice.name}' has {voice.hidden_size} values; this checkpoint's voices have {hidden_size}"
