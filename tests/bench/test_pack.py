"""`bench pack`: its pieces, and what the script makes of them in a checkout for Python 3.12."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from bench import pack
from chattts_serving.errors import ConfigError
from tests.conftest import ROOT
from tests.deploy.test_requirements import clean_environment, reachable
from tests.pythons import find_python

SMALL = ("anyascii", "textsearch", "numpy")  # wheels to take along here: pure ones, and one for Python 3.12 alone


def archive(folder, name):
    """The archive that was cut into pieces."""
    pieces = sorted(folder.glob(f"{name}.[0-9][0-9]"))
    return tarfile.open(fileobj=io.BytesIO(b"".join(piece.read_bytes() for piece in pieces)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A pack with few wheels, a made-up repository, and pieces of a megabyte."""
    if not reachable():
        pytest.skip("no package index can be reached")
    folder = tmp_path_factory.mktemp("pack") / "out"
    repository = tmp_path_factory.mktemp("repositories") / "small"
    (repository / "vocos" / "1").mkdir(parents=True)
    (repository / "vocos" / "1" / "model.onnx").write_bytes(b"no model")
    config = 'backend: "onnxruntime"\ninstance_group [ { kind: KIND_AUTO } ]\n'
    (repository / "vocos" / "config.pbtxt").write_text(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack, "SERVER", SMALL)
        patch.setattr(pack, "CLIENT", ())
        patch.setattr(pack, "CHATTTS", ("encodec",))
        patch.setattr(pack, "PIECE_BYTES", 1_000_000)
        patch.setattr(pack, "XZ_PRESET", 0)
        pack.pack(folder, repository)
    return folder


def test_no_piece_is_larger_than_asked_for_and_each_has_its_sum(packed):
    sizes = {path.name: path.stat().st_size for path in packed.iterdir()}
    assert max(sizes.values()) == 1_000_000
    assert {name.partition(".tar")[0] for name in sizes} == {
        *("SHA256SUMS", "install.sh", "repository", "tritonserver", "wheels")
    }
    listed = [line.split() for line in (packed / "SHA256SUMS").read_text().splitlines()]
    assert {name for _, name in listed} == set(sizes) - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=packed, check=True)


def test_wheels_are_the_versions_of_this_environment_for_python_3_12(packed):
    with archive(packed, "wheels.tar") as tar:
        wheels = [name.removeprefix("wheels/").split("-") for name in tar.getnames() if name.endswith(".whl")]
    assert {parts[0]: parts[1] for parts in wheels} == {name: metadata.version(name) for name in (*SMALL, "encodec")}
    assert {parts[2] for parts in wheels if parts[0] == "numpy"} == {"cp312"}


def test_tritonserver_comes_with_one_stub_and_without_another_pythons_library(packed):
    with archive(packed, "tritonserver.tar.xz") as tar:
        names = tar.getnames()
    assert "pytriton/tritonserver/bin/tritonserver" in names
    stubs = [name for name in names if name.endswith("triton_python_backend_stub")]
    assert stubs == ["pytriton/tritonserver/python_backend_stubs/3.12/triton_python_backend_stub"]
    assert not [name for name in names if "libpython" in name]
    assert any(name.startswith("nvidia_pytriton.libs/libtritonserver") for name in names)


@pytest.fixture
def checkout(tmp_path):
    """What the script looks at of one."""
    for name in ("chattts_serving", "client"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def install(pack_folder, checkout, python):
    """The script in `checkout`, with everything that it says."""
    command = ["sh", pack_folder / "install.sh", "environment"]
    variables = clean_environment() | {"PYTHON": str(python)}
    return subprocess.run(
        command, cwd=checkout, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def test_the_script_makes_an_environment_with_the_machines_packages_last(packed, checkout):
    """The machine here has no PyTorch, which the script's last look at everything says."""
    python = find_python(pack.PYTHON)
    if python is None:
        pytest.skip(f"there is no Python {pack.PYTHON}")
    done = install(packed, checkout, python)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'onnxruntime'" in done.stdout
    inside = checkout / "environment" / "bin" / "python"
    code = (
        "import numpy, chattts_serving; from importlib.metadata import version; from importlib.util import find_spec;"
        "print(numpy.__version__, version('chattts-triton'), version('chattts-client'), chattts_serving.__file__,"
        " find_spec('pytriton').origin, find_spec('chattts_client').origin)"
    )
    asked = subprocess.run(
        [inside, "-c", code], cwd="/", env=clean_environment(), capture_output=True, text=True, check=True
    ).stdout.split()
    project = metadata.version("chattts-triton"), metadata.version("chattts-client")
    site = checkout / "environment" / "lib" / "python3.12" / "site-packages"
    packages = checkout / "chattts_serving", site / "pytriton", checkout / "client" / "chattts_client"
    assert asked == [metadata.version("numpy"), *project, *(str(package / "__init__.py") for package in packages)]
    path = (site / "machine.pth").read_text().splitlines()
    assert path[:2] == [str(checkout), str(checkout / "client")]
    assert all(Path(folder).is_dir() for folder in path)
    config = checkout / "build" / "repositories" / "small" / "vocos" / "config.pbtxt"
    assert "KIND_AUTO" in config.read_text()  # what there is of ONNX Runtime was not asked: there is none


def test_a_piece_that_is_missing_is_said_before_anything_is_made(packed, checkout, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(packed, part)
    next(part.glob("wheels.tar.00")).unlink()
    done = install(part, checkout, find_python(pack.PYTHON) or sys.executable)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("install.sh: ")
    assert not (checkout / "environment").exists()


@pytest.mark.skipif(sys.version_info[:2] == (3, 12), reason="this is Python 3.12")
def test_another_python_is_refused(packed, checkout):
    done = install(packed, checkout, sys.executable)
    assert (done.returncode, done.stdout) == (
        1,
        f"install.sh: {sys.executable} is not Python 3.12, which the wheels are for\n",
    )


def test_a_folder_with_something_else_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "check_repository", lambda _repository: [])
    (tmp_path / "letter").write_text("")
    with pytest.raises(ConfigError, match="exists and is no pack"):
        pack.pack(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match=r"--with-python is /nowhere, which has no lib/libpython3\.12\.so\.1\.0"):
        pack.pack(tmp_path / "out", tmp_path, python=Path("/nowhere"))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="/nowhere does not exist"):
        pack.pack(tmp_path / "out", Path("/nowhere"))
