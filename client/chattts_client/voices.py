"""The voices of a server, as the configuration of its model `text_frontend` lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from chattts_client.errors import ServerError

CONFIGURED_MODEL = "text_frontend"
KEY_PREFIX = "voice."


@dataclass(frozen=True)
class Voice:
    """A voice by name.

    Attributes:
        name: what the input `speaker` takes.
        description: in words, for people.
    """

    name: str
    description: str


def voices_from(parameters: Mapping[str, str]) -> list[Voice]:
    """The voices among the parameters of a model configuration, by name.

    Raises:
        ServerError: a voice is not what the contract says.
    """
    return [
        _voice(key.removeprefix(KEY_PREFIX), value)
        for key, value in sorted(parameters.items())
        if key.startswith(KEY_PREFIX)
    ]


def _voice(name: str, value: str) -> Voice:
    try:
        return Voice(name, str(json.loads(value)["description"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ServerError(f"voice '{name}' is {value[:100]!a}, which has no description", "INTERNAL") from error
