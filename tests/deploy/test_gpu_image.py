"""The gpu image's own layer on a stand-in for NVIDIA's: no GPU, a tritonserver that cannot run, an empty PyTorch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy.test_requirements import clean_environment, reachable
from tests.launcher.test_server import system_server
from tests.pythons import find_python

IMPORTS = """
import importlib, runpy, sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy
sys.modules["triton_python_backend_utils"] = MagicMock()  # NVIDIA's backend has it
for model in sorted(Path(sys.argv[1]).glob("*/1/model.py")):
    runpy.run_path(str(model))
import chattts_serving.engine.cpu.library, chattts_serving.probe, chattts_serving.server
from chattts_serving.launcher.tritonserver import find_installation, has_onnx_backend
assert has_onnx_backend(find_installation())
print(numpy.__version__)
"""


def copy_context(folder: Path) -> None:
    """What the Dockerfile's COPY copies."""
    ignored = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name in [line[1:] for line in ignored if line.startswith("!")]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "results"))
        else:
            shutil.copy2(ROOT / name, folder / name)


def write_wheel(folder: Path, name: str, version: str) -> None:
    """An empty package."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        wheel.writestr(f"{name}/__init__.py", "")


def of_another_backend(folder: Path) -> Path:
    """A folder with a NumPy that cannot be imported; NVIDIA's image has its PYTHONPATH name such a one."""
    (folder / "numpy-1.26.4.dist-info").mkdir(parents=True)
    (folder / "numpy-1.26.4.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\n")
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").write_text("raise ImportError('the NumPy of another backend')\n")
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's /opt/chattts, made by its own command."""
    if not reachable():
        pytest.skip("no package index can be reached")
    base = tmp_path_factory.mktemp("base")
    root = base / "opt" / "chattts"
    copy_context(root)
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(\S+)$", constraints, re.MULTILINE)
    assert torch
    write_wheel(base, "torch", f"{torch[1]}+standin")
    stage = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8").split(" AS gpu\n")[1].split("\nFROM ")[0]
    commands = re.findall(r"^RUN .*?(docker/\w+\.sh(?:.*\\\n)*.*)$", stage, re.MULTILINE)
    assert len(commands) == 2
    nvidia = {
        "PYTHON": str(find_python("3.12") or sys.executable),  # NVIDIA's releases have 3.12
        "PYTHONPATH": str(of_another_backend(base / "dali")),
        "PIP_FIND_LINKS": str(base),
        "PIP_NO_COMPILE": "1",  # few of the modules are imported
    }
    done = subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands)],
        cwd=root,
        env=clean_environment() | nvidia,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def packages(image: Path) -> set[str]:
    command = [image / ".venv" / "bin" / "python", "-m", "pip", "list", "--format=freeze"]
    listed = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True).stdout
    return {line.split("==")[0].lower().replace("_", "-") for line in listed.splitlines()}


def test_the_server_and_its_onnx_runtime_are_nvidias_alone(image: Path) -> None:
    installed = packages(image)
    assert {"torch", "numpy", "tokenizers"} <= installed
    assert not [name for name in installed if name.startswith(("nvidia-", "onnxruntime"))]


@pytest.mark.parametrize("numpy", ["1.26", "2"])
def test_models_and_launcher_import_with_either_numpy(image: Path, numpy: str, tmp_path: Path) -> None:
    python = image / ".venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile", f"numpy=={numpy}.*"]
    subprocess.run(install, env=clean_environment(), capture_output=True, check=True)
    version = subprocess.run(
        [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    server = system_server(tmp_path, python=version.stdout.strip(), onnx=True)
    done = subprocess.run(
        [python, "-c", IMPORTS, ROOT / "model_repository"],
        cwd=image,
        env=clean_environment() | {"TRITONSERVER": str(server)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{numpy}.")
