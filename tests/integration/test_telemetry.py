"""Nothing here collects anything for ONNX Runtime's vendor, as its builds do by themselves.

A plain tritonserver is asked in test_plain_tritonserver.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chattts_serving.launcher.running import running_server
from tests.conftest import ROOT, Deployment

# With any of the first four nothing is collected; the last says where a cache lies instead of HOME.
VARIABLES = ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "GITHUB_ACTIONS", "XDG_CACHE_HOME")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new HOME, of somebody who has said nothing about telemetry."""
    return new_home(tmp_path / "home", monkeypatch)


def new_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_onnx_runtime_alone_writes_into_the_home(home: Path) -> None:
    subprocess.run([sys.executable, "-c", "import onnxruntime"], check=True)
    assert files(home)


def test_the_server_leaves_the_home_empty(tiny: Deployment, home: Path, tmp_path: Path) -> None:
    with running_server(tiny.repository, log_path=tmp_path / "log"):
        pass
    assert files(home) == []


@pytest.mark.parametrize("module", ["export.onnx_parity", "tests.conftest"])
def test_what_computes_in_its_own_process_leaves_the_home_empty(module: str, home: Path) -> None:
    code = f"import {module}, onnxruntime"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert files(home) == []
