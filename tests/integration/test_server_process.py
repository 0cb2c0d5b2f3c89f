"""The launcher with the real tritonserver: how it starts and ends, and ONNX models through our backend."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from chattts_client import TTSClient
from onnx import TensorProto
from tritonclient.utils import InferenceServerException

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer, running_server
from chattts_serving.launcher.tritonserver import find_installation
from tests import onnx_models

ROOT = Path(__file__).parent.parent.parent
STOPS_WITHIN_S = 10.0
DEADLINE_S = 60.0  # for what must happen, on a busy machine
ECHO = """
import time
import triton_python_backend_utils as pb_utils
import chattts_serving
{extra}
class TritonPythonModel:
    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]) for array in arrays]
"""
ECHO_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "x" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "y" data_type: TYPE_FP32 dims: [ 1 ] } ]
instance_group [ { kind: KIND_CPU } ]
"""
ONE = np.ones((1, 1), np.float32)


def python_repository(folder: Path, extra: str = "") -> Path:
    """A repository of one Python model that returns its input; `extra` runs when the model is loaded."""
    (folder / "echo" / "1").mkdir(parents=True)
    (folder / "echo" / "config.pbtxt").write_text(ECHO_CONFIG, encoding="utf-8")
    (folder / "echo" / "1" / "model.py").write_text(ECHO.format(extra=extra), encoding="utf-8")
    return folder


def http_inputs(**arrays: np.ndarray) -> list[triton_http.InferInput]:
    types = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}
    tensors = [triton_http.InferInput(name, array.shape, types[array.dtype.name]) for name, array in arrays.items()]
    for tensor, array in zip(tensors, arrays.values(), strict=True):
        tensor.set_data_from_numpy(array)
    return tensors


def echoes(server: RunningServer) -> bool:
    """Whether the model `echo` answers."""
    with triton_http.InferenceServerClient(server.http_url) as client:
        try:
            return bool(client.infer("echo", http_inputs(x=ONE)).as_numpy("y") == ONE)
        except (InferenceServerException, OSError):
            return False


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true within DEADLINE_S."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_of(server: RunningServer) -> list[int]:
    """The process ids of tritonserver and its Python models."""
    return [server.pid, *child_processes(server.pid)]


def segments(launcher: int) -> list[Path]:
    """The shared memory of a launcher's server."""
    found = list(Path("/dev/shm").glob(f"chattts_{launcher}_*"))
    assert all(re.match(rf"chattts_{launcher}_[0-9a-f]{{16}}_", path.name) for path in found)
    return found


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "chattts_serving.server", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_server_and_nothing_stays(number: signal.Signals, tmp_path: Path) -> None:
    with running_server(python_repository(tmp_path / "models"), log_path=tmp_path / "log") as server:
        assert echoes(server)
        pids = processes_of(server)
        assert len(pids) == 2
        assert segments(server.launcher.pid)
        started = time.monotonic()
        server.launcher.send_signal(number)
        assert server.launcher.wait(timeout=DEADLINE_S) == 0
        assert time.monotonic() - started < STOPS_WITHIN_S
        assert not [pid for pid in pids if is_running(pid)]
        assert not segments(server.launcher.pid)


def test_the_end_of_the_block_stops_the_server(tmp_path: Path) -> None:
    with running_server(python_repository(tmp_path / "models"), log_path=tmp_path / "log") as server:
        pids = processes_of(server)
    assert not [pid for pid in pids if is_running(pid)]
    assert not segments(server.launcher.pid)


def test_a_signal_while_models_load_stops_the_server(tmp_path: Path) -> None:
    loading = tmp_path / "loading"
    extra = f"open({str(loading)!r}, 'w').close(); time.sleep(3600)"
    repository = python_repository(tmp_path / "models", extra)
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [sys.executable, "-m", "chattts_serving.server", f"--model-repository={repository}", *ports]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as launcher:
        assert eventually(loading.exists)
        [server] = child_processes(launcher.pid)
        stubs = list(child_processes(server))
        started = time.monotonic()
        launcher.terminate()
        assert launcher.wait(timeout=DEADLINE_S) == 0
        assert time.monotonic() - started < STOPS_WITHIN_S
        assert launcher.stdout is not None
        assert launcher.stdout.read() == b""
    assert not [pid for pid in (server, *stubs) if is_running(pid)]
    assert not segments(launcher.pid)


def test_a_killed_launcher_takes_the_server_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # its temporary files are all that it cannot remove
    with running_server(python_repository(tmp_path / "models"), log_path=tmp_path / "log") as server:
        pids = processes_of(server)
        server.launcher.kill()
        assert eventually(lambda: not any(map(is_running, pids)))
        assert not segments(server.launcher.pid)


def test_a_model_whose_process_dies_while_it_loads_is_named_at_once(tmp_path, capfd):
    """Triton waits for it for ever."""
    repository = python_repository(tmp_path / "models", extra="import os; time.sleep(1); os.abort()")
    with pytest.raises(ConfigError, match="did not start"), running_server(repository, log_path=tmp_path / "log"):
        pass
    assert "error: a Python model's process died: echo\n" in capfd.readouterr().err


VICTIMS: dict[str, tuple[Callable[[RunningServer], int], signal.Signals, str]] = {
    "tritonserver": (
        lambda server: server.pid,
        signal.SIGKILL,
        "error: tritonserver was ended by SIGKILL while serving",
    ),
    "tritonserver, which ends its models": (
        lambda server: server.pid,
        signal.SIGTERM,
        "error: tritonserver exited with status 0 while serving",
    ),
    "a Python model": (
        lambda server: next(iter(child_processes(server.pid))),
        signal.SIGKILL,
        "error: a Python model's process died: echo",
    ),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_what_is_killed_is_back_after_a_restart(victim: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    find, number, words = VICTIMS[victim]
    with running_server(python_repository(tmp_path / "models"), log_path=tmp_path / "log") as server:
        before = processes_of(server)
        os.kill(find(server), number)
        assert eventually(lambda: not any(map(is_running, before)))
        assert eventually(lambda: echoes(server))
        assert server.pid not in before
        assert len(segments(server.launcher.pid)) == 1
        assert server.stop() == 0
    printed = capfd.readouterr().err
    assert printed.count("error: ") == printed.count(words) == 1
    assert "restart 1 of 5 in 1 s" in printed


def test_a_taken_port_ends_the_launcher_before_anything_starts(tmp_path: Path) -> None:
    repository = python_repository(tmp_path / "models")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = launch("--model-repository", repository, "--http-port=0", f"--grpc-port={port}", "--metrics-port=0")
    assert result.returncode == 2
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert f"port {port} on 127.0.0.1" in line
    assert "--grpc-port" in line


def test_a_missing_artifact_ends_the_launcher_before_anything_starts(tmp_path: Path) -> None:
    (onnx_models.add_model(tmp_path, "vocos", onnx_models.affine()) / "1" / "model.onnx").unlink()
    result = launch("--model-repository", tmp_path)
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert "lacks vocos/1/model.onnx: run `python -m export" in line


def test_a_model_that_does_not_load_ends_the_launcher_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository, log = python_repository(tmp_path / "models", "raise ValueError('nothing to echo')"), tmp_path / "log"
    with (
        pytest.raises(ConfigError, match=r"did not start \(exit status 1\); its log is .*log"),
        running_server(repository, log_path=log),
    ):
        pytest.fail("the server got ready")
    printed = capfd.readouterr().err
    assert "ValueError: nothing to echo" in printed
    assert "error: tritonserver exited with status 1 before it was ready" in printed
    assert "nothing to echo" in log.read_text(encoding="utf-8")


def test_flags_and_odd_paths_reach_tritonserver(tmp_path: Path) -> None:
    repository = python_repository(tmp_path / "my models; (1)")
    with (
        running_server(repository, log_path=tmp_path / "log", flags=["--id=the name"]) as server,
        triton_http.InferenceServerClient(server.http_url) as client,
    ):
        assert client.get_server_metadata()["name"] == "the name"
        assert echoes(server)


@pytest.mark.parametrize(("host", "address"), [("localhost", "127.0.0.1"), ("::1", "[::1]")])
def test_every_service_listens_where_the_host_leads_to(host: str, address: str, tmp_path: Path) -> None:
    with running_server(
        python_repository(tmp_path / "models"), log_path=tmp_path / "log", launcher_flags=[f"--host={host}"]
    ) as server:
        assert {url.rpartition(":")[0] for url in (server.http_url, server.grpc_url, server.metrics_url)} == {address}
        assert echoes(server)
        for protocol in ("grpc", "http"):
            with TTSClient(getattr(server, f"{protocol}_url"), protocol, model="echo", stream_model="echo") as client:
                client.wait_ready(DEADLINE_S)
        assert server.stop() == 0


def test_http_that_is_local_leaves_grpc_and_metrics_to_the_network(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On every address, which is why the launcher warns; that one of them is 127.0.0.2 spares a network."""
    repository, flags = python_repository(tmp_path / "models"), ["--host=0.0.0.0", "--local-http"]
    with running_server(repository, log_path=tmp_path / "log", launcher_flags=flags) as server:
        assert server.http_url.startswith("127.0.0.1:")
        assert echoes(server)
        ports = {
            name: int(getattr(server, name).rpartition(":")[2]) for name in ("http_url", "grpc_url", "metrics_url")
        }
        for name in ("grpc_url", "metrics_url"):
            socket.create_connection(("127.0.0.2", ports[name])).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", ports["http_url"]))
    assert ("warning: other machines may reach this server" in capfd.readouterr().err) == (
        find_installation().libraries is not None
    )


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("echo")
    with running_server(python_repository(folder / "models"), log_path=folder / "log") as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def echo_client(echo_server: RunningServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    """tritonclient, whose methods are the same for both protocols."""
    if request.param == "http":
        with triton_http.InferenceServerClient(echo_server.http_url) as client:
            yield client
    else:
        with triton_grpc.InferenceServerClient(echo_server.grpc_url) as client:
            yield client


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("register_system_shared_memory", ["name", "/psm", 8]),
        ("unregister_system_shared_memory", []),
        ("get_system_shared_memory_status", []),
        ("register_cuda_shared_memory", ["name", b"aGFuZGxl", 0, 8]),
        ("get_model_repository_index", []),
        ("load_model", ["echo"]),
        ("unload_model", ["echo"]),
        ("get_trace_settings", []),
        ("update_trace_settings", [None, {"trace_file": "/tmp/trace"}]),
        ("update_log_settings", [{"log_file": "/tmp/log"}]),
    ],
)
def test_endpoints_for_operators_are_closed(echo_client: Any, method: str, arguments: list[Any]) -> None:
    with pytest.raises(InferenceServerException, match="restricted"):
        getattr(echo_client, method)(*arguments)


def test_endpoints_for_callers_are_open(echo_client: Any) -> None:
    assert echo_client.is_server_ready()
    assert echo_client.is_model_ready("echo")
    for method, arguments in (
        ("get_server_metadata", []),
        ("get_model_metadata", ["echo"]),
        ("get_model_config", ["echo"]),
        ("get_inference_statistics", ["echo"]),
    ):
        assert getattr(echo_client, method)(*arguments)


# The ONNX backend on a live server


@pytest.fixture(scope="module")
def onnx_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("onnx") / "models"
    one_instance = "instance_group [ { kind: KIND_CPU count: 1 } ]\n"
    batching = "max_batch_size: 8\ndynamic_batching { max_queue_delay_microseconds: 500000 }\n" + one_instance
    onnx_models.add_model(repository, "affine", onnx_models.affine(), batching)
    onnx_models.add_model(repository, "integers", onnx_models.affine(("batch", 3), TensorProto.INT32), one_instance)
    onnx_models.add_model(repository, "fixed", onnx_models.identity(TensorProto.FLOAT, (2, 3)), one_instance)
    onnx_models.add_model(repository, "gather", onnx_models.gather(), one_instance)
    with running_server(repository, log_path=repository.parent / "log") as server:
        yield server


@pytest.fixture
def client(onnx_server: RunningServer) -> Iterator[triton_http.InferenceServerClient]:
    with triton_http.InferenceServerClient(onnx_server.http_url, concurrency=8) as result:
        yield result


def test_an_onnx_model_answers_over_http(client: triton_http.InferenceServerClient) -> None:
    x, k = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    result = client.infer("affine", http_inputs(x=x, k=k))
    np.testing.assert_array_equal(result.as_numpy("y"), 2 * x + k)
    np.testing.assert_array_equal(result.as_numpy("z"), x)


def test_an_onnx_model_answers_over_grpc_with_the_output_asked_for(onnx_server: RunningServer) -> None:
    x = np.array([[1, 2, 3]], np.int32)
    inputs = [triton_grpc.InferInput(name, x.shape, "INT32") for name in ("x", "k")]
    for tensor in inputs:
        tensor.set_data_from_numpy(x)
    with triton_grpc.InferenceServerClient(onnx_server.grpc_url) as client:
        result = client.infer("integers", inputs, outputs=[triton_grpc.InferRequestedOutput("y")])
    np.testing.assert_array_equal(result.as_numpy("y"), 3 * x)
    assert result.as_numpy("z") is None


def test_concurrent_requests_run_in_one_batch(client: triton_http.InferenceServerClient) -> None:
    inputs = [np.full((1, 4), number, np.float32) for number in range(8)]
    pending = [client.async_infer("affine", http_inputs(x=array, k=array)) for array in inputs]
    for array, request in zip(inputs, pending, strict=True):
        np.testing.assert_array_equal(request.get_result().as_numpy("y"), 3 * array)
    [statistics] = client.get_inference_statistics("affine")["model_stats"]
    assert max(batch["batch_size"] for batch in statistics["batch_stats"]) > 1


def test_a_config_without_tensors_is_completed_from_the_graph(client: triton_http.InferenceServerClient) -> None:
    config = client.get_model_config("integers")
    assert config["max_batch_size"] == 4
    inputs = {entry["name"]: (entry["data_type"], entry["dims"]) for entry in config["input"]}
    assert inputs == {"x": ("TYPE_INT32", [3]), "k": ("TYPE_INT32", [3])}  # their order is the backend's
    assert "dynamic_batching" in config
    assert client.get_model_config("fixed")["max_batch_size"] == 0
    assert client.get_model_config("fixed")["input"][0]["dims"] == [2, 3]


def test_a_model_without_batching_answers(client: triton_http.InferenceServerClient) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(client.infer("fixed", http_inputs(x=x)).as_numpy("y"), x)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 2), np.float32), "k": np.ones((1, 2), np.int32)},
        {"x": np.ones((1, 2, 1), np.float32), "k": np.ones((1, 2), np.float32)},
        {"x": np.ones((9, 2), np.float32), "k": np.ones((9, 2), np.float32)},
    ],
    ids=["an input missing", "a wrong type", "a wrong rank", "a batch too large"],
)
def test_a_bad_request_is_refused_and_the_next_one_answered(
    inputs: dict[str, np.ndarray], onnx_server: RunningServer
) -> None:
    tensors = []
    for name, array in inputs.items():
        tensors.append(triton_grpc.InferInput(name, array.shape, "FP32" if array.dtype == np.float32 else "INT32"))
        tensors[-1].set_data_from_numpy(array)
    good = triton_grpc.InferInput("x", [1, 2], "FP32"), triton_grpc.InferInput("k", [1, 2], "FP32")
    for tensor in good:
        tensor.set_data_from_numpy(np.ones((1, 2), np.float32))
    with triton_grpc.InferenceServerClient(onnx_server.grpc_url) as client:
        with pytest.raises(InferenceServerException) as raised:
            client.infer("affine", tensors)
        assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
        np.testing.assert_array_equal(client.infer("affine", good).as_numpy("y"), [[3, 3]])


def test_a_request_that_fails_while_the_graph_runs_gets_the_reason(client: triton_http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match=r"onnx runtime error 2: .*out of"):
        client.infer("gather", http_inputs(index=np.array([[7]])))
    assert client.infer("gather", http_inputs(index=np.array([[1]]))).as_numpy("y") == [[20]]
