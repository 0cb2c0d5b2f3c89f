"""The text frontend's files as the export writes them for the tiny checkpoint, without its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

from export.frontend_assets import export_frontend_assets
from export.synthetic import write_checkpoint


def make_frontend_assets(folder: Path) -> Path:
    """Fill `folder`; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as parent:
        export_frontend_assets(write_checkpoint("tiny", Path(parent) / "tiny"), folder)
    return folder
