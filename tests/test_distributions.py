"""Both distributions: the same bytes wherever they are built, what they say of themselves, and what they do installed.

That is in folders with Chinese names, with nothing of the checkout.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import wave
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from packaging.metadata import Metadata
from packaging.version import Version
from trove_classifiers import classifiers

from gateway.process import START_S, answers, free_port
from tests.conftest import ROOT
from tests.deploy.test_requirements import PYTHONS, UV, clean_environment, reachable
from tests.pythons import find_python

SOURCES = (
    *(".gitignore", "CHANGELOG.md", "LICENSE", "MANIFEST.in", "NOTICE", "README.md"),
    *("constraints.txt", "pyproject.toml", "setup.py"),
    *("backends", "bench", "chattts_serving", "client", "docker", "export", "gateway", "model_repository", "voices"),
    *("tests", "training"),
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build", "results")
FOLDER = "一个 文件夹's"
DISTRIBUTIONS = {"chattts_triton": ".", "chattts_client": "client"}  # their folders in the checkout
EPOCH_S = "1700000000"


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Its standard output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment() | {"UV_NO_CONFIG": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def copy_checkout(folder: Path) -> Path:
    """The project's files in `folder`, all as old as the copy is."""
    folder.mkdir(exist_ok=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=IGNORED, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def build(source: Path, out: Path, *flags: str) -> None:
    """`python -m build` of the distribution in `source`: an archive of its sources, and of that a wheel."""
    command = (sys.executable, "-m", "build", "--installer", "uv", "--outdir", out, *flags, source)
    run(*command, cwd=out, SOURCE_DATE_EPOCH=EPOCH_S)


@dataclass(frozen=True)
class Built:
    """A folder with sources and wheel of each distribution, and the checkout that they were built from."""

    folder: Path
    checkout: Path

    def one(self, distribution: str, ending: str) -> Path:
        (path,) = self.folder.glob(f"{distribution}-*{ending}")
        return path

    def metadata(self, distribution: str) -> Metadata:
        with zipfile.ZipFile(self.one(distribution, ".whl")) as wheel:
            (name,) = [one for one in wheel.namelist() if one.endswith(".dist-info/METADATA")]
            return Metadata.from_email(wheel.read(name))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    if not reachable():
        pytest.skip("no package index can be reached")
    found = Built(tmp_path_factory.mktemp("built"), copy_checkout(tmp_path_factory.mktemp("checkout")))
    for source in DISTRIBUTIONS.values():
        build(found.checkout / source, found.folder)
    return found


@pytest.fixture(scope="module")
def wheels(built: Built) -> Path:
    """A folder with the wheel of each distribution."""
    return built.folder


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_another_checkout_and_the_sources_archive_give_the_same_bytes(distribution, built, tmp_path):
    """The wheel that they are compared with was built from the archive, elsewhere and at another time."""
    checkout = copy_checkout(tmp_path / FOLDER)
    with tarfile.open(built.one(distribution, ".tar.gz")) as sources:
        sources.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob(f"{distribution}-*")
    here = checkout / DISTRIBUTIONS[distribution]
    for number, (source, flag) in enumerate([(here, "--sdist"), (here, "--wheel"), (unpacked, "--sdist")]):
        out = tmp_path / str(number)
        out.mkdir()
        build(source, out, flag)
        (path,) = out.iterdir()
        assert path.read_bytes() == (built.folder / path.name).read_bytes(), (source, flag)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_metadata_say_what_is_so(distribution, built):
    metadata = built.metadata(distribution)  # raises where the standard is broken
    assert metadata.license_expression == "Apache-2.0"
    assert "LICENSE" in metadata.license_files
    assert metadata.summary
    assert metadata.description_content_type == "text/markdown"
    assert set(metadata.classifiers) <= classifiers
    supported = [one.rpartition(" ")[2] for one in metadata.classifiers if re.search(r":: 3\.\d+$", one)]
    assert all(metadata.requires_python.contains(version) for version in supported)
    assert set(PYTHONS) <= set(supported)
    assert not metadata.requires_python.contains("3.9")
    assert {urlsplit(url).hostname for url in metadata.project_urls.values()} == {"github.com"}
    with (
        zipfile.ZipFile(built.one(distribution, ".whl")) as wheel,
        tarfile.open(built.one(distribution, ".tar.gz")) as sources,
    ):
        inside = {one.partition("/licenses/")[2] for one in wheel.namelist()}
        assert set(metadata.license_files) <= inside
        root = built.one(distribution, ".tar.gz").name.removesuffix(".tar.gz")
        description = sources.extractfile(f"{root}/PKG-INFO")
        assert description
        assert Metadata.from_email(description.read()).version == metadata.version


def test_the_version_stands_in_one_place_and_all_follow(built):
    (version,) = re.findall(r'^version = "(.*?)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert {str(built.metadata(one).version) for one in DISTRIBUTIONS} == {version}
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    released = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", one)[1] for one in headings[1:]]
    assert released == sorted(released, key=Version, reverse=True)
    assert all(Version(one) <= Version(version) for one in released)


def test_sources_have_what_a_build_needs_and_nothing_that_was_built(built):
    with tarfile.open(built.one("chattts_triton", ".tar.gz")) as sources:
        names = {one.partition("/")[2] for one in sources.getnames()}
        assert {(one.mtime, one.uid, one.uname, one.gname) for one in sources} == {(int(EPOCH_S), 0, "", "")}
    assert {
        "CHANGELOG.md",
        "NOTICE",
        "chattts_serving/engine/cpu/step.h",
        "model_repository/chattts/config.pbtxt",
    } <= names
    assert not [
        one for one in names if one.startswith(("tests/", "training/")) or one.endswith((".so", ".onnx", ".pyc"))
    ]


def environment(folder: Path, wheels: Path, *install: object, python: Path = Path(sys.executable)) -> Path:
    """The commands' folder of an environment in `folder` with nothing but what `uv pip install` makes of `install`."""
    run(UV, "venv", "--python", python, folder, cwd=wheels)
    command = [UV, "pip", "install", "--find-links", wheels, "--python", folder / "bin" / "python"]
    run(*command, *install, cwd=wheels)
    return folder / "bin"


def seconds_of(path: Path) -> float:
    with wave.open(str(path)) as file:
        return file.getnframes() / file.getframerate()


@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_a_client_alone_speaks_over_both_protocols_beside_numpy_2(version, wheels, tiny, tmp_path):
    python = find_python(version) or Path(sys.executable)
    commands = environment(tmp_path / FOLDER, wheels, "chattts-client", python=python)
    assert run(commands / "python", "-c", "import numpy; print(numpy.__version__)", cwd=tmp_path) >= "2"
    listed = run(UV, "pip", "list", "--python", commands / "python", cwd=tmp_path)
    assert "chattts-triton" not in listed
    for protocol, url in (("grpc", tiny.server.grpc_url), ("http", tiny.server.http_url)):
        output = tmp_path / FOLDER / f"{protocol}.wav"
        run(
            *(commands / "chattts", "Hello.", "-o", output, "--protocol", protocol, "--url", url),
            *("--seed", 7, "--max-new-tokens", 20),
            cwd=tmp_path,
        )
        assert 0 < seconds_of(output) < 1


@contextmanager
def started(*command: object, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """It runs for the length of the block, with its standard output piped, all its files in `cwd`, and ends well."""
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment() | {"TMPDIR": str(cwd)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn raises it again when it has ended


def test_an_installed_server_and_gateway_serve_what_was_exported(wheels, tmp_path):
    (wheel,) = wheels.glob("chattts_triton-*.whl")
    project = f"{wheel}[embedded-cpu,onnx,gateway]"
    commands = environment(tmp_path / FOLDER, wheels, "--constraint", ROOT / "constraints.txt", project)
    folder = tmp_path / f"{FOLDER} 2"
    folder.mkdir()
    run(commands / "chattts-export", "--checkpoint", "demo", cwd=folder)
    shipped = "from chattts_serving.shipped import shipped; print(shipped('docker/haproxy/haproxy.cfg'))"
    assert run(commands / "python", "-c", shipped, cwd=folder).startswith(str(tmp_path))  # which --gpus needs
    ports = ("--http-port=0", "--grpc-port=0", "--metrics-port=0")
    with started(commands / "chattts-server", *ports, cwd=folder) as server:
        addresses = dict(part.split("=") for part in server.stdout.readline().split()[1:])
        run(commands / "chattts", "Good morning.", "-o", "a.wav", "--url", addresses["grpc"], cwd=folder)
        assert 0.3 < seconds_of(folder / "a.wav") < 5
        port = free_port()
        with started(commands / "chattts-gateway", "--triton", addresses["grpc"], "--port", port, cwd=folder):
            end = time.monotonic() + START_S
            while not answers(f"http://127.0.0.1:{port}/health/ready"):
                assert time.monotonic() < end
                time.sleep(0.1)
            body = {"model": "chattts", "voice": "default", "input": "Hello.", "response_format": "mp3"}
            assert requests.post(f"http://127.0.0.1:{port}/v1/audio/speech", json=body, timeout=60).status_code == 200
            assert "<html" in requests.get(f"http://127.0.0.1:{port}/", timeout=30).text
