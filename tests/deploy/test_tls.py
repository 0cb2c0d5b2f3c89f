"""The TLS sample of Compose: a real HAProxy with its configuration in front of a server that knows nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import yaml
from tritonclient.utils import InferenceServerException

from chattts_serving.launcher.processes import end_with_parent
from chattts_serving.launcher.running import running_server
from tests.client.conftest import FAKE_MODEL
from tests.deploy.haproxy import FOLDER, free_ports, program, wait_for_port

KEY = "for-callers"
CALLER = {"x-api-key": KEY}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with server.crt, signed by itself, and server.pem, which has the key, too."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(folder / "server.key"), "-out", str(folder / "server.crt")]
    subprocess.run(command, check=True, capture_output=True)
    (folder / "server.pem").write_bytes((folder / "server.crt").read_bytes() + (folder / "server.key").read_bytes())
    return folder


@pytest.fixture(scope="module")
def url(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where HAProxy listens."""
    binary = program()
    log = tmp_path_factory.mktemp("tls") / "tritonserver.log"
    with running_server(FAKE_MODEL, log_path=log) as server:
        [port] = free_ports(1)
        values = {
            "CHATTTS_ADDRESS": f"127.0.0.1:{port}",
            "CHATTTS_CERTIFICATE": str(certificates / "server.pem"),
            "CHATTTS_KEY": KEY,
            "CHATTTS_SERVER": server.grpc_url,
        }
        check = [binary, "-c", "-dW", "-f", str(FOLDER / "tls.cfg")]
        checked = subprocess.run(check, env=os.environ | values, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        process = subprocess.Popen(
            [binary, "-db", "-f", str(FOLDER / "tls.cfg")],
            env=os.environ | values,
            stdout=subprocess.DEVNULL,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        )
        try:
            wait_for_port(port, process)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def client(url: str, certificates: Path) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    certificate = str(certificates / "server.crt")
    with tritonclient.grpc.InferenceServerClient(url, ssl=True, root_certificates=certificate) as connected:
        yield connected


def speak(client: tritonclient.grpc.InferenceServerClient, headers: dict[str, str]) -> int:
    text = tritonclient.grpc.InferInput("text", [1, 1], "BYTES")
    text.set_data_from_numpy(np.array([[b"Hello"]], object))
    result = client.infer("chattts", [text], headers=headers, client_timeout=10)
    return int(result.as_numpy("num_tokens").item())


def test_a_caller_with_the_key_is_answered_under_tls(client: tritonclient.grpc.InferenceServerClient) -> None:
    assert speak(client, CALLER) == len("Hello")
    assert client.is_model_ready("chattts", headers=CALLER, client_timeout=10)


@pytest.mark.parametrize("headers", [{}, {"x-api-key": ""}, {"x-api-key": "guessed"}, {"x-api-key": f"{KEY}s"}])
def test_a_caller_without_the_key_is_refused(
    client: tritonclient.grpc.InferenceServerClient, headers: dict[str, str]
) -> None:
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        speak(client, headers)


def test_endpoints_for_operators_are_closed(client: tritonclient.grpc.InferenceServerClient) -> None:
    for call in (client.get_model_repository_index, client.get_log_settings, client.get_trace_settings):
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            call(headers=CALLER, client_timeout=10)


def test_a_connection_in_clear_text_is_refused(url: str) -> None:
    with tritonclient.grpc.InferenceServerClient(url) as connected, pytest.raises(InferenceServerException):
        connected.is_server_live(headers=CALLER, client_timeout=5)


def test_the_sample_leaves_the_server_and_the_gateway_as_they_are() -> None:
    """The gateway speaks to the server in clear text and without a key."""
    services = yaml.safe_load((FOLDER.parent / "compose.tls.yaml").read_text(encoding="utf-8"))["services"]
    assert set(services) == {"tls"}
    assert services["tls"]["environment"]["CHATTTS_SERVER"] == "server:8001"
