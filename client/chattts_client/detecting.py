"""`chattts detect`: whether recordings have the watermark."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from chattts_client.detection import detect_in_file
from chattts_client.errors import TTSError


@dataclass(frozen=True)
class DetectCommand:
    """Search recordings for the watermark of `key`."""

    recordings: tuple[Path, ...]
    key: str
    json: bool


def detect(command: DetectCommand) -> int:
    """0 where all recordings have the watermark, 1 where some have not, 2 where one cannot be read."""
    status = 0
    for path in command.recordings:
        try:
            detection = detect_in_file(path, command.key)
        except (TTSError, OSError) as error:
            print(f"failed: {error}", file=sys.stderr)
            status = 2
            continue
        if command.json:
            print(json.dumps({"file": str(path), "found": detection.found, **asdict(detection)}), flush=True)
        else:
            print(f"{path}: {detection}", flush=True)
        status = max(status, 0 if detection.found else 1)
    return status
