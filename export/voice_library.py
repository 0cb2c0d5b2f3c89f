"""The voices of `voices/` as parameters of text_frontend: what a server's voice library is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.voice.voices import DEFAULT_VOICE, PARAMETER_PREFIX, Voice, load_voices

SOURCE_VOICES = Path(__file__).resolve().parent.parent / "voices"
VOICES_FOLDER = "voices"  # beside a checkpoint's `asset/`: voices of its own
VOICES_CONFIG = "text_frontend/config.pbtxt"  # in a model repository: the configuration that lists the voices
# The lines of that file between which the voices stand.
_BEGIN, _END = "# <voices>\n", "# </voices>\n"
_BLOCK = re.compile(rf"(?<=^{_BEGIN}).*?(?=^{_END})", re.MULTILINE | re.DOTALL)


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


def with_voices(config: str, voices: Sequence[Voice]) -> str:
    """The text of VOICES_CONFIG with `voices` instead of those that stand there.

    Raises:
        ConfigError: the lines between which they stand are missing.
    """
    block = "".join(_parameter(voice) for voice in voices)
    written, count = _BLOCK.subn(lambda _: block, config)
    if count != 1:
        raise ConfigError(f"{VOICES_CONFIG} must have the lines '{_BEGIN.strip()}' and '{_END.strip()}' once, in order")
    return written


def _parameter(voice: Voice) -> str:
    """One entry of the map `parameters` in protobuf's text format; JSON has no control characters, but marks."""
    value = voice.to_json().replace("\\", r"\\").replace("'", r"\'")
    return f"parameters {{ key: '{PARAMETER_PREFIX}{voice.name}' value: {{ string_value: '{value}' }} }}\n"
