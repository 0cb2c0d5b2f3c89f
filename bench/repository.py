"""The model repository under test, and the sentences that it speaks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from chattts_serving.errors import ConfigError
from chattts_serving.tritonserver import ROOT

FOLDER = ROOT / "build" / "bench"  # copies of repositories, and the servers' logs
SENTENCES = (
    "The library opens at nine and closes when the last reader has gone home.",
    "Please bring the blue folder to the meeting room on the second floor.",
    "今天的会议推迟到下午三点，请大家准时参加。",
    "昨天晚上下了一场大雨，路上有很多积水。",
)
_PRECISION = re.compile(r'(key: "precision" value: \{ string_value: ")(\w+)')


def sentence(number: int) -> str:
    """The text of request `number`: the sentences in turns."""
    return SENTENCES[number % len(SENTENCES)]


def precision_of(repository: Path) -> str:
    """The precision that `repository` sets for its GPT.

    Raises:
        ConfigError: there is no such repository, or it does not set a precision once.
    """
    config = repository / "gpt_decoder" / "config.pbtxt"
    try:
        found = _PRECISION.findall(config.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}; run python -m export") from error
    if len(found) != 1:
        raise ConfigError(f"{config} sets 'precision' {len(found)} times, not once")
    return str(found[0][1])


def with_precision(repository: Path, precision: str) -> Path:
    """A copy of `repository` in FOLDER, its artifacts linked, whose GPT runs in `precision`.

    Raises:
        ConfigError: as `precision_of`.
    """
    precision_of(repository)
    copy = FOLDER / f"repository_{precision}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(
        repository, copy, copy_function=lambda source, target: Path(target).symlink_to(Path(source).resolve())
    )
    config = copy / "gpt_decoder" / "config.pbtxt"
    text = _PRECISION.sub(rf"\g<1>{precision}", config.read_text())
    config.unlink()  # the link, not the file
    config.write_text(text)
    return copy
