"""Whether the packages that Makefile and images install go together, by the package index's own metadata.

uv knows nothing of pip's configuration, where a machine may have folders with other builds of the same packages.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
PYTHONS = ("3.10", "3.11", "3.12")
PROJECT = "chattts-triton"


def makefile_sets() -> dict[str, str]:
    """RUNTIME and EVERYTHING of the Makefile: extras by commas."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(RUNTIME|EVERYTHING) := (\S+)$", makefile, re.MULTILINE))
    return values | {"EVERYTHING": values["EVERYTHING"].replace("$(RUNTIME)", values["RUNTIME"])}


def image_sets() -> list[str]:
    """Extras by commas that the images install."""
    return re.findall(r"docker/packages\.sh \S+ (\S+)", (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8"))


WITHOUT_PYTORCH = makefile_sets()["RUNTIME"].replace("$(DEVICE)", "cpu") + ",gateway"
(GPU_IMAGE,) = [extras for extras in image_sets() if "gpu" in extras]
EVERYTHING = [makefile_sets()["EVERYTHING"].replace("$(DEVICE)", device) for device in ("cpu", "gpu")]
PEERS = "peers"  # in an environment of its own, since llama.cpp is compiled
ASKED = [
    *((extras, python) for extras in EVERYTHING for python in PYTHONS),
    (WITHOUT_PYTORCH, "3.12"),
    (GPU_IMAGE, "3.12"),
    (PEERS, "3.11"),
]


def resolved(python: str, *requirements: str) -> subprocess.CompletedProcess[str]:
    """What uv makes of `requirements`; its standard output has a line `name==version` for each package."""
    command = [UV, "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate"]
    command += ["--python-version", python]
    command += requirements
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=False)


def clean_environment() -> dict[str, str]:
    """The environment without what leads pip and uv to folders of wheels; certificates stay."""
    elsewhere = ("UV_", "PIP_", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name == "PIP_CERT" or not name.startswith(elsewhere)}
    return kept | {"PIP_CONFIG_FILE": os.devnull}


@cache
def reachable() -> bool:
    """Whether there is a package index."""
    simple = ROOT / "build" / "simple.in"
    simple.parent.mkdir(exist_ok=True)
    simple.write_text("iniconfig\n")
    return resolved("3.11", str(simple)).returncode == 0


def installed(extras, python):
    """Versions by name of what `extras` install.

    Raises:
        AssertionError: they do not go together.
    """
    arguments = [argument for extra in extras.split(",") for argument in ("--extra", extra)]
    result = resolved(python, "--constraint", "constraints.txt", "pyproject.toml", *arguments)
    assert result.returncode == 0, result.stderr
    return dict(line.split("==") for line in result.stdout.split() if "==" in line)


@pytest.fixture(scope="module")
def index():
    """Skips where no package index can be reached."""
    if not reachable():
        pytest.skip("no package index can be reached")


@pytest.fixture(scope="module")
def packages(index):
    """`installed`, asked for all at once: nearly all the time is the index's."""
    with ThreadPoolExecutor() as pool:
        answers = {what: pool.submit(installed, *what) for what in ASKED}
    return lambda *what: answers[what].result()


@pytest.fixture
def project():
    tomllib = pytest.importorskip("tomllib", reason="came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extras", EVERYTHING)
def test_all_packages_go_together(packages, extras, python):
    """And so does each part of them."""
    found = packages(extras, python)
    assert found["numpy"].startswith("1.")  # the embedded server's
    assert {"torch", "chattts", "onnxruntime" if "cpu" in extras else "onnxruntime-gpu"} <= set(found)


def test_server_gateway_and_client_need_no_pytorch_on_a_cpu(packages):
    found = packages(WITHOUT_PYTORCH, "3.12")
    assert not [name for name in found if name in ("torch", "triton", "transformers") or name.startswith("nvidia-cu")]


def test_the_gpu_image_takes_no_second_server_and_no_second_onnx_runtime(packages):
    """NVIDIA's has both, and its Python 3.12 may have NumPy 2."""
    found = packages(GPU_IMAGE, "3.12")
    assert "torch" in found
    assert not {"nvidia-pytriton", "onnxruntime", "onnxruntime-gpu"} & set(found)


def test_peers_of_the_benchmark_go_together(packages):
    assert {"llama-cpp-python", "openvino", "gguf"} <= set(packages(PEERS, "3.11"))


def test_two_packages_that_do_not_go_together_are_noticed(index, tmp_path):
    """PyTorch 2.13 of the index wants another compiler than this."""
    requirements = tmp_path / "requirements.in"
    requirements.write_text("torch==2.13.0\ntriton==3.6.0\n")
    assert "triton" in resolved("3.12", str(requirements)).stderr


def test_everything_is_every_extra_and_what_images_take_is_part_of_it(project):
    extras = project["optional-dependencies"]
    reached, new = set(), {extra for names in EVERYTHING for extra in names.split(",")}
    while new:
        reached |= new
        named = [re.match(rf"{PROJECT}\[(.*)\]", line) for extra in new for line in extras[extra]]
        new = {extra for match in named if match for extra in match[1].split(",")} - reached
    assert reached | {PEERS} == set(extras)
    assert {extra for names in image_sets() for extra in names.split(",")} <= reached


def test_the_pythons_are_those_that_the_project_names(project):
    assert project["requires-python"] == f">={PYTHONS[0]},<3.{int(PYTHONS[-1].split('.')[1]) + 1}"
