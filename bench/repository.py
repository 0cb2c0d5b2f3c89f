"""The model repository under test, and the sentences that it speaks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from chattts_serving.errors import ConfigError, shown

FOLDER = Path("build", "bench")  # copies of repositories, and the servers' logs
SENTENCES = (
    "The library opens at nine and closes when the last reader has gone home.",
    "Please bring the blue folder to the meeting room on the second floor.",
    "今天的会议推迟到下午三点，请大家准时参加。",
    "昨天晚上下了一场大雨，路上有很多积水。",
)


def sentence(number: int) -> str:
    """The text of request `number`: the sentences in turns."""
    return SENTENCES[number % len(SENTENCES)]


def setting(repository: Path, name: str) -> str:
    """What `repository` sets for the parameter `name` of its GPT.

    Raises:
        ConfigError: there is no such repository, or it does not set the parameter once.
    """
    config = repository / "gpt_decoder" / "config.pbtxt"
    try:
        found = re.findall(_parameter(name), config.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}; run python -m export") from error
    if len(found) != 1:
        raise ConfigError(f"{config} sets '{name}' {len(found)} times, not once")
    return str(found[0][1])


def precision_of(repository: Path) -> str:
    """The precision that `repository` sets for its GPT; errors as `setting`."""
    return setting(repository, "precision")


def with_settings(repository: Path, copy: Path, **values: object) -> Path:
    """`copy`, made anew from `repository` with its artifacts linked, whose GPT has these parameters.

    Raises:
        ConfigError: as `setting`, for each of `values`.
    """
    for name in values:
        setting(repository, name)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        repository, copy, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve())
    )
    config = copy / "gpt_decoder" / "config.pbtxt"
    text = config.read_text("utf-8")
    for name, value in values.items():
        text = re.sub(_parameter(name), rf"\g<1>{value}", text)
    config.unlink()  # the link, not the file
    config.write_text(text, "utf-8")
    return copy


def with_precision(repository: Path, precision: str, **values: object) -> Path:
    """`with_settings` in FOLDER, for a GPT that runs in `precision` with these other parameters."""
    return with_settings(repository, FOLDER / f"repository_{precision}", precision=precision, **values)


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """Parameters written as NAME=VALUE, for `with_settings`.

    Raises:
        ConfigError: one is not written like that, is set twice, or is the precision, which has a flag of its own.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, is_set, value = text.partition("=")
        if not is_set or not re.fullmatch(r"\w+", name) or not re.fullmatch(r"[\w.]+", value):
            raise ConfigError(
                f"--set is {shown(text)}; allowed is NAME=VALUE, a parameter of gpt_decoder's config.pbtxt"
            )
        if name in settings or name == "precision":
            raise ConfigError(f"--set is {shown(text)}: {name} is set twice, or has the flag --precision")
        settings[name] = value
    return settings


def _parameter(name: str) -> str:
    """A pattern: what stands before the value of a parameter, and the value."""
    return rf'(key: "{name}" value: \{{ string_value: ")([^"]*)'
