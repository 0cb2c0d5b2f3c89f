"""A server for each GPU behind one pair of addresses, from the command line; driver and tritonserver are stand-ins.

HAProxy is the real one. tests/deploy/test_several_gpus.py has the real tritonserver.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.launcher import balancer
from chattts_serving.launcher.balancer import find_haproxy
from chattts_serving.launcher.child import Child
from chattts_serving.launcher.options import ServerOptions, parse_arguments
from chattts_serving.launcher.processes import child_processes, state_and_parent
from chattts_serving.launcher.supervisor import SHARED_MEMORY
from tests.deploy.haproxy import free_ports, program
from tests.launcher.stand_in import driver
from tests.launcher.test_server import executable, system_server, write_model

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
# Answers over HTTP alone: that it is ready, who it is, and as many metrics. Dies where it is told to.
TRITONSERVER = """#!{python}
import http.server, json, os, sys, threading
flags = dict(flag.split("=", 1) for flag in sys.argv[1:])
gpu = os.environ["CUDA_VISIBLE_DEVICES"]
if gpu in os.environ.get("BROKEN", ""):
    sys.exit("no such device")
print("{{\\"gpu\\": %s}}" % gpu, flush=True)
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        me = {{"gpu": gpu, "cpus": sorted(os.sched_getaffinity(0)), "pid": os.getpid(), "flags": sys.argv[1:]}}
        body = json.dumps(me).encode()
        if self.path == "/metrics":
            body = b"gpu_of_this_server %s\\n%s" % (gpu.encode(), os.environ.get("GAUGES", "").encode())
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_):
        pass  # HAProxy does not wait for the end of an answer that it asked for to see whether this lives
for port in ("--metrics-port", "--http-port"):
    server = Server(("127.0.0.1", int(flags[port])), Answer)
    threading.Thread(target=server.serve_forever).start()
"""


@dataclass(frozen=True)
class Running:
    """A fleet: addresses "HOST:PORT", and what it wrote to stderr."""

    process: subprocess.Popen[str]
    http_url: str
    metrics_urls: list[str]
    log: Path

    def who(self) -> dict[str, dict[str, object]]:
        """Who answers, by GPU: as many questions as it takes for each of two to be asked.

        A question that a server has taken and is killed with is asked again.
        """
        answers: list[dict[str, object]] = []
        end = time.monotonic() + DEADLINE_S
        while len(answers) < 4:
            assert time.monotonic() < end
            with suppress(http.client.HTTPException, ConnectionError):
                answers.append(json.loads(get(self.http_url, "/who")))
        return {str(answer["gpu"]): answer for answer in answers}

    def launchers(self) -> dict[str, int]:
        """The process ids of the launchers by GPU, and of HAProxy."""
        found = {}
        for pid, state in child_processes(self.process.pid).items():
            if state != "Z":
                environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                gpu = next((one.partition(b"=")[2] for one in environment if one.startswith(b"CUDA_VIS")), b"balancer")
                found[gpu.decode()] = pid
        return found


def get(url: str, path: str) -> str:
    with closing(http.client.HTTPConnection(url, timeout=10)) as connection:
        connection.request("GET", path)
        response = connection.getresponse()
        answer = response.read().decode()
    if response.status != 200:
        raise http.client.HTTPException(f"{url}{path}: {response.status} {answer}")
    return answer


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    return state_and_parent(pid)[0] not in ("", "Z")  # a zombie has ended


@dataclass(frozen=True)
class Place:
    """Where the stand-ins lie; `command` and `env` start a fleet that uses them."""

    command: list[str]
    env: dict[str, str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    program()  # skips where HAProxy is not installed
    folder = tmp_path_factory.mktemp("fleet")
    driver(folder / "driver")
    tritonserver = system_server(folder / "triton", onnx=True)
    executable(tritonserver, TRITONSERVER.format(python=sys.executable).encode())
    write_model(folder / "models", "echo", 'backend: "python"\n', "model.py")
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"TRITONSERVER": str(tritonserver), "LD_LIBRARY_PATH": str(folder / "driver"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "chattts_serving.server", f"--model-repository={folder / 'models'}"]
    return Place([*command, "--http-port=0", "--grpc-port=0", "--metrics-port=0", "--drain-timeout=0"], env)


@contextmanager
def started(place: Place, folder: Path, *flags: str) -> Iterator[Running]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*place.command, "--gpus=all", *flags], env=place.env, stdout=subprocess.PIPE, stderr=log, text=True
        )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"ready http=(\S+) grpc=(\S+) metrics=(\S+)\n", line)
        assert found, (folder / "log").read_text(encoding="utf-8")
        yield Running(process, found[1], found[3].split(","), folder / "log")
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)


@pytest.fixture(scope="module")
def running(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(place, tmp_path_factory.mktemp("running"), "--", "--log-verbose=1") as running:
        yield running


def test_each_gpu_has_a_server_and_the_balancer_asks_both(running: Running) -> None:
    answers = running.who()
    assert answers.keys() == {"0", "1"}
    assert all("--log-verbose=1" in answer["flags"] for answer in answers.values())
    assert [get(url, "/metrics") for url in running.metrics_urls] == [
        "gpu_of_this_server 0\n",
        "gpu_of_this_server 1\n",
    ]


def test_its_log_has_what_each_said_and_lines_of_json_as_they_were(running: Running) -> None:
    lines = running.log.read_text(encoding="utf-8").splitlines()
    assert "gpu1 | loading: 0 of 1 models, 0 s" in lines
    assert {'{"gpu": 0}', '{"gpu": 1}'} <= set(lines)
    assert not [line for line in lines if "GET /who" in line]  # HAProxy logs no requests
    [address] = re.findall(r"the balancer's own metrics are on (\S+)", "\n".join(lines))
    assert 'haproxy_server_status{proxy="grpc_servers",server="gpu1",state="UP"} 1' in get(address, "/metrics")


def test_a_server_whose_launcher_was_killed_is_started_anew_alone(running: Running) -> None:
    before, answers = running.launchers(), running.who()
    os.kill(before["1"], signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() - killed < 0.8:  # it is not there again so soon
        assert running.who()["0"]["pid"] == answers["0"]["pid"]
    eventually(lambda: running.who().keys() == {"0", "1"})
    after = running.launchers()
    assert after["1"] != before["1"]
    assert {after[name] == before[name] for name in ("0", "balancer")} == {True}
    assert running.who()["0"]["pid"] == answers["0"]["pid"]
    assert not is_running(answers["1"]["pid"])
    assert not list(SHARED_MEMORY.glob(f"chattts_{before['1']}_*"))
    assert "error: gpu1 ended with status -9; it is started anew in 1 s" in running.log.read_text(encoding="utf-8")


def test_a_balancer_that_was_killed_is_started_anew_and_the_servers_go_on(running: Running) -> None:
    before, answers = running.launchers(), running.who()
    os.kill(before["balancer"], signal.SIGKILL)
    assert running.who() == answers
    assert running.launchers() | {"balancer": 0} == before | {"balancer": 0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_and_nothing_stays(place: Place, tmp_path: Path, number: signal.Signals) -> None:
    with started(place, tmp_path) as running:
        pids = [*running.launchers().values(), *(answer["pid"] for answer in running.who().values())]
        assert len(pids) == 5
        running.process.send_signal(number)
        assert running.process.wait(DEADLINE_S) == 0
    assert not [pid for pid in pids if is_running(pid)]


def test_open_requests_may_end_until_a_second_signal(place: Place, tmp_path: Path) -> None:
    busy = replace(place, env=place.env | {"GAUGES": "chattts_requests_open 1\n"})
    with started(busy, tmp_path, "--drain-timeout=3600") as running:
        answers = running.who()
        running.process.terminate()
        said = "SIGTERM received: stopping; open requests have 3600 s to end"
        eventually(lambda: all(f"gpu{one} | {said}" in running.log.read_text(encoding="utf-8") for one in "01"))
        assert running.who() == answers
        running.process.terminate()
        assert running.process.wait(DEADLINE_S) == 0


def test_all_end_with_a_fleet_that_was_killed(place: Place, tmp_path: Path) -> None:
    with started(place, tmp_path) as running:
        pids = [*running.launchers().values(), *(answer["pid"] for answer in running.who().values())]
        running.process.kill()
        eventually(lambda: not [pid for pid in pids if is_running(pid)])


def test_a_gpu_that_does_not_start_ends_the_others(place: Place) -> None:
    env = place.env | {"BROKEN": "1"}
    done = subprocess.run(
        [*place.command, "--gpus=2"], env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "gpu1 | no such device" in done.stderr
    assert "error: gpu1 ended with status 1 before all were ready\n" in done.stderr


def test_one_gpu_has_no_balancer(place: Place, tmp_path: Path) -> None:
    command = [*place.command, "--gpus=1", f"--log-file={tmp_path / 'log'}"]
    with subprocess.Popen(command, env=place.env, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split("http=")[1].split()[0]
        assert json.loads(get(address, "/who"))["gpu"] == "0"
        process.terminate()


@pytest.mark.parametrize(("visible", "gpu"), [(None, "0"), ("3,1", "3")])
def test_a_server_alone_sees_the_first_gpu_of_a_machine_that_has_any(
    place: Place, tmp_path: Path, visible: str | None, gpu: str
) -> None:
    script = "from chattts_serving.launcher import server; server.has_gpu = lambda: True; server.main()"
    command = [sys.executable, "-c", script, *place.command[3:], f"--log-file={tmp_path / 'log'}"]
    env = place.env | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split("http=")[1].split()[0]
        assert json.loads(get(address, "/who"))["gpu"] == gpu
        process.terminate()


def test_a_log_file_has_the_servers_and_the_terminal_what_launchers_say(place: Place, tmp_path: Path) -> None:
    with started(place, tmp_path, f"--log-file={tmp_path / 'servers'}") as running:
        assert '{"gpu": 1}' in (tmp_path / "servers").read_text(encoding="utf-8").splitlines()
        said = running.log.read_text(encoding="utf-8")
        assert "gpu0 | loading: 0 of 1 models" in said
        assert "{" not in said


def test_ports_of_the_metrics_follow_each_other(place: Place, tmp_path: Path) -> None:
    first, second, own = free_ports(3)
    with started(place, tmp_path, f"--metrics-port={first}") as running:
        assert running.metrics_urls == [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]
        assert "haproxy_" in get(f"127.0.0.1:{own}", "/metrics")


@pytest.mark.parametrize("flag", ["--local-http", "--grpc-use-ssl=1"])
def test_what_is_of_one_server_is_refused(place: Place, flag: str) -> None:
    command = [*place.command, "--gpus=2", flag]
    done = subprocess.run(command, env=place.env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"error: {flag.partition('=')[0]} is of one server" in done.stderr


def test_a_missing_haproxy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(balancer, "PLACES", str(tmp_path))
    with pytest.raises(ConfigError, match=r"behind HAProxy, which is not installed: on Debian .*--gpus 1"):
        find_haproxy()


NO_SERVER = """
import os, sys
from chattts_serving.launcher import fleet
from chattts_serving.launcher.child import Child
fleet.BALANCER_STARTS_S = 0.5
says_ready = [sys.executable, "-c", "import time; print('ready http=x', flush=True); time.sleep(60)"]
children = [Child(name, says_ready, os.environ, lambda _: None) for name in ("gpu0", "gpu1", "balancer")]
status = fleet.Fleet(children[:2], children[2], lambda: False, "ready").run(stop_timeout_s=5.0)
assert None not in [child.exit_status for child in children]
sys.exit(status)
"""


def test_a_balancer_that_finds_no_server_ends_the_start() -> None:
    """In a process of its own, all children of which a fleet ends."""
    done = subprocess.run(
        [sys.executable, "-c", NO_SERVER], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    printed = (done.returncode, done.stdout, done.stderr)
    assert printed == (1, "", "error: balancer finds no server ready after 0 s\n")


def test_a_program_runs_on_its_cpus_alone() -> None:
    cpu, lines = max(os.sched_getaffinity(0)), list[bytes]()
    script = "import os; print(*os.sched_getaffinity(0), end='')"
    child = Child("one", [sys.executable, "-c", script], os.environ, lines.append, cpus=[cpu])
    child.start()
    eventually(lambda: child.exit_status == 0)
    child.kill()
    assert lines == [f"one | {cpu}\n".encode()]


def test_arguments_of_options_are_the_options() -> None:
    options = ServerOptions(
        Path("a b"), "::1", 1, 2, 3, "0,2", True, Path("l"), 4.5, 5.5, 6.5, Path(__file__), True, True, ("--x=a b",)
    )
    assert parse_arguments(options.arguments()) == options
    assert parse_arguments(replace(options, gpus="", log_file=None).arguments()).gpus == ""
    assert parse_arguments(ServerOptions().arguments()) == ServerOptions()
