"""The voices of a server, as its model `text_frontend` lists them."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from chattts_client.errors import ServerError, shown
from chattts_client.options import InputTensor

MODEL = "text_frontend"
OUTPUT = "voices"  # who asks for it alone need not say anything
NO_TEXT = (InputTensor("text", "BYTES", np.array([[b""]], np.object_)),)  # a request has an input


@dataclass(frozen=True)
class Voice:
    """A voice by name.

    Attributes:
        name: what the input `speaker` takes.
        description: in words, for people.
    """

    name: str
    description: str


def voices_from(text: str) -> list[Voice]:
    """The voices in the output of `text_frontend`, a JSON object of them by name, in its order.

    Raises:
        ServerError: it is not what the contract says.
    """
    try:
        return [Voice(name, str(voice["description"])) for name, voice in json.loads(text).items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"the list of voices is {shown(text)}, of which one has no description"
        raise ServerError(message, "INTERNAL") from error
