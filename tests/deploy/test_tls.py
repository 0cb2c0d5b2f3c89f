"""A live server with the settings of docker/compose.tls.yaml: gRPC under TLS, and keys for what may be called."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import yaml
from tritonclient.utils import InferenceServerException

from chattts_serving.launcher.running import RunningServer, running_server
from tests.client.conftest import FAKE_MODEL

COMPOSE = Path(__file__).resolve().parent.parent.parent / "docker" / "compose.tls.yaml"
VALUES = {"CHATTTS_KEY": "for-callers", "CHATTTS_ADMIN_KEY": "for-operators"}
CALLER = {"triton-grpc-protocol-api-key": "for-callers"}
OPERATOR = {"triton-grpc-protocol-admin-key": "for-operators"}


def sample_flags(certificates: Path) -> list[str]:
    """The flags of the sample, with its variables and its mount filled in."""
    command = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["server-cpu"]["command"]
    return [
        re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: VALUES[found[1]], flag).replace("/certificates", str(certificates))
        for flag in command
    ]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with server.crt, signed by itself, and server.key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def server(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    log_path = tmp_path_factory.mktemp("tls") / "tritonserver.log"
    with running_server(FAKE_MODEL, log_path=log_path, flags=sample_flags(certificates)) as running:
        yield running


@pytest.fixture
def client(server: RunningServer, certificates: Path) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    certificate = str(certificates / "server.crt")
    with tritonclient.grpc.InferenceServerClient(server.grpc_url, ssl=True, root_certificates=certificate) as connected:
        yield connected


def speak(client: tritonclient.grpc.InferenceServerClient, headers: dict[str, str]) -> int:
    text = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"Hello"]], object))
    result = client.infer("chattts", [text], headers=headers, client_timeout=10)
    return int(result.as_numpy("num_tokens").item())


def test_a_caller_with_the_key_is_answered_under_tls(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert speak(client, CALLER) == len("Hello")


@pytest.mark.parametrize("headers", [{}, OPERATOR, {"triton-grpc-protocol-api-key": "guessed"}])
def test_a_caller_without_the_key_is_refused(
    client: tritonclient.grpc.InferenceServerClient, headers: dict[str, str]
) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        speak(client, headers)


def test_operators_have_a_key_of_their_own(client: tritonclient.grpc.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        client.get_model_repository_index(headers=CALLER, client_timeout=10)
    assert client.get_model_repository_index(headers=OPERATOR, client_timeout=10).models


def test_readiness_takes_no_key(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert client.is_model_ready("chattts", client_timeout=10)


def test_a_connection_in_clear_text_is_refused(server: RunningServer) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as connected,
        pytest.raises(InferenceServerException),
    ):
        connected.is_server_live(client_timeout=5)
