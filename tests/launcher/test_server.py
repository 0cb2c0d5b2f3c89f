"""What the launcher checks and decides before and between runs of tritonserver; no server is started here."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.launcher import draining, supervisor, tritonserver
from chattts_serving.launcher.draining import Drain
from chattts_serving.launcher.limits import MemoryLimit
from chattts_serving.launcher.options import PORT_OPTIONS, ServerOptions, parse_arguments
from chattts_serving.launcher.ports import choose_ports, hold_ports
from chattts_serving.launcher.probe import ProbeError
from chattts_serving.launcher.processes import UNKNOWN, child_processes, model_of
from chattts_serving.launcher.server import main, traces_url, tritonserver_flags
from chattts_serving.launcher.supervisor import Supervision, Supervisor, TritonProcess
from chattts_serving.launcher.tritonserver import (
    Installation,
    check_repository,
    environment,
    find_installation,
    lay_out_backends,
)
from chattts_serving.launcher.watchdog import Watchdog
from chattts_serving.shipped import shipped


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


@pytest.mark.parametrize(
    "written",
    [
        ["--log-verbose=1", "--trace-config=rate=1"],
        ["--", "--log-verbose=1", "--trace-config=rate=1"],
        ["--triton-flag=--log-verbose=1", "--triton-flag=--trace-config=rate=1"],
        ["--triton-flag=--log-verbose=1", "--trace-config=rate=1"],
    ],
)
def test_further_flags_go_to_tritonserver(written: list[str]) -> None:
    flags = ["--log-verbose=1", "--trace-config=rate=1"]
    options = parse_arguments(["--http-port", "9000", *written])
    assert options.flags == tuple(flags)
    assert tritonserver_flags(options, Path("m"), Path("b"), "p_")[-2:] == flags


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ([], ""),
        (["level=TIMESTAMPS", "opentelemetry,url=http://a:1/x"], ""),
        (["mode=triton"], ""),
        (["mode=opentelemetry"], "http://localhost:4318/v1/traces"),
        (["opentelemetry,url=http://a:1/x", "mode=opentelemetry"], "http://a:1/x"),
    ],
)
def test_the_models_send_their_spans_where_tritonserver_does(settings: list[str], url: str) -> None:
    assert traces_url([f"--trace-config={one}" for one in settings]) == url


def test_endpoints_for_operators_are_closed_by_a_key_of_their_own_for_each_start() -> None:
    starts = [tritonserver_flags(ServerOptions(), Path("m"), Path("b"), "p_")[-2:] for _ in range(2)]
    for http, grpc in starts:
        assert re.fullmatch(r"--http-restricted-api=shared-memory,\S+:restricted-key=[0-9a-f]{32}", http)
        assert grpc.startswith("--grpc-restricted-protocol=shared-memory,")
    assert starts[0] != starts[1]


def test_restrictions_of_the_user_replace_ours() -> None:
    own = "--http-restricted-api=trace:key=mine"
    flags = tritonserver_flags(ServerOptions(flags=(own,)), Path("m"), Path("b"), "p_")
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
        (["--triton-flag=log-verbose=1"], "'log-verbose=1' is no flag"),
        (["--triton-flag=--http-port=9000"], "--http-port=9000 cannot be passed on"),
        (["--drain-timeout=-1"], "--drain-timeout is -1; allowed is 0 to 86400 seconds"),
        (["--lexicon=no/words.json"], "--lexicon is no/words.json; allowed is a file that this user may read"),
        (["--hang-timeout=nan"], "--hang-timeout is nan; allowed is 0 to 86400 seconds"),
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


def test_a_held_port_is_free_for_the_server_and_for_nobody_who_wants_any() -> None:
    chosen = [choose_ports(ServerOptions(http_port=0, grpc_port=0, metrics_port=0)) for _ in range(100)]
    with ExitStack() as held:
        for options in chosen:
            hold_ports(options, held)
        ports = {getattr(options, name) for options in chosen for name in PORT_OPTIONS}
        others = [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(500)]
        assert not ports & set(others)
        for port in sorted(ports)[:3]:
            socket.create_server(("127.0.0.1", port)).close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "", "::1::", "a b", "ä" * 80, "::1%lo"])
def test_an_unknown_host_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"--host is '{re.escape(host)}'.*; allowed is"):
        choose_ports(ServerOptions(host=host))


@pytest.mark.parametrize(
    ("host", "address", "url", "http_flag", "grpc_flag"),
    [
        ("localhost", "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("::1", "::1", "[::1]", "ipv6:::1", "[::1]"),
        ("0:0::1", "::1", "[::1]", "ipv6:::1", "[::1]"),
    ],
)
def test_tritonserver_gets_an_address_in_the_way_of_each_service(
    host: str, address: str, url: str, http_flag: str, grpc_flag: str
) -> None:
    options = choose_ports(ServerOptions(host=host, http_port=0, grpc_port=0, metrics_port=0))
    assert options.host == address
    assert [one.rpartition(":")[0] for one in options.endpoints.values()] == [url] * 3
    flags = tritonserver_flags(options, Path("m"), Path("b"), "p_")
    assert {f"--http-address={http_flag}", f"--grpc-address={grpc_flag}", f"--metrics-address={http_flag}"} < set(flags)


def test_local_http_is_on_the_loopback_whatever_the_host_is() -> None:
    options = choose_ports(ServerOptions(host="0.0.0.0", local_http=True, http_port=0, grpc_port=0, metrics_port=0))
    flags = tritonserver_flags(options, Path("m"), Path("b"), "p_")
    assert {"--http-address=127.0.0.1", "--grpc-address=0.0.0.0", "--metrics-address=0.0.0.0"} < set(flags)


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
    assert (own / "onnxruntime" / "model.py").read_bytes() == shipped(tritonserver.ONNX_BACKEND).read_bytes()
    assert (own / "identity").resolve() == backends / "identity"
    assert (own / "python" / tritonserver.STUB_NAME).is_file()


def test_the_wheels_backends_get_the_stub_and_onnx(tmp_path: Path) -> None:
    own = lay_out_backends(tritonserver._bundled_installation(), tmp_path / "own")
    assert os.access(own / "python" / tritonserver.STUB_NAME, os.X_OK)
    assert (own / "python" / "libtriton_python.so").is_file()
    assert (own / "onnxruntime" / "model.py").is_file()


def test_the_embedded_python_is_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_SERVER_VERSION", "2.71.0")
    env = environment(tritonserver._bundled_installation(), tmp_path / "lib")
    assert "TRITON_SERVER_VERSION" not in env  # the wheel's server is another
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


STOP_S = 5.0


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
    run.stop(STOP_S)
    assert log.decode().splitlines()[1:3] == ["+---+", "| a |"]
    assert run.num_loaded == 1
    assert list(run.complaints) == ["E1122 model.cc:1] it broke", "error: creating server"]


def test_the_log_is_passed_on_in_whole_lines_so_that_others_stand_between_them(tmp_path: Path) -> None:
    log: list[bytes] = []
    script = f"""
import pathlib, time
print("whole\\nhalf of", end="", flush=True)
while not pathlib.Path({str(tmp_path / "go")!r}).exists():
    time.sleep(0.01)
print(" a line\\nthe last", end="")
"""
    run = start_script(script, log.append)
    pump_until(run, lambda: bool(log))
    run.pump(0.2)
    assert b"".join(log) == b"whole\n"
    (tmp_path / "go").touch()
    pump_until(run, lambda: run.exit_status is not None)
    run.stop(STOP_S)
    assert b"".join(log) == b"whole\nhalf of a line\nthe last\n"


def test_a_log_that_cannot_be_written_does_not_end_the_service() -> None:
    def full(text: bytes) -> None:
        raise OSError("no space left on device")

    run = start_script("print(\"successfully loaded 'vocos'\")", full)
    pump_until(run, lambda: run.num_loaded == 1)
    run.stop(STOP_S)


def test_stop_ends_even_who_will_not_and_takes_the_shared_memory() -> None:
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
    run.stop(0.2)
    assert run.exit_status == -signal.SIGKILL
    assert not segment.exists()
    left = Path(f"/proc/{int(log)}/stat")  # a zombie where nobody waits for orphans
    assert not left.exists() or left.read_text().rpartition(")")[2].split()[0] == "Z"


# A server whose child is called as a Python model's process is; it waits for the dead at once if told to.
PARENT = """
import signal, subprocess, sys
if {waits}:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
other, stub = (subprocess.Popen([name, "3600"], executable="sleep").pid for name in ("helper", "{stub}"))
print(other, stub, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("waits", [False, True])
def test_a_stub_that_died_is_noticed_be_it_left_a_zombie_or_gone(waits: bool) -> None:
    log = bytearray()
    run = start_script(PARENT.format(waits=waits, stub=f"/a/{tritonserver.STUB_NAME}"), log.extend)
    pump_until(run, lambda: b"\n" in log)
    other, stub = map(int, log.split())
    try:
        pump_until(run, lambda: model_of(stub))  # it was not, until it had begun
        run.remember_stubs()
        assert not run.dead_stubs()
        os.kill(other, signal.SIGKILL)
        pump_until(run, lambda: child_processes(run.pid).get(other, "Z") == "Z")
        assert not run.dead_stubs()
        os.kill(stub, signal.SIGKILL)
        pump_until(run, lambda: run.dead_stubs() == {stub: UNKNOWN})
        assert (stub in child_processes(run.pid)) is not waits
    finally:
        run.stop(STOP_S)


class FakeRun:
    """One run of a server that is ready at once and ends in the way that it is told."""

    pid = 1

    def __init__(self, *, exit_status: int | None = None, dead_stub: bool = False) -> None:
        self.exit_status, self.dead_stub = exit_status, dead_stub
        self.num_loaded, self.complaints, self.stopped_within_s = 0, ["E it broke"], -1.0

    def pump(self, timeout_s: float) -> None:
        pass

    def remember_stubs(self) -> None:
        pass

    def dead_stubs(self) -> dict[int, str]:
        return {2: "vocos"} if self.dead_stub else {}

    def stop(self, timeout_s: float) -> None:
        self.stopped_within_s = timeout_s


def refuse(timeout_s: float) -> None:
    """The question to a server that never gives a good answer."""
    raise ProbeError("status 500")


NOWHERE = ("127.0.0.1", 0)


@pytest.fixture
def supervision(tmp_path: Path) -> Supervision:
    return Supervision(
        health=NOWHERE,
        metrics=None,
        ready_line="ready",
        num_models=1,
        start_timeout_s=60.0,
        repeat_complaints=True,
        ask=lambda _: None,
        hang_timeout_s=0.0,
        drain=Drain(tmp_path / "drain", 0.0, NOWHERE),
        memory=MemoryLimit(),
    )


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.0)
    monkeypatch.setattr(supervisor, "STUB_CHECK_S", 0.0)
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: True)
    monkeypatch.setattr(Supervisor, "_health_status", lambda _: 400)  # as Triton has it from about 26.07 on


def runs_of(make_run: Callable[[], FakeRun], supervision: Supervision) -> tuple[int, list[FakeRun]]:
    """The exit status of a launcher whose server runs like this, and every run of it."""
    runs: list[FakeRun] = []

    def start() -> Any:
        runs.append(make_run())
        return runs[-1]

    return Supervisor(start, supervision).run(), runs


FAILURES: dict[str, tuple[Callable[[], FakeRun], dict[str, Any], str]] = {
    "a dead stub": (lambda: FakeRun(dead_stub=True), {}, "error: a Python model's process died: vocos"),
    "an exit": (lambda: FakeRun(exit_status=3), {}, "error: tritonserver exited with status 3 while serving"),
    "a kill": (lambda: FakeRun(exit_status=-9), {}, "error: tritonserver was ended by SIGKILL while serving"),
    "no answer": (FakeRun, {"ask": refuse, "hang_timeout_s": 0.01}, "error: no good answer for 0 s (--hang-timeout)"),
}


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("failure", FAILURES)
def test_a_server_that_fails_again_and_again_is_given_up_after_the_last_restart(
    failure: str, supervision: Supervision, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run, changes, words = FAILURES[failure]
    status, runs = runs_of(make_run, replace(supervision, **changes))
    assert status == 1
    assert len(runs) == 1 + supervisor.MAX_RESTARTS
    assert all(run.stopped_within_s >= 0 for run in runs)
    printed = capsys.readouterr()
    assert printed.out == "ready\n"
    assert printed.err.count(words) == len(runs)
    assert f"restart {supervisor.MAX_RESTARTS} of {supervisor.MAX_RESTARTS} in 0 s" in printed.err
    assert printed.err.endswith(f"failed again after {supervisor.MAX_RESTARTS} restarts; giving up\n")


@pytest.mark.usefixtures("no_waiting")
def test_stubs_that_end_with_their_server_did_not_die(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Triton closes HTTP before it ends them, and has its time to end itself."""

    class Ending(FakeRun):
        def dead_stubs(self) -> dict[int, str]:
            self.exit_status = 0  # at the next look
            return {2: "vocos"}

    monkeypatch.setattr(Supervisor, "_health_status", lambda _: None)
    _, runs = runs_of(Ending, supervision)
    assert "exited with status 0 while serving" in capsys.readouterr().err
    assert {run.stopped_within_s for run in runs} == {supervisor.STOP_TIMEOUT_S}


# A server that is never ready and waits for none of its stubs, of which one has ended.
LOADS_FOR_EVER = """
import subprocess, time
[subprocess.Popen([f"/a/{stub}", seconds], executable="sleep") for seconds in ("0.3", "3600")]
time.sleep(3600)
"""


def test_a_stub_that_died_while_models_load_ends_the_start(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "LOADING_CHECK_S", 0.5)
    script = LOADS_FOR_EVER.replace("{stub}", tritonserver.STUB_NAME)

    def start() -> TritonProcess:
        return TritonProcess(
            [sys.executable, "-c", script], dict(os.environ), Path.cwd(), "chattts_test_", lambda _: None
        )

    assert Supervisor(start, supervision).run() == 1
    assert capsys.readouterr().err.endswith(f"error: a Python model's process died: {UNKNOWN}\n")


# A server that says it is ready while its stub lives, and waits for it once it is dead.
READY_WHILE_ALIVE = """
import http.server, subprocess
stub = subprocess.Popen(["{stub}", "3600"], executable="sleep")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if stub.poll() is None else 400)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", {port}), Health).serve_forever()
"""


def test_a_server_is_started_anew_soon_after_a_stub_died_that_it_waited_for(supervision: Supervision) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        health = free.getsockname()
    script = READY_WHILE_ALIVE.format(stub=tritonserver.STUB_NAME, port=health[1])
    times: list[float] = []

    class Killed(TritonProcess):
        """Its stub is killed when the server is ready, and waited for before it is looked at."""

        def dead_stubs(self) -> dict[int, str]:
            if supervised._is_serving and not times:
                [stub] = child_processes(self.pid)
                os.kill(stub, signal.SIGKILL)
                times.append(time.monotonic())
                while child_processes(self.pid):
                    assert supervised._health_status() is not None
            return super().dead_stubs()

    def start() -> TritonProcess:
        if times:
            times.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGTERM)
        return Killed([sys.executable, "-c", script], dict(os.environ), Path.cwd(), "chattts_test_", lambda _: None)

    supervised = Supervisor(start, replace(supervision, health=health))
    assert supervised.run() == 0
    died, started = times
    assert started - died < 5


@pytest.mark.usefixtures("no_waiting")
def test_a_restart_that_fails_to_load_is_tried_again_and_reported_as_that(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = iter([True])
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: next(first, False))
    status, runs = runs_of(lambda: FakeRun(exit_status=1), supervision)
    assert status == 1
    assert len(runs) == 1 + supervisor.MAX_RESTARTS
    printed = capsys.readouterr().err
    assert printed.count("exited with status 1 while serving") == 1
    assert printed.count("exited with status 1 before it was ready") == supervisor.MAX_RESTARTS


@pytest.mark.usefixtures("no_waiting")
def test_restarts_are_forgiven_after_a_steady_time(supervision: Supervision, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = 2 * supervisor.MAX_RESTARTS  # runs that were steady, before those that were not
    times = iter([supervisor.STEADY_S + 1] * steady + [0.0] * 100)

    class SteadyRun(FakeRun):
        def pump(self, timeout_s: float) -> None:
            now[0] += next(times)

    now = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    status, runs = runs_of(lambda: SteadyRun(exit_status=-9), supervision)
    assert status == 1
    assert len(runs) == steady + supervisor.MAX_RESTARTS


@pytest.mark.usefixtures("no_waiting")
def test_a_server_that_cannot_answer_is_ended_soon_and_one_that_can_gets_its_time(supervision: Supervision) -> None:
    _, broken = runs_of(lambda: FakeRun(dead_stub=True), supervision)
    assert {run.stopped_within_s for run in broken} == {supervisor.ABORT_TIMEOUT_S}
    _, ended = runs_of(lambda: FakeRun(exit_status=1), supervision)
    assert {run.stopped_within_s for run in ended} == {supervisor.STOP_TIMEOUT_S}


@pytest.mark.parametrize(("status", "how"), [(3, "exited with status 3"), (-9, "was ended by SIGKILL")])
def test_a_server_that_ends_before_it_was_ever_ready_is_reported_with_its_log_and_not_restarted(
    status: int,
    how: str,
    supervision: Supervision,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: False)
    launcher, runs = runs_of(lambda: FakeRun(exit_status=status), supervision)
    assert launcher == 1
    assert len(runs) == 1
    assert capsys.readouterr().err.splitlines() == ["E it broke", f"error: tritonserver {how} before it was ready"]


def test_a_server_is_ready_when_its_last_service_has_started(peer: Any, supervision: Supervision) -> None:
    address = ("127.0.0.1", peer.server_port)
    with socket.create_server(("127.0.0.1", 0)) as service:
        started = replace(supervision, health=address, metrics=service.getsockname())
        assert Supervisor(Any, started)._is_ready()
    assert not Supervisor(Any, started)._is_ready()
    assert Supervisor(Any, replace(started, metrics=None))._is_ready()
    peer.status = 400
    assert not Supervisor(Any, replace(started, metrics=None))._is_ready()


def test_a_server_that_never_gets_ready_is_given_up(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Supervisor, "_is_ready", lambda _: False)
    status, runs = runs_of(FakeRun, replace(supervision, start_timeout_s=0.0))
    assert status == 1
    assert len(runs) == 1
    assert runs[0].stopped_within_s >= 0
    assert "not ready after 0 s" in capsys.readouterr().err


# The watchdog


def hangs_within(dog: Watchdog, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if dog.hangs():
            return True
        time.sleep(0.01)
    return False


def never(timeout_s: float) -> None:
    """The question to a server that hangs, which waits as long as it may."""
    time.sleep(timeout_s)
    raise ProbeError("timed out")


@pytest.mark.parametrize("ask", [refuse, never])
def test_no_good_answer_for_the_limit_is_a_hang(ask: Callable[[float], None]) -> None:
    started = time.monotonic()
    dog = Watchdog(ask, 0.4)
    assert hangs_within(dog, 30)
    assert time.monotonic() - started >= 0.4
    dog.close()


def test_a_good_answer_now_and_then_is_none(tmp_path: Path) -> None:
    asked = tmp_path / "asked"

    def ask_every_other_time(_: float) -> None:  # in a process of its own, which forgets
        with asked.open("a") as file:
            file.write(".")
        if asked.stat().st_size % 2:
            raise ProbeError("not this time")

    dog = Watchdog(ask_every_other_time, 2)
    assert not hangs_within(dog, 4)
    dog.close()
    assert asked.stat().st_size > 3


def test_a_limit_of_zero_never_asks() -> None:
    dog = Watchdog(refuse, 0)
    assert not hangs_within(dog, 0.2)


def test_a_question_under_way_ends_with_the_watchdog() -> None:
    dog = Watchdog(lambda _: time.sleep(3600), 0.1)
    before = set(child_processes(os.getpid()))
    assert not hangs_within(dog, 0.2)
    [asking] = set(child_processes(os.getpid())) - before
    dog.close()
    assert asking not in child_processes(os.getpid())


class Answer(BaseHTTPRequestHandler):
    """Answers every question with the server's `status` and `text`."""

    def do_GET(self) -> None:
        server: Any = self.server
        self.send_response(server.status)
        self.end_headers()
        self.wfile.write(server.text.encode())

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def peer() -> Iterator[Any]:
    """An HTTP server whose `status` and `text` may be set."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.status, server.text = 200, ""  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Draining


def metrics(num_open: int, *ended: int, spoken: int = 0) -> str:
    """`spoken` requests are still with the models that speak."""
    lines = [f'nv_inference_request_success{{model="m{place}"}} {number}\n' for place, number in enumerate(ended)]
    for model, come in (("speech", spoken + 3), ("chattts_stream", 4)):
        lines += [f'chattts_requests_come_total{{model="{model}"}} {come}\n']
        lines += [f'chattts_requests_gone_total{{model="{model}"}} {come - spoken * (model == "speech")}\n']
    return f"chattts_requests_open {num_open}\n{''.join(lines)}"


def test_the_file_of_a_drain_says_when_it_ends(tmp_path: Path) -> None:
    drain = Drain(tmp_path / "drain", 30.0, NOWHERE)
    assert drain.environment() == {"CHATTTS_DRAIN_FILE": str(tmp_path / "drain")}
    assert not drain.file.exists()
    before = time.monotonic()
    drain.begin()
    assert before + 30.0 <= float(drain.file.read_text()) <= time.monotonic() + 30.0
    assert [path.name for path in tmp_path.iterdir()] == ["drain"]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of drains, which tests set."""
    now = [1000.0]
    monkeypatch.setattr(draining.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def drain(peer: Any, tmp_path: Path, now: list[float]) -> Drain:
    """One that has begun, of a server whose metrics `peer` tells."""
    drain = Drain(tmp_path / "drain", 30.0, ("127.0.0.1", peer.server_port))
    drain.begin()
    return drain


def test_a_drain_is_over_when_nothing_is_open_and_nothing_ends_any_more(
    peer: Any, drain: Drain, now: list[float]
) -> None:

    def is_over_after(seconds: float, text: str) -> bool:
        now[0] += seconds
        peer.text = text
        return drain.is_over()

    assert not is_over_after(0.0, metrics(0, 5, 2))
    assert not is_over_after(draining.QUIET_S / 2, metrics(0, 5, 2))
    assert not is_over_after(draining.QUIET_S / 2, metrics(0, 5, 3))  # one has ended
    assert is_over_after(draining.QUIET_S, metrics(0, 5, 3))
    assert not is_over_after(0.0, metrics(1, 5, 3))
    assert not is_over_after(draining.LAST_ANSWER_S, metrics(0, 5, 3, spoken=1))  # its last chunk is in the vocoder
    assert not is_over_after(draining.LAST_ANSWER_S, metrics(0, 5, 3, spoken=1))
    assert not is_over_after(draining.LAST_ANSWER_S, metrics(0, 5, 3))
    assert not is_over_after(draining.LAST_ANSWER_S / 2, metrics(0, 5, 4))
    assert is_over_after(draining.LAST_ANSWER_S, metrics(0, 5, 4))


def test_a_drain_is_over_after_its_time_and_that_of_the_last_errors(peer: Any, drain: Drain, now: list[float]) -> None:
    peer.text = metrics(7)
    now[0] += 30.0 + draining.ANSWERS_S - 0.01
    assert not drain.is_over()
    now[0] += 0.02
    assert drain.is_over()


def test_a_server_without_metrics_is_given_the_whole_time_and_one_without_our_models_none(
    peer: Any, tmp_path: Path
) -> None:
    deaf = Drain(tmp_path / "drain", 30.0, ("127.0.0.1", 9))
    deaf.begin()
    assert not deaf.is_over()
    others = Drain(tmp_path / "drain", 30.0, ("127.0.0.1", peer.server_port))
    others.begin()
    assert others.is_over()


class Signalled(FakeRun):
    """Sends this process SIGTERM at the first and, if wanted, at the tenth look at its log."""

    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again, self.num_looks = again, 0

    def pump(self, timeout_s: float) -> None:
        self.num_looks += 1
        if self.num_looks == 1 or (self.again and self.num_looks == 10):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("no_waiting")
def test_the_first_signal_drains_and_the_second_stops_at_once(peer: Any, supervision: Supervision) -> None:
    peer.text = metrics(1)
    drain = replace(supervision.drain, limit_s=3600.0, metrics=("127.0.0.1", peer.server_port))
    status, [run] = runs_of(lambda: Signalled(again=True), replace(supervision, drain=drain))
    assert status == 0
    assert isinstance(run, Signalled)
    assert run.num_looks == 10
    assert drain.file.exists()
    assert run.stopped_within_s == supervisor.STOP_TIMEOUT_S


@pytest.mark.usefixtures("no_waiting")
def test_a_drain_that_is_over_stops_the_server(peer: Any, supervision: Supervision) -> None:
    peer.text = metrics(0)
    drain = replace(supervision.drain, limit_s=3600.0, metrics=("127.0.0.1", peer.server_port))
    status, [run] = runs_of(lambda: Signalled(again=False), replace(supervision, drain=drain))
    assert status == 0
    assert run.stopped_within_s == supervisor.STOP_TIMEOUT_S


CAPABILITIES = (1, 2)  # <linux/capability.h>: with CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH root reads everything
PR_CAPBSET_DROP = 24  # <sys/prctl.h>


def without_rights() -> None:
    """For a process to be: it may read what its user may."""
    for capability in CAPABILITIES:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@pytest.mark.parametrize("path", [".", "chattts", "chattts/1", "chattts/config.pbtxt", "chattts/1/model.py"])
def test_a_repository_that_may_not_be_read_is_one_sentence(path: str, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    write_model(repository, "chattts", 'backend: "python"', "model.py")
    (repository / path).chmod(0)
    if os.geteuid() == 0:
        os.chown(repository / path, 12_345, 12_345)
    result = subprocess.run(
        [sys.executable, "-m", "chattts_serving.server", f"--model-repository={repository}"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=without_rights,
    )
    (repository / path).chmod(0o755)
    assert result.returncode == 2
    [error] = result.stderr.splitlines()
    assert re.match(
        rf"error: user \d+ may not read {re.escape(str(repository))}\S* of the model repository: chmod", error
    )


def test_a_machine_without_a_folder_for_temporary_files_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(tmp_path, "chattts", 'backend: "python"', "model.py")
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert main([f"--model-repository={tmp_path}", *(f"{option}=0" for option in PORT_OPTIONS.values())]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: a server needs a folder that can be written, and there is none (No usable temporary"
    )
    assert "docker run --tmpfs /tmp:exec" in error
