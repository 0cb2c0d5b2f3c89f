"""The packages that the models will find, which are not always those that the launcher finds; no server is started."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.test_server import system_server

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sysconfig.get_path("purelib")
NO_MODELS = "the model repository nowhere does not exist"  # what is looked at next


def with_numpy(folder: Path, version: str) -> Path:
    """`folder`, which says that it has NumPy `version`."""
    metadata = folder / f"numpy-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {version}\n", encoding="utf-8")
    return folder


def refusal(python: Path, *search_path: Path | str, tritonserver: Path | None = None) -> str:
    """Why the launcher starts nothing with `python` and this PYTHONPATH."""
    env = {name: value for name, value in os.environ.items() if name != "TRITONSERVER"}
    env |= {"PYTHONPATH": os.pathsep.join(map(str, [*search_path, ROOT])), "PATH": "/nowhere"}
    if tritonserver:
        env["TRITONSERVER"] = str(tritonserver)
    command = [python, "-m", "chattts_serving.server", "--model-repository=nowhere"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Path]:
    """A Python without packages; its folder of packages lies beside it."""
    venv.create(tmp_path / "venv", symlinks=True)
    return tmp_path / "venv" / "bin" / "python"


def packages_of(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python*/site-packages"))


def test_numpy_2_is_refused_where_the_models_find_it(bare: Path, tmp_path: Path) -> None:
    with_numpy(packages_of(bare), "2.5.2")
    (packages_of(bare) / "further.pth").write_text(f"{PACKAGES}\n", encoding="utf-8")
    message = refusal(bare, with_numpy(tmp_path / "path", "1.26.4"))
    assert f"find NumPy 2.5.2 in {bare.parent.parent}; allowed is 'numpy>=1.26,<2'" in message


def test_packages_that_the_launcher_alone_finds_are_none(bare: Path) -> None:
    assert f"find no NumPy in {bare.parent.parent}" in refusal(bare, PACKAGES)


def test_numpy_2_that_the_launcher_alone_finds_is_none(tmp_path: Path) -> None:
    assert NO_MODELS in refusal(Path(sys.executable), with_numpy(tmp_path / "path", "2.5.2"))


def test_a_pth_file_leads_the_models_to_packages_elsewhere(bare: Path) -> None:
    (packages_of(bare) / "further.pth").write_text(f"{PACKAGES}\n", encoding="utf-8")
    assert NO_MODELS in refusal(bare)


def test_a_server_of_the_system_needs_onnx_runtime_as_a_package_where_it_has_none(bare: Path, tmp_path: Path) -> None:
    whole, lacking = (system_server(tmp_path / name, onnx=name == "whole") for name in ("whole", "lacking"))
    without = tmp_path / "without"  # all packages but ONNX Runtime, and any NumPy
    without.mkdir()
    for path in Path(PACKAGES).iterdir():
        if not path.name.startswith("onnxruntime"):
            (without / path.name).symlink_to(path)
    assert NO_MODELS in refusal(bare, without, tritonserver=whole)
    assert NO_MODELS in refusal(bare, PACKAGES, tritonserver=lacking)
    message = refusal(bare, without, tritonserver=lacking)
    assert f"the tritonserver at {lacking} has no ONNX Runtime of its own, and in {bare.parent.parent} there" in message
