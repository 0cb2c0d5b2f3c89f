"""Whether the packages that Makefile and images install go together, by the package index's own metadata.

uv knows nothing of pip's configuration, where a machine may have folders with other builds of the same packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.10", "3.11", "3.12")
PROJECT = "chattts-triton"


def sets() -> list[str]:
    """Extras by commas, as Makefile (for either device) and Dockerfile have them."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(RUNTIME|EVERYTHING) := (\S+)$", makefile, re.MULTILINE))
    everything = values["EVERYTHING"].replace("$(RUNTIME)", values["RUNTIME"])
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    made = [values["RUNTIME"].replace("$(DEVICE)", "cpu")]
    made += [everything.replace("$(DEVICE)", device) for device in ("cpu", "gpu")]
    return [*made, *re.findall(r"docker/install\.sh \S+ (\S+)", dockerfile)]


def resolved(python: str, *requirements: str) -> subprocess.CompletedProcess[str]:
    """What uv makes of `requirements`; its standard output has a line `name==version` for each package."""
    command = [UV, "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate"]
    command += ["--python-version", python]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    return subprocess.run([*command, *requirements], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Skips where no package index can be reached."""
    simple = tmp_path_factory.mktemp("simple") / "requirements.in"
    simple.write_text("iniconfig\n")
    result = resolved("3.11", str(simple))
    if result.returncode:
        pytest.skip(f"no package index: {result.stderr.strip()[:200]}")


@pytest.fixture(scope="module")
def resolutions(index):
    """By extras and Python; all at once, since each waits for the index most of its time."""

    def resolve(extras, python):
        arguments = [argument for extra in extras.split(",") for argument in ("--extra", extra)]
        return resolved(python, "--constraint", "constraints.txt", "pyproject.toml", *arguments)

    with ThreadPoolExecutor(len(sets())) as threads:
        futures = {(extras, python): threads.submit(resolve, extras, python) for python in PYTHONS for extras in sets()}
        return {key: future.result() for key, future in futures.items()}


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extras", sets())
def test_the_packages_go_together(resolutions, extras, python):
    result = resolutions[extras, python]
    assert result.returncode == 0, result.stderr
    found = dict(line.split("==") for line in result.stdout.split() if "==" in line)
    if "embedded" in extras:
        assert found["numpy"].startswith("1.")
    else:  # NVIDIA's image has a tritonserver and a C++ ONNX Runtime backend of its own
        assert not {"nvidia-pytriton", "onnxruntime", "onnxruntime-gpu"} & set(found)
    needs_torch = {"gpu", "test", "embedded-gpu"} & set(extras.split(","))
    assert ("torch" in found) == bool(needs_torch)


def test_two_packages_that_do_not_go_together_are_noticed(index, tmp_path):
    """PyTorch 2.13 of the index wants another compiler than this."""
    requirements = tmp_path / "requirements.in"
    requirements.write_text("torch==2.13.0\ntriton==3.6.0\n")
    assert "triton" in resolved("3.12", str(requirements)).stderr


def test_every_extra_is_in_one_of_the_sets(project):
    extras = project["optional-dependencies"]
    reached, new = set(), {extra for names in sets() for extra in names.split(",")}
    while new:
        reached |= new
        named = [re.match(rf"{PROJECT}\[(.*)\]", line) for extra in new for line in extras[extra]]
        new = {extra for match in named if match for extra in match[1].split(",")} - reached
    assert reached == set(extras)


def test_the_pythons_are_those_that_the_project_names(project):
    assert project["requires-python"] == f">={PYTHONS[0]},<3.{int(PYTHONS[-1].split('.')[1]) + 1}"
