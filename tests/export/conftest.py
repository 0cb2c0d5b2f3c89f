"""The tiny checkpoint and ChatTTS on it, without a server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from export.chattts_package import load_chat
from export.checkpoint import Checkpoint
from export.synthetic import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return write_checkpoint("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def chat(checkpoint) -> Any:
    return load_chat(checkpoint.directory)


@pytest.fixture
def own_checkpoint(checkpoint, tmp_path) -> Path:
    """A copy of the tiny checkpoint that the test may break."""
    return Path(shutil.copytree(checkpoint.directory, tmp_path / "own"))
