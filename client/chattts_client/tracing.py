"""What a request says of itself besides its tensors: its name in logs, and the trace that it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chattts_client.errors import invalid_input

HEADER = "traceparent"  # of W3C's Trace Context
_FORM = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def is_traceparent(text: str) -> bool:
    """Whether `text` is a `traceparent` of version 00."""
    return bool(_FORM.fullmatch(text))


@dataclass(frozen=True)
class About:
    """What is said of a request; "" says nothing.

    Raises:
        InvalidInputError: `traceparent` is none.
    """

    request_id: str = ""
    traceparent: str = ""

    def __post_init__(self) -> None:
        """Check what goes into a header."""
        if self.traceparent and not is_traceparent(self.traceparent):
            allowed = "00-TRACE_ID-PARENT_ID-FLAGS with 32, 16 and 2 hexadecimal digits"
            raise invalid_input(HEADER, self.traceparent, allowed)

    def headers(self) -> dict[str, str]:
        """The headers that it is sent with; over gRPC its parameters, too.

        There Triton reads a header past its end and takes some for none (2.51, measured; 26.06 has the same code). The
        spans of the models come from the parameter then, and only Triton's own are missing.
        """
        return {HEADER: self.traceparent} if self.traceparent else {}


NOTHING = About()
