"""What the launcher checks and decides before and between runs of tritonserver; no server is started here."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chattts_serving import supervisor, tritonserver
from chattts_serving.errors import ConfigError
from chattts_serving.server import ServerOptions, choose_ports, main, parse_arguments, tritonserver_flags
from chattts_serving.supervisor import Supervision, Supervisor, TritonProcess, child_processes
from chattts_serving.tritonserver import (
    Installation,
    check_repository,
    environment,
    find_installation,
    lay_out_backends,
)


@pytest.fixture
def no_system_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", tmp_path / "none")


def executable(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def system_server(root: Path, *, python: str = tritonserver.PYTHON_VERSION, onnx: bool) -> Path:
    """A folder that looks like NVIDIA's /opt/tritonserver; the path of its binary."""
    executable(root / "backends" / "python" / tritonserver.STUB_NAME, f"ELF libpython{python}.so.1.0".encode())
    (root / "backends" / "identity").mkdir()
    if onnx:
        executable(root / "backends" / "onnxruntime" / "libtriton_onnxruntime.so")
    return executable(root / "bin" / "tritonserver")


def write_model(repository: Path, name: str, config: str, *files: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    for file in files:
        (repository / name / "1" / file).touch()


def test_defaults_are_those_of_tritonserver_on_the_loopback() -> None:
    options = parse_arguments([])
    assert (options.host, options.http_port, options.grpc_port, options.metrics_port) == ("127.0.0.1", 8000, 8001, 8002)


@pytest.mark.parametrize("separator", [[], ["--"]])
def test_further_flags_go_to_tritonserver(separator: list[str]) -> None:
    flags = ["--log-verbose=1", "--trace-config=rate=1"]
    options = parse_arguments(["--http-port", "9000", *separator, *flags])
    assert options.flags == tuple(flags)
    assert tritonserver_flags(options, Path("m"), Path("b"), {"python": "p_"})[-2:] == flags


def test_endpoints_for_operators_are_closed_by_a_key_of_their_own_for_each_start() -> None:
    starts = [tritonserver_flags(ServerOptions(), Path("m"), Path("b"), {})[-2:] for _ in range(2)]
    for http, grpc in starts:
        assert re.fullmatch(r"--http-restricted-api=shared-memory,\S+:restricted-key=[0-9a-f]{32}", http)
        assert grpc.startswith("--grpc-restricted-protocol=shared-memory,")
    assert starts[0] != starts[1]


def test_restrictions_of_the_user_replace_ours() -> None:
    own = "--http-restricted-api=trace:key=mine"
    flags = tritonserver_flags(ServerOptions(flags=(own,)), Path("m"), Path("b"), {})
    assert [flag for flag in flags if flag.startswith("--http-restricted-api")] == [own]
    assert any(flag.startswith("--grpc-restricted-protocol=shared-memory") for flag in flags)


def test_a_short_form_of_our_flags_is_not_taken_for_ours() -> None:
    assert parse_arguments(["--http=x"]).flags == ("--http=x",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--http-port=70000"], "--http-port is 70000; allowed is 0 (a free port) to 65535"),
        (["--grpc-port=8000"], "--http-port, --grpc-port, --metrics-port are [8000, 8000, 8002]; they must differ"),
        (["--http-address=::"], "--http-address=:: cannot be passed on"),
        (["--", "--http-port=9000"], "--http-port=9000 cannot be passed on"),
        (["serve"], "'serve' is no flag; those for tritonserver are written --NAME=VALUE"),
        (["--", "--log-verbose", "1"], "'1' is no flag"),
    ],
)
def test_options_out_of_range_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_free_ports_are_three_different_ones() -> None:
    options = choose_ports(ServerOptions(http_port=0, grpc_port=0, metrics_port=0))
    ports = {options.http_port, options.grpc_port, options.metrics_port}
    assert len(ports) == 3
    assert 0 not in ports


@pytest.mark.parametrize("option", ["http_port", "grpc_port", "metrics_port"])
def test_a_taken_port_is_named_with_its_option(option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = dict.fromkeys(("http_port", "grpc_port", "metrics_port"), 0) | {option: port}
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 .*in use.* --{option.replace('_', '-')}"):
            choose_ports(ServerOptions(**ports))


def test_connections_of_a_server_that_has_ended_do_not_take_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as ended:
        port = ended.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            ended.accept()[0].close()  # who closes first keeps the port in TIME_WAIT
    assert choose_ports(ServerOptions(http_port=port, grpc_port=0, metrics_port=0)).http_port == port


def test_an_unknown_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--host is no\.such\.host\.invalid"):
        choose_ports(ServerOptions(host="no.such.host.invalid"))


@pytest.mark.parametrize(
    ("config", "files", "missing"),
    [
        ('platform: "onnxruntime_onnx"\n', (), "vocos/1/model.onnx"),
        ('backend: "onnxruntime"\ndefault_model_filename: "a.onnx"\n', ("model.onnx",), "vocos/1/a.onnx"),
        ('backend: "python"\n', (), "vocos/1/model.py"),
    ],
)
def test_a_missing_artifact_is_named(config: str, files: tuple[str, ...], missing: str, tmp_path: Path) -> None:
    write_model(tmp_path, "vocos", config, *files)
    with pytest.raises(ConfigError, match=f"lacks {missing}: run `python -m export"):
        check_repository(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_missing_file_of_the_export_is_named(file: str, tmp_path: Path) -> None:
    files = {"model.py", *tritonserver.EXPORTED_FILES["gpt_decoder"]}
    write_model(tmp_path, "gpt_decoder", 'backend: "python"\n', *files - {file})
    with pytest.raises(ConfigError, match=f"lacks gpt_decoder/1/{file}: run `python -m export"):
        check_repository(tmp_path)


def test_every_missing_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_model(tmp_path, "vocos", 'platform: "onnxruntime_onnx"\n')
    with pytest.raises(ConfigError, match=r"lacks empty/config.pbtxt, vocos/1/model.onnx: "):
        check_repository(tmp_path)


def test_a_repository_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere does not exist: run `python -m export"):
        check_repository(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no models: run `python -m export"):
        check_repository(tmp_path)


def test_an_ensemble_needs_its_version_folder_only(tmp_path: Path) -> None:
    write_model(tmp_path, "chattts", 'platform: "ensemble"\n')
    assert check_repository(tmp_path) == ["chattts"]
    (tmp_path / "chattts" / "1").rmdir()
    with pytest.raises(ConfigError, match="lacks chattts/1"):
        check_repository(tmp_path)


def test_a_whole_repository_passes(tmp_path: Path) -> None:
    write_model(tmp_path, "dvae_decoder", 'platform: "onnxruntime_onnx"\n', "model.onnx")
    write_model(tmp_path, "gpt_decoder", 'backend: "python"\n', "model.py", *tritonserver.EXPORTED_FILES["gpt_decoder"])
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").touch()
    assert check_repository(tmp_path) == ["dvae_decoder", "gpt_decoder"]


@pytest.mark.usefixtures("no_system_server")
class TestInstallation:
    def test_the_wheel_is_taken_where_there_is_no_other(self) -> None:
        installation = find_installation()
        assert installation.binary.name == "tritonserver"
        assert os.access(installation.binary, os.X_OK)
        assert installation.stub.parent.name == tritonserver.PYTHON_VERSION
        assert installation.libraries is not None
        assert any(installation.libraries.glob("libtritonserver*.so"))

    def test_the_systems_own_goes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        binary = system_server(tmp_path / "opt", onnx=True)
        monkeypatch.setattr(tritonserver, "CONTAINER_BINARY", binary)
        assert find_installation().binary == binary
        on_path = system_server(tmp_path / "usr", onnx=True)
        monkeypatch.setenv("PATH", str(on_path.parent))
        assert find_installation().binary == on_path
        named = system_server(tmp_path / "named", onnx=True)
        monkeypatch.setenv("TRITONSERVER", str(named))
        assert find_installation().binary == named

    def test_a_wrong_variable_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITONSERVER", "/nowhere/tritonserver")
        with pytest.raises(ConfigError, match="TRITONSERVER names /nowhere/tritonserver"):
            find_installation()

    def test_a_system_server_for_another_python_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TRITONSERVER", str(system_server(tmp_path, python="3.7", onnx=True)))
        with pytest.raises(ConfigError, match=r"runs models with Python 3\.7, .* start it with python3\.7"):
            find_installation()

    def test_no_server_at_all_tells_where_was_looked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(ConfigError, match=r"no tritonserver found: .* nvidia-pytriton is not installed"):
            find_installation()

    def test_a_python_without_a_stub_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tritonserver, "PYTHON_VERSION", "3.99")
        with pytest.raises(ConfigError, match=r"no stub for Python 3\.99 \(it has 3\.10, 3\.11, 3\.12"):
            find_installation()

    def test_numpy_2_is_refused(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "2.1.0")
        assert main([]) == 2
        assert "NumPy 2.1.0 crashes" in capsys.readouterr().err


def test_a_complete_system_keeps_its_own_backends(tmp_path: Path) -> None:
    binary = system_server(tmp_path / "opt", onnx=True)
    backends = tmp_path / "opt" / "backends"
    installation = Installation(binary, backends, backends / "python" / tritonserver.STUB_NAME, None)
    assert lay_out_backends(installation, tmp_path / "own") == backends


def test_a_system_without_onnx_gets_ours_beside_its_own(tmp_path: Path) -> None:
    binary = system_server(tmp_path / "opt", onnx=False)
    backends = tmp_path / "opt" / "backends"
    installation = Installation(binary, backends, backends / "python" / tritonserver.STUB_NAME, None)
    own = lay_out_backends(installation, tmp_path / "own")
    assert (own / "onnxruntime" / "model.py").read_bytes() == tritonserver.ONNX_BACKEND.read_bytes()
    assert (own / "identity").resolve() == backends / "identity"
    assert (own / "python" / tritonserver.STUB_NAME).is_file()


def test_the_wheels_backends_get_the_stub_and_onnx(tmp_path: Path) -> None:
    own = lay_out_backends(tritonserver._bundled_installation(), tmp_path / "own")
    assert os.access(own / "python" / tritonserver.STUB_NAME, os.X_OK)
    assert (own / "python" / "libtriton_python.so").is_file()
    assert (own / "onnxruntime" / "model.py").is_file()


def test_the_embedded_python_is_this_one(tmp_path: Path) -> None:
    env = environment(tritonserver._bundled_installation(), tmp_path / "lib")
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent)
    assert env["LD_LIBRARY_PATH"].split(":")[0] == str(tmp_path / "lib")


def test_a_python_without_shared_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = tritonserver._bundled_installation()
    monkeypatch.setattr(tritonserver, "PYTHON_VERSION", "3.99")
    with pytest.raises(ConfigError, match=r"libpython3\.99\.so\.1\.0 not found"):
        environment(installation, tmp_path / "lib")


def test_a_child_is_seen_until_it_is_waited_for() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child_processes(os.getpid())[child.pid] in "RSD"
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
        assert child_processes(os.getpid())[child.pid] == "Z"
        child.communicate()
    assert child.pid not in child_processes(os.getpid())


def start_script(script: str, log: Callable[[bytes], object], shm_prefix: str = "chattts_test_") -> TritonProcess:
    """A run of a Python script in tritonserver's place."""
    return TritonProcess([sys.executable, "-c", script], dict(os.environ), Path.cwd(), shm_prefix, log)


def pump_until(run: TritonProcess, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < end
        run.pump(0.05)


def test_the_log_is_passed_on_and_read() -> None:
    log = bytearray()
    script = """
print("I1122 model_lifecycle.cc:839] successfully loaded 'vocos'")
print("+---+", "| a |", "E1122 model.cc:1] it broke", "error: creating server", sep="\\n")
"""
    run = start_script(script, log.extend)
    pump_until(run, lambda: run.exit_status is not None)
    run.stop()
    assert log.decode().splitlines()[1:3] == ["+---+", "| a |"]
    assert run.num_loaded == 1
    assert list(run.complaints) == ["E1122 model.cc:1] it broke", "error: creating server"]


def test_a_log_that_cannot_be_written_does_not_end_the_service() -> None:
    def full(text: bytes) -> None:
        raise OSError("no space left on device")

    run = start_script("print(\"successfully loaded 'vocos'\")", full)
    pump_until(run, lambda: run.num_loaded == 1)
    run.stop()


def test_stop_ends_even_who_will_not_and_takes_the_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT_S", 0.2)
    segment = supervisor.SHARED_MEMORY / f"chattts_test_{os.getpid()}_segment"
    segment.touch()
    script = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(subprocess.Popen(["sleep", "3600"]).pid, flush=True)
time.sleep(3600)
"""
    log = bytearray()
    run = start_script(script, log.extend, f"chattts_test_{os.getpid()}_")
    pump_until(run, lambda: b"\n" in log)
    run.stop()
    assert run.exit_status == -signal.SIGKILL
    assert not segment.exists()
    left = Path(f"/proc/{int(log)}/stat")  # a zombie where nobody waits for orphans
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"


def test_only_a_stub_that_stays_dead_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    run = start_script("", lambda _: None)
    looks = iter([{1: "S", 2: "Z"}, {1: "Z"}, {1: "Z"}])  # Triton waits for 2, which it ended; nobody for 1
    with monkeypatch.context() as patch:
        patch.setattr(supervisor, "child_processes", lambda _: next(looks))
        assert [run.has_dead_stub() for _ in range(3)] == [False, False, True]
    run.stop()


class FakeRun:
    """One run of a server that is never ready for long: it ends in the way that it is told."""

    pid = 1

    def __init__(self, *, exit_status: int | None = None, dead_stub: bool = False) -> None:
        self.exit_status, self.dead_stub = exit_status, dead_stub
        self.num_loaded, self.complaints, self.stopped = 0, ["E it broke"], False

    def pump(self, timeout_s: float) -> None:
        pass

    def has_dead_stub(self) -> bool:
        return self.dead_stub

    def stop(self) -> None:
        self.stopped = True


SUPERVISION = Supervision(
    health=("127.0.0.1", 0), ready_line="ready", num_models=1, start_timeout_s=60.0, repeat_complaints=True
)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(supervisor, "STUB_CHECK_S", 0.0)
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: True)


@pytest.mark.usefixtures("no_waiting")
def test_dying_stubs_are_given_up_after_the_last_restart(capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[FakeRun] = []

    def start() -> Any:
        runs.append(FakeRun(dead_stub=True))
        return runs[-1]

    assert Supervisor(start, SUPERVISION).run() == 1
    assert len(runs) == 1 + supervisor.MAX_RESTARTS
    assert all(run.stopped for run in runs)
    printed = capsys.readouterr()
    assert printed.out == "ready\n"
    assert "giving up" in printed.err


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(("status", "how"), [(3, "exited with status 3"), (-9, "was ended by SIGKILL")])
def test_a_server_that_ends_is_reported_with_its_log(status: int, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    run: Any = FakeRun(exit_status=status)
    assert Supervisor(lambda: run, SUPERVISION).run() == 1
    assert run.stopped
    assert capsys.readouterr().err.splitlines() == ["E it broke", f"error: tritonserver {how} while serving"]


def test_a_server_that_never_gets_ready_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: False)
    run: Any = FakeRun()
    assert Supervisor(lambda: run, replace(SUPERVISION, start_timeout_s=0.0)).run() == 1
    assert run.stopped
    assert "not ready after 0 s" in capsys.readouterr().err
