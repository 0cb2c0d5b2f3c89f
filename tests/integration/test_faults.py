"""What breaks, on purpose, and what callers see of it; docs/operations.md has a line for each.

Every request that was under way must be answered or end with an error, none later may hang, and the server must serve
again as before. Servers are shared where a fault leaves them in order; the tests that stop one come last of its own.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chattts_client import DeadlineExceededError, OverloadedError, ServerError, Speech, TTSClient, TTSError, joined

from chattts_serving.errors import ConfigError
from chattts_serving.launcher.probe import ProbeError, check
from chattts_serving.launcher.processes import child_processes
from chattts_serving.launcher.running import RunningServer, running_server
from tests.metrics import time_to_rest, wait_until

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 120.0  # for what must happen, on a busy machine
PROBE_S = 1.0
READY_S = 5.0  # that a balancer may go on sending requests to a server whose process has died
HANG_TIMEOUT_S = 3.0
UNUSED = ("voice_encoder", "dvae_encoder")  # models that nothing here calls: without them servers start sooner

SHORT = {"text": "This one is short.", "seed": 1, "skip_refine": True, "min_new_tokens": 60, "max_new_tokens": 60}
LONG = SHORT | {"text": "This sentence takes long to say. " * 4, "min_new_tokens": 2_000, "max_new_tokens": 2_000}
ENDLESS = LONG | {"text": "This sentence takes very long to say. " * 60, "max_new_tokens": 2_048}
ENDLESS["min_new_tokens"] = 2_048
KINDS = {  # name -> protocol, and how a client has a request spoken
    f"{protocol} {name}": (protocol, ask)
    for protocol in ("grpc", "http")
    for name, ask in {
        "whole": lambda client, inputs: client.synthesize(**inputs),
        "stream": lambda client, inputs: joined(list(client.stream(**inputs))),
    }.items()
}


def copy_of(repository: Path, folder: Path, *without: str) -> Path:
    """A copy of a model repository that may be broken."""
    shutil.copytree(repository, folder, ignore=shutil.ignore_patterns(*UNUSED, *without, "__pycache__"))
    return folder


def speak(server: RunningServer, kind: str, inputs: dict[str, Any], timeout_s: float = DEADLINE_S) -> Speech | TTSError:
    """The answer to one request, or the error that it ended with."""
    protocol, ask = KINDS[kind]
    with TTSClient(getattr(server, f"{protocol}_url"), protocol, timeout=timeout_s) as client:  # type: ignore[arg-type]
        try:
            return ask(client, inputs)
        except TTSError as error:
            return error


def are_equal(one: Any, other: Any) -> bool:
    """Whether two answers say the same: tokens equal, samples but for the rounding in other batches."""
    return (
        isinstance(one, Speech)
        and isinstance(other, Speech)
        and one.sentences == other.sentences
        and one.audio.shape == other.audio.shape
        and bool(np.allclose(one.audio, other.audio, atol=1e-4, rtol=0))
    )


def works(server: RunningServer, timeout_s: float = PROBE_S) -> bool:
    """Whether the probe says so."""
    try:
        check(server.http_url, timeout_s)
    except ProbeError:
        return False
    return True


def is_ready(server: RunningServer) -> bool:
    """What balancers ask."""
    connection = http.client.HTTPConnection(server.http_url, timeout=PROBE_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def eventually(condition: Callable[[], bool], within_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def stub_of(model: str, server: RunningServer) -> int:
    """The first process that runs the model."""
    for pid in child_processes(server.pid):
        if f"/{model}/" in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
            return pid
    raise AssertionError(f"no process runs {model}")


@dataclass
class Requests:
    """Requests of every kind that are under way together."""

    server: RunningServer
    inputs: dict[str, Any]
    outcomes: dict[str, Future[Speech | TTSError]] = field(default_factory=dict)

    def __enter__(self) -> Requests:
        """Send them, and wait until the engine has all."""
        self._pool = ThreadPoolExecutor(len(KINDS))
        time_to_rest(self.server, DEADLINE_S)
        self.outcomes = {kind: self._pool.submit(speak, self.server, kind, self.inputs) for kind in KINDS}
        wait_until(self.server, lambda engine: engine.requests_open == len(KINDS), DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def results(self) -> dict[str, Speech | TTSError]:
        """What each one ended with; none hangs."""
        results = {kind: outcome.result(DEADLINE_S) for kind, outcome in self.outcomes.items()}
        assert not [result for result in results.values() if isinstance(result, DeadlineExceededError)]
        return results


class LaterRequests:
    """Short requests one after the other, from a fault on, until one is answered by the server that came after it."""

    def __init__(self, server: RunningServer, pid: int) -> None:
        """`pid` is the process that had the fault."""
        self._server, self._pid = server, pid
        self.outcomes: list[Speech | TTSError] = []
        self.probes: list[bool] = []
        self.ready_s = DEADLINE_S  # that balancers were told that the server is ready
        self._started = time.monotonic()
        self._asking = ThreadPoolExecutor()
        self._asked = self._asking.submit(self._ask)
        self._probed = self._asking.submit(self._probe)

    def _ask(self) -> float:
        """Seconds until it was served."""
        while True:
            is_new = is_another(self._server, self._pid) and works(self._server)
            self.outcomes.append(speak(self._server, list(KINDS)[len(self.outcomes) % len(KINDS)], SHORT))
            seconds = time.monotonic() - self._started
            if is_new and isinstance(self.outcomes[-1], Speech):
                return seconds
            assert seconds < DEADLINE_S, self.outcomes[-3:]
            time.sleep(0.2)

    def _probe(self) -> None:
        while not self._asked.done():
            if not is_ready(self._server):
                self.ready_s = min(self.ready_s, time.monotonic() - self._started)
            self.probes.append(works(self._server))
            time.sleep(0.1)

    def seconds_until_served(self) -> float:
        """Seconds from the fault to the first answer of the new server; the probe failed in between."""
        seconds = self._asked.result()
        self._probed.result()
        assert False in self.probes
        assert not [one for one in self.outcomes if isinstance(one, DeadlineExceededError)]
        return seconds


def is_another(server: RunningServer, pid: int) -> bool:
    """Whether another process than `pid` runs as the server now."""
    try:
        return server.pid != pid
    except ConfigError:  # none does
        return False


def words(results: Any) -> str:
    """What requests ended with, for who measures (pytest -rP)."""
    short = [re.sub(r"\d+", "N", str(one))[:90] if isinstance(one, TTSError) else "answered" for one in results]
    kinds = [f"{type(one).__name__}: {text}" for one, text in zip(results, short, strict=True)]
    return "".join(f"\n    {number} {kind}" for kind, number in Counter(kinds).items())


def check_recovery(
    server: RunningServer, fault: Callable[[], object], title: str, most_ready_s: float = READY_S
) -> list[Speech | TTSError]:
    """Have `fault` happen while requests are under way; the server must end up as it was. What those ended with.

    For more than `most_ready_s` it must not go on telling balancers that it is ready.
    """
    time_to_rest(server, DEADLINE_S)
    before, pid = speak(server, "grpc whole", SHORT), server.pid
    alone = speak(server, "grpc whole", LONG)
    assert isinstance(before, Speech)
    with Requests(server, LONG) as requests:
        fault()
        later = LaterRequests(server, pid)
        results = list(requests.results().values())
        seconds = later.seconds_until_served()
    assert later.ready_s < most_ready_s
    assert all(isinstance(one, TTSError) or are_equal(one, alone) for one in results)
    assert all(are_equal(speak(server, kind, SHORT), before) for kind in KINDS)
    assert works(server, DEADLINE_S)
    time_to_rest(server, DEADLINE_S)
    print(f"MEASURED {title}: ready for {later.ready_s:.1f} s, serves again after {seconds:.1f} s; under way:", end="")
    print(f"{words(results)}\n  later:{words(later.outcomes)}")
    return results


@pytest.fixture(scope="module")
def repository(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of(tiny.repository, tmp_path_factory.mktemp("faults") / "models")


# A server whose processes are killed, and that is stopped while it speaks


class Servers:
    """One server after the other, each until a test has ended it."""

    def __init__(self, start: Callable[[], AbstractContextManager[RunningServer]]) -> None:
        self._start, self._running = start, ExitStack()
        self._server: RunningServer | None = None

    def running(self) -> RunningServer:
        if self._server is None or self._server.launcher.poll() is not None:
            self.close()
            self._server = self._running.enter_context(self._start())
        return self._server

    def close(self) -> None:
        self._running.close()


@pytest.fixture(scope="module")
def killed_ones(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    log = tmp_path_factory.mktemp("killed") / "log"
    flags = [f"--drain-timeout={DEADLINE_S}"]
    with closing(Servers(lambda: running_server(repository, log_path=log, launcher_flags=flags))) as servers:
        yield servers


@pytest.fixture
def killed(killed_ones: Servers) -> RunningServer:
    return killed_ones.running()


@pytest.mark.parametrize("model", ["gpt_decoder", "vocos", "speech", "chattts_stream"])
def test_a_killed_model_process_costs_what_is_under_way_and_comes_back(
    killed: RunningServer, model: str, onnx_models_are_processes: bool
) -> None:
    if model == "vocos" and not onnx_models_are_processes:
        pytest.skip("Triton's C++ ONNX Runtime backend runs vocos inside tritonserver, whose end has a test of its own")
    check_recovery(killed, lambda: os.kill(stub_of(model, killed), signal.SIGKILL), f"killed {model}")


def test_sigterm_lets_what_is_under_way_end_and_refuses_what_comes(killed: RunningServer) -> None:
    time_to_rest(killed, DEADLINE_S)
    alone = speak(killed, "grpc whole", LONG)
    with Requests(killed, LONG) as requests:
        started = time.monotonic()
        killed.launcher.send_signal(signal.SIGTERM)
        refused = [until_refused(killed, kind) for kind in KINDS]
        assert killed.launcher.poll() is None
        results = requests.results()
    answered_s = time.monotonic() - started
    assert killed.launcher.wait(DEADLINE_S) == 0
    print(f"MEASURED SIGTERM under the limit: answered after {answered_s:.1f} s, ", end="")
    print(
        f"ended after {time.monotonic() - started:.1f} s; under way:{words(results.values())}\n  later:{words(refused)}"
    )
    assert all(are_equal(one, alone) for one in results.values())


def until_refused(server: RunningServer, kind: str) -> OverloadedError:
    """The error that ends a request once the server drains."""
    while True:
        outcome = speak(server, kind, SHORT)
        if not isinstance(outcome, Speech):
            assert isinstance(outcome, OverloadedError)
            assert "the server is shutting down" in str(outcome)
            return outcome


# A server that hangs


@pytest.fixture(scope="module")
def hung_ones(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    log = tmp_path_factory.mktemp("hung") / "log"
    flags = [f"--hang-timeout={HANG_TIMEOUT_S}", "--drain-timeout=0.5"]
    with closing(Servers(lambda: running_server(repository, log_path=log, launcher_flags=flags))) as servers:
        yield servers


@pytest.fixture
def hung(hung_ones: Servers) -> RunningServer:
    return hung_ones.running()


def test_a_hung_model_process_is_noticed_and_started_anew(hung: RunningServer) -> None:
    stop = lambda: os.kill(stub_of("gpt_decoder", hung), signal.SIGSTOP)  # noqa: E731
    check_recovery(hung, stop, "hung gpt_decoder", DEADLINE_S)


def test_a_killed_text_frontend_comes_back(hung: RunningServer) -> None:
    check_recovery(hung, lambda: os.kill(stub_of("text_frontend", hung), signal.SIGKILL), "killed text_frontend")


def test_sigterm_ends_what_takes_longer_than_the_limit_with_an_error_that_says_so(hung: RunningServer) -> None:
    time_to_rest(hung, DEADLINE_S)
    with Requests(hung, ENDLESS) as requests:
        started = time.monotonic()
        hung.launcher.send_signal(signal.SIGTERM)
        results = requests.results()
    answered_s = time.monotonic() - started
    assert hung.launcher.wait(DEADLINE_S) == 0
    print(f"MEASURED SIGTERM over the limit: answered after {answered_s:.1f} s, ", end="")
    print(f"ended after {time.monotonic() - started:.1f} s; under way:{words(results.values())}")
    for result in results.values():
        assert isinstance(result, OverloadedError)
        assert "the server is shutting down" in str(result)


# A server whose engine fails and whose vocoder is slow

FAILING_DECODER = '''
"""gpt_decoder with faults to order: the next steps fail, or what one seed makes is no number."""
import importlib.util
from pathlib import Path

import numpy as np

from chattts_serving.engine.cpu.runner import CpuRunner

FAILURES = Path({folder!r}) / "failures"
launch = CpuRunner.launch


def failing(self, batch):
    left = int(FAILURES.read_text())
    if left:
        FAILURES.write_text(str(left - 1))
        raise RuntimeError("a fault to order")
    for sequence in batch.sequences:
        if sequence.params.seed == {poisoned_seed} and sequence.speaker is not None:
            sequence.speaker = np.full_like(sequence.speaker, np.nan)
    return launch(self, batch)


CpuRunner.launch = failing
spec = importlib.util.spec_from_file_location("real_model", {real!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
TritonPythonModel = module.TritonPythonModel
'''
SLOW_VOCODER = '''
"""The vocoder, after the seconds that a file says."""
import time
from pathlib import Path

import onnxruntime
import triton_python_backend_utils as pb_utils

SECONDS = Path({folder!r}) / "seconds"
INPUTS, OUTPUTS = ("mel", "mel_mask", "state"), ("waveform", "next_state")


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def execute(self, requests):
        time.sleep(float(SECONDS.read_text()))
        return [self.answer(request) for request in requests]

    def answer(self, request):
        given = {{name: pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in INPUTS}}
        found = zip(OUTPUTS, self.session.run(list(OUTPUTS), given))
        return pb_utils.InferenceResponse([pb_utils.Tensor(*one) for one in found])
'''
POISONED_SEED = 666


@dataclass(frozen=True)
class Failing:
    """A server that does as its files say."""

    server: RunningServer
    folder: Path

    def write(self, name: str, value: float) -> None:
        """Order a fault; the file is never seen half written."""
        new = self.folder / f"{name}.new"
        new.write_text(str(value))
        new.replace(self.folder / name)


@pytest.fixture(scope="module")
def failing(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Failing]:
    folder = tmp_path_factory.mktemp("failing")
    models = copy_of(repository, folder / "models")
    decoder = models / "gpt_decoder" / "1" / "model.py"
    real = str(ROOT / "model_repository" / "gpt_decoder" / "1" / "model.py")
    decoder.write_text(FAILING_DECODER.format(folder=str(folder), real=real, poisoned_seed=POISONED_SEED))
    config = models / "vocos" / "config.pbtxt"
    config.write_text(config.read_text().replace('platform: "onnxruntime_onnx"', 'backend: "python"'))
    (models / "vocos" / "1" / "model.py").write_text(SLOW_VOCODER.format(folder=str(folder)))
    (folder / "failures").write_text("0")
    (folder / "seconds").write_text("0")
    flags = ["--drain-timeout=0"]
    with running_server(models, log_path=folder / "log", launcher_flags=flags) as server:
        yield Failing(server, folder)


def test_a_poisoned_request_fails_alone(failing: Failing) -> None:
    alone = speak(failing.server, "grpc whole", LONG)
    with Requests(failing.server, LONG) as neighbours:
        for kind in KINDS:
            poisoned = speak(failing.server, kind, SHORT | {"seed": POISONED_SEED})
            assert isinstance(poisoned, ServerError)
            assert "logits are not finite" in str(poisoned)
        assert all(are_equal(one, alone) for one in neighbours.results().values())


def test_a_failing_step_fails_what_the_engine_has_and_nothing_later(failing: Failing) -> None:
    before, pid = speak(failing.server, "grpc whole", SHORT), failing.server.pid
    with Requests(failing.server, LONG) as requests:
        failing.write("failures", 1)
        results = requests.results()
        for result in results.values():
            assert isinstance(result, ServerError)
            assert "a step of the engine failed" in str(result)
    assert all(are_equal(speak(failing.server, kind, SHORT), before) for kind in KINDS)
    assert works(failing.server, DEADLINE_S)
    assert failing.server.pid == pid
    print(f"MEASURED a failing step: under way:{words(results.values())}")


def test_steps_that_fail_one_after_the_other_end_the_process_for_a_new_one(failing: Failing) -> None:
    results = check_recovery(failing.server, lambda: failing.write("failures", 3), "three failing steps", DEADLINE_S)
    assert all(isinstance(one, ServerError) for one in results)
    assert (failing.folder / "failures").read_text() == "0"


def test_a_slow_vocoder_does_not_hold_a_request_beyond_its_deadline(failing: Failing) -> None:
    def late(kind: str) -> tuple[Speech | TTSError, float]:
        started = time.monotonic()
        return speak(failing.server, kind, SHORT | {"deadline_ms": 500}), time.monotonic() - started

    failing.write("seconds", 2.0)
    try:
        with ThreadPoolExecutor() as pool:
            outcomes = dict(zip(KINDS, pool.map(late, KINDS), strict=True))
    finally:
        failing.write("seconds", 0.0)
    for kind, (outcome, seconds) in outcomes.items():
        print(f"MEASURED a vocoder that takes 2 s, deadline_ms 500, {kind}: {seconds:.1f} s, {outcome}")
        assert isinstance(outcome, DeadlineExceededError)
    time_to_rest(failing.server, DEADLINE_S)
    assert all(isinstance(speak(failing.server, kind, SHORT), Speech) for kind in KINDS)


def test_a_slow_vocoder_without_a_deadline_delays_and_harms_nothing(failing: Failing) -> None:
    before = speak(failing.server, "grpc whole", SHORT)
    failing.write("seconds", 0.5)
    try:
        with ThreadPoolExecutor() as pool:
            outcomes = list(pool.map(lambda kind: speak(failing.server, kind, SHORT), KINDS))
        assert works(failing.server, DEADLINE_S)
    finally:
        failing.write("seconds", 0.0)
    assert all(are_equal(one, before) for one in outcomes)


def test_a_killed_tritonserver_comes_back(failing: Failing) -> None:
    check_recovery(failing.server, lambda: os.kill(failing.server.pid, signal.SIGKILL), "killed tritonserver")


# A server with a shared memory of its own


@contextmanager
def server_with_shared_memory_of(megabytes: int, models: Path, log: Path) -> Iterator[RunningServer]:
    """A server whose /dev/shm is its own and so small."""
    mount = f"mount -t tmpfs -o size={megabytes}m tmpfs /dev/shm"
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    command = [sys.executable, "-m", "chattts_serving.server", f"--model-repository={models}", f"--log-file={log}"]
    command += ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--exit-with-parent", "--drain-timeout=0"]
    unshare = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh", *command]
    with subprocess.Popen(unshare, cwd=ROOT, stdout=subprocess.PIPE, text=True) as launcher:
        try:
            line = launcher.stdout.readline()
            http, grpc, metrics = re.fullmatch(r"ready http=(\S+) grpc=(\S+) metrics=(\S+)\n", line).groups()
            yield RunningServer(http, grpc, metrics, log, launcher)
        finally:
            launcher.terminate()
            launcher.wait()


def fill(folder: Path) -> Path:
    """A file in `folder` that leaves no room beside it."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(2**16))
    return filler


def test_a_full_shared_memory_harms_what_needs_more_of_it_and_nothing_else(repository: Path, tmp_path: Path) -> None:
    """Triton 2.51 itself would leave a whole answer that finds no room unanswered."""
    with server_with_shared_memory_of(256, repository, tmp_path / "log") as server:
        pid, before = server.pid, speak(server, "grpc whole", SHORT)
        filler = fill(Path(f"/proc/{server.launcher.pid}/root/dev/shm"))
        outcomes = [speak(server, kind, SHORT) for kind in KINDS]
        too_long = speak(server, "grpc whole", LONG | {"text": "This sentence takes long to say. " * 6})
        filler.unlink()
        print(f"MEASURED full /dev/shm: short:{words(outcomes)}\n  of 25 MB:{words([too_long])}")
        assert all(are_equal(one, before) for one in outcomes)
        assert isinstance(too_long, ServerError)
        assert "finds no room in /dev/shm" in str(too_long)
        assert works(server, DEADLINE_S)
        assert all(are_equal(speak(server, kind, SHORT), before) for kind in KINDS)
        assert server.pid == pid


# Artifacts that are broken from the start


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


CORRUPT: dict[str, tuple[str, Callable[[Path], object], int, str]] = {
    "a truncated model.onnx": ("vocos", lambda folder: truncate(folder / "model.onnx"), 1, "model.onnx"),
    "truncated weights": ("gpt_decoder", lambda folder: truncate(folder / "model.safetensors"), 1, "model.safetensors"),
    "a bad config.json": ("gpt_decoder", lambda folder: truncate(folder / "config.json"), 1, "config.json"),
    "missing weights": ("gpt_decoder", lambda folder: (folder / "model.safetensors").unlink(), 2, "model.safetensors"),
}


@pytest.mark.parametrize("how", CORRUPT)
def test_a_broken_artifact_ends_the_launcher_at_once_with_its_name(how: str, repository: Path, tmp_path: Path) -> None:
    model, damage, status, named = CORRUPT[how]
    others = [path.name for path in repository.iterdir() if path.name != model]
    models = copy_of(repository, tmp_path / "models", *others)
    damage(models / model / "1")
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    command = [sys.executable, "-m", "chattts_serving.server", f"--model-repository={models}", *ports]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert result.returncode == status
    assert result.stdout == ""
    assert "restart" not in result.stderr
    assert named in result.stderr
