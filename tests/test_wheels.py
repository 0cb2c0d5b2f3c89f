"""The wheels of both distributions, installed and used in folders with Chinese names and nothing of the checkout."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from gateway.process import START_S, answers, free_port
from tests.conftest import ROOT
from tests.deploy.test_requirements import UV, clean_environment, reachable
from tests.pythons import find_python

SOURCES = (
    *("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"),
    *("backends", "bench", "chattts_serving", "client", "docker", "export", "gateway", "model_repository", "voices"),
)
IGNORED = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build", "results")
FOLDER = "一个 文件夹's"


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Its standard output."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of each distribution."""
    if not reachable():
        pytest.skip("no package index can be reached")
    checkout, folder = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("wheels")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=IGNORED)
        else:
            shutil.copy2(ROOT / name, checkout / name)
    for source in (checkout, checkout / "client"):
        run(UV, "build", "--no-config", "--wheel", "--out-dir", folder, source, cwd=folder)
    return folder


def environment(folder: Path, wheels: Path, *install: object, python: Path = Path(sys.executable)) -> Path:
    """The commands' folder of an environment in `folder` with nothing but what `uv pip install` makes of `install`."""
    run(UV, "venv", "--no-config", "--python", python, folder, cwd=wheels)
    command = [UV, "pip", "install", "--no-config", "--find-links", wheels, "--python", folder / "bin" / "python"]
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
