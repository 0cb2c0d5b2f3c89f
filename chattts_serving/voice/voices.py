"""The voice library of a server: voices that callers ask for by name.

A voice is one JSON file in the checkout's `voices/`: {"description": ..., "seed": 7} is sampled from the checkpoint's
statistics and so fits every checkpoint, {"description": ..., "speaker": ...} is a ChatTTS speaker string, and
{"description": ..., "mixture": "slt:2+rms"} a mixture of others (`mixture.py`). The export writes them into one file
beside text_frontend, which lists them to whoever asks for its output `voices`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import ConfigError, InvalidInputError, shown
from chattts_serving.request import INT63_MAX, MAX_SPEAKER_CHARACTERS
from chattts_serving.voice.base16384 import AROUND
from chattts_serving.voice.mixture import is_mixture, mixed, parse_mixture
from chattts_serving.voice.speaker import SpeakerStatistics, Vector, decode_speaker, encode_speaker, normalize

DEFAULT_VOICE = "default"
MAX_DESCRIPTION_CHARACTERS = 300
MAX_FILE_BYTES = 65_536
MAX_NAMES_SHOWN = 20  # in an error message
_NAME = re.compile(r"[a-z0-9_-]{1,64}")
_SUFFIX = ".json"


@dataclass(frozen=True)
class Voice:
    """One voice of a library.

    Attributes:
        name: 1 to 64 of the characters a to z, 0 to 9, "_" and "-".
        description: what a person should know to choose it: 1 to MAX_DESCRIPTION_CHARACTERS in one line.
        speaker: ChatTTS speaker string, or "" where another one decides.
        seed: what it is sampled from, 0 or more, or None where another one decides.
        mixture: of voices of the library that are none themselves, and of speaker strings; or "".

    Raises:
        ConfigError: a value is none of these, or not one of `speaker`, `seed` and `mixture` is given.
    """

    name: str
    description: str
    speaker: str = ""
    seed: int | None = None
    mixture: str = ""

    def __post_init__(self) -> None:
        """Check every value."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"voice name is {shown(self.name)}; allowed is 1 to 64 of the characters a to z, 0 to 9, _ and -"
            )
        _check_description(self)
        if sum((bool(self.speaker), self.seed is not None, bool(self.mixture))) != 1:
            raise ConfigError(f"voice '{self.name}' must have one of 'speaker', 'seed' and 'mixture'")
        if self.speaker:
            _check_speaker(self)
        elif self.mixture:
            _check_mixture(self)
        elif type(self.seed) is not int or not 0 <= self.seed <= INT63_MAX:
            raise ConfigError(f"seed of voice '{self.name}' is {shown(self.seed)}; allowed is 0 to {INT63_MAX}")

    @classmethod
    def from_json(cls, name: str, text: str) -> Voice:
        """Read what `to_json` or a person wrote.

        Raises:
            ConfigError: `text` is no JSON object, has another key, or a value is not allowed.
        """
        allowed = "'description' and one of 'speaker', 'seed' and 'mixture'"
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"voice '{name}' is no JSON: {error}") from error
        kinds = [{"description", kind} for kind in ("speaker", "seed", "mixture")]
        if not isinstance(values, dict) or set(values) not in kinds:
            raise ConfigError(f"voice '{name}' is {shown(values)}; allowed is an object with {allowed}")
        return cls(name, **values)

    def to_json(self) -> str:
        """The voice as one line of JSON, without its name."""
        known = {"speaker": self.speaker, "mixture": self.mixture, "seed": self.seed}
        how = {key: value for key, value in known.items() if value not in ("", None)}
        return json.dumps({"description": self.description, **how}, ensure_ascii=False)

    @property
    def hidden_size(self) -> int | None:
        """Of the checkpoints that it fits; None for one that fits all, or whose mixture fits where its voices do."""
        return len(decode_speaker(self.speaker)) if self.speaker else None

    @property
    def ingredients(self) -> tuple[str, ...]:
        """What a mixture is of: names and speaker strings."""
        return tuple(part.voice for part in parse_mixture(self.mixture)) if self.mixture else ()


def voice_path(folder: Path, name: str) -> Path:
    """Where a library's folder holds the voice `name`."""
    return folder / f"{name}{_SUFFIX}"


def load_voices(folder: Path) -> tuple[Voice, ...]:
    """The voices of `folder`, by name; one called DEFAULT_VOICE is among them.

    Raises:
        ConfigError: the folder or the default voice is missing, or a file is unreadable or wrong.
    """
    paths = sorted(folder.glob(f"*{_SUFFIX}"))
    if voice_path(folder, DEFAULT_VOICE) not in paths:
        raise ConfigError(f"{folder} has no {DEFAULT_VOICE}{_SUFFIX}, a voice that every server offers")
    return tuple(_load_voice(path) for path in paths)


def library_text(voices: Iterable[Voice]) -> str:
    """A library as JSON: an object of voices by name, what `Voice.from_json` reads each."""
    entries = {voice.name: json.loads(voice.to_json()) for voice in sorted(voices, key=lambda voice: voice.name)}
    return json.dumps(entries, ensure_ascii=False, indent=1) + "\n"


def read_library(path: Path) -> tuple[Voice, ...]:
    """The voices of a file that holds `library_text`.

    Raises:
        ConfigError: it is missing or unreadable, or a voice in it is wrong.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path} holds {shown(entries)}; allowed is an object of voices by name")
    return tuple(Voice.from_json(name, json.dumps(entry)) for name, entry in entries.items())


@dataclass(frozen=True)
class Speaker:
    """A voice on one checkpoint.

    Attributes:
        vector: as it was sampled or sent, float16 [hidden].
        embedding: what replaces the embedding of [spk_emb], `vector` at length 1, float32 [hidden].
    """

    vector: Vector
    embedding: npt.NDArray[np.float32]

    @classmethod
    def of(cls, vector: Vector) -> Speaker:
        """The speaker with this vector.

        Raises:
            ValueError: its norm is 0 or no float16.
        """
        return cls(vector, normalize(vector))

    @cached_property
    def text(self) -> str:
        """Its ChatTTS speaker string."""
        return encode_speaker(self.vector)


class VoiceLibrary:
    """What the input `speaker` may say, on one checkpoint. Threads may share one."""

    def __init__(self, voices: Iterable[Voice], statistics: SpeakerStatistics) -> None:
        """Resolve `voices`.

        Raises:
            ConfigError: one of them does not fit the checkpoint.
        """
        self._statistics = statistics
        voices = tuple(voices)
        self._speakers = {voice.name: self._resolve(voice) for voice in voices if not voice.mixture}
        self._speakers |= {voice.name: self._resolve(voice) for voice in voices if voice.mixture}

    def find(self, speaker: str) -> Speaker:
        """The voice of that name, else that of a ChatTTS speaker string, or of a mixture of such.

        Each may have white space around it.

        Raises:
            InvalidInputError: `speaker` is none of these.
        """
        try:
            return self._mixture(speaker) if is_mixture(speaker) else self._one(speaker)
        except ValueError as error:
            raise InvalidInputError("speaker", speaker, f"{self._allowed()} ({error})") from error

    def sample(self, seed: int) -> Speaker:
        """The voice of `seed`, 0 or more."""
        return Speaker.of(self._statistics.sample(seed))

    def _resolve(self, voice: Voice) -> Speaker:
        try:
            if voice.mixture:
                return self._mixture(voice.mixture)
            return self._decode(voice.speaker) if voice.seed is None else self.sample(voice.seed)
        except ValueError as error:
            raise ConfigError(f"voice '{voice.name}' does not fit this checkpoint: {error}") from error

    def _one(self, speaker: str) -> Speaker:
        name = speaker.strip(AROUND)
        return self._speakers[name] if name in self._speakers else self._decode(speaker)

    def _mixture(self, text: str) -> Speaker:
        parts = parse_mixture(text)
        vectors = [self._one(part.voice).vector for part in parts]
        return Speaker.of(mixed(vectors, [part.weight for part in parts]))

    def _decode(self, text: str) -> Speaker:
        vector, hidden_size = decode_speaker(text), len(self._statistics.mean)
        if len(vector) != hidden_size:
            raise ValueError(f"it has {len(vector)} values")
        return Speaker.of(vector)

    def _allowed(self) -> str:
        string = f"a ChatTTS speaker string of {len(self._statistics.mean)} finite values, not all zero"
        if not self._speakers:
            return string
        names = ", ".join(list(self._speakers)[:MAX_NAMES_SHOWN])
        num_more = len(self._speakers) - MAX_NAMES_SHOWN
        names += f" and {num_more} more" if num_more > 0 else ""
        return f"a voice of this server ({names}), a mixture such as NAME:2+NAME:1, or {string}"


def _load_voice(path: Path) -> Voice:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes; allowed is {MAX_FILE_BYTES} at most")
        return Voice.from_json(path.name.removesuffix(_SUFFIX), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _check_description(voice: Voice) -> None:
    text = voice.description
    allowed = f"1 to {MAX_DESCRIPTION_CHARACTERS} printable characters in one line"
    if not isinstance(text, str) or not 1 <= len(text) <= MAX_DESCRIPTION_CHARACTERS or not text.isprintable():
        raise ConfigError(f"description of voice '{voice.name}' is {shown(text)}; allowed is {allowed}")


def _check_mixture(voice: Voice) -> None:
    wrong = f"mixture of voice '{voice.name}' is {shown(voice.mixture)}; allowed is"
    if not isinstance(voice.mixture, str) or len(voice.mixture) > MAX_SPEAKER_CHARACTERS:
        raise ConfigError(f"{wrong} text of at most {MAX_SPEAKER_CHARACTERS:,} characters")
    try:
        parse_mixture(voice.mixture)
    except ValueError as error:
        raise ConfigError(f"{wrong} VOICE:WEIGHT+VOICE:WEIGHT ({error})") from error


def _check_speaker(voice: Voice) -> None:
    wrong = f"speaker of voice '{voice.name}' is {shown(voice.speaker)}; allowed is"
    if not isinstance(voice.speaker, str) or len(voice.speaker) > MAX_SPEAKER_CHARACTERS:
        raise ConfigError(f"{wrong} text of at most {MAX_SPEAKER_CHARACTERS:,} characters")
    try:
        normalize(decode_speaker(voice.speaker))
    except ValueError as error:
        raise ConfigError(f"{wrong} a ChatTTS speaker string of finite values, not all zero ({error})") from error
