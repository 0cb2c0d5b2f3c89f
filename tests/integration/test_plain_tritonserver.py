"""tritonserver as operators start it, without the launcher and its flags; docs/operations.md says what that takes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http
from chattts_client import InvalidInputError, Speech, TTSClient, joined
from tritonclient.utils import InferenceServerException

from chattts_serving.launcher.options import PORT_OPTIONS, ServerOptions
from chattts_serving.launcher.ports import choose_ports
from chattts_serving.launcher.probe import ProbeError, check, wait_idle
from chattts_serving.launcher.processes import end_with_parent
from chattts_serving.launcher.running import RunningServer
from chattts_serving.launcher.tritonserver import ROOT, environment, find_installation, lay_out_backends
from tests.conftest import Deployment
from tests.integration.test_telemetry import new_home

START_S = 120.0
END_S = 30.0
# As docs/operations.md has it; the key is any.
CLOSED = [
    f"--{flag}=shared-memory,model-repository,trace,logging:restricted-key=1234"
    for flag in ("http-restricted-api", "grpc-restricted-protocol")
]
# Not one chunk, and more than Triton's own shared memory for a process at the start, which is 1 MiB.
INPUTS = {"text": "One sentence. " * 4, "seed": 7, "min_new_tokens": 400, "max_new_tokens": 400}


@contextmanager
def tritonserver(repository: Path, folder: Path, *flags: str) -> Iterator[RunningServer]:
    """A server with only what the wheel's needs to start, free ports, and `flags`."""
    installation, options = find_installation(), choose_ports(ServerOptions(http_port=0, grpc_port=0, metrics_port=0))
    backends = lay_out_backends(installation, folder / "backends")
    addresses = [f"{option}={getattr(options, name)}" for name, option in PORT_OPTIONS.items()]
    addresses += [f"--{name}-address={options.host}" for name in options.endpoints]
    command = [installation.binary, f"--model-repository={repository}", f"--backend-directory={backends}", *addresses]
    log = folder / "log"
    with log.open("wb") as output:
        process: subprocess.Popen[Any] = subprocess.Popen(
            [*command, *flags],
            env=environment(installation, folder / "lib"),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
    server = RunningServer(*options.endpoints.values(), log, process)
    try:
        wait_until_it_works(server)
        yield server
    finally:
        process.terminate()
        process.wait(END_S)


def wait_until_it_works(server: RunningServer) -> None:
    end = time.monotonic() + START_S
    while True:
        assert server.launcher.poll() is None, server.log_path.read_text()[-3000:]
        try:
            check(server.http_url, 5)
        except ProbeError:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What HOME is for the server."""
    return tmp_path_factory.mktemp("plain") / "home"


@pytest.fixture(scope="module")
def plain(tiny: Deployment, home: Path) -> Iterator[RunningServer]:
    with pytest.MonkeyPatch.context() as patch:
        new_home(home, patch)
        with tritonserver(tiny.repository, home.parent) as server:
            yield server


def spoken(server: RunningServer, protocol: Any) -> list[Speech]:
    """The answer, whole and from a stream."""
    with TTSClient(getattr(server, f"{protocol}_url"), protocol) as client:
        return [client.synthesize(**INPUTS), joined(list(client.stream(**INPUTS)))]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_it_says_what_the_launchers_server_says(tiny: Deployment, plain: RunningServer, protocol: str) -> None:
    for one, other in zip(spoken(plain, protocol), spoken(tiny.server, protocol), strict=True):
        assert one.audio.nbytes > 2**20
        assert one.sentences == other.sentences
        np.testing.assert_allclose(one.audio, other.audio, atol=1e-4, rtol=0)


def test_it_refuses_by_name_and_tells_when_it_is_idle(plain: RunningServer) -> None:
    with TTSClient(plain.grpc_url) as client, pytest.raises(InvalidInputError, match="'speaker' is 'nobody'"):
        client.synthesize("Hello.", speaker="nobody")
    wait_idle(plain.metrics_url, 30, 5, quiet_s=0.1)


def test_our_backend_leaves_the_home_empty(plain: RunningServer, home: Path, onnx_models_are_processes: bool) -> None:
    if not onnx_models_are_processes:
        pytest.skip("ONNX models run in the C++ backend, whose environment is the operator's")
    assert list(home.iterdir()) == []


def test_the_endpoints_for_operators_are_open_until_flags_close_them(
    tiny: Deployment, plain: RunningServer, tmp_path: Path
) -> None:
    with triton_http.InferenceServerClient(plain.http_url) as client:
        assert client.get_log_settings()
    with (
        tritonserver(tiny.repository, tmp_path, *CLOSED) as server,
        triton_http.InferenceServerClient(server.http_url) as client,
    ):
        with pytest.raises(InferenceServerException, match="restricted"):
            client.get_log_settings()
        assert client.get_log_settings(headers={"restricted-key": "1234"})
