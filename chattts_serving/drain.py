"""The moment at which gpt_decoder ends what is still open, as the launcher ordered it (`chattts_serving.draining`)."""

from __future__ import annotations

import os
from pathlib import Path

from chattts_serving.draining import DRAIN_FILE


def drained_until() -> float | None:
    """The `time.monotonic()` until which open requests may go on; None while the server is not about to end."""
    file = os.environ.get(DRAIN_FILE)
    if not file:
        return None
    try:
        return float(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
