"""`bench gpu` without a GPU: all of its phases on a tiny model, and what becomes of phases that go wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import plots, report
from bench.gpu import checks, record
from bench.gpu.command import TINY
from bench.gpu.counts import DRY
from bench.gpu.machine import Machine
from bench.gpu.phases import NotHereError, OutOfTimeError, Phase, Wrong, run_phases
from bench.gpu.plan import PHASES
from bench.gpu.record import CUT, FAILED, OK, SKIPPED, Record
from bench.gpu.supervisor import supervise
from bench.model import OFFICIAL
from chattts_serving.engine.gpu import runner, torch_ops
from chattts_serving.engine.gpu.torch_ops import TorchOps
from tests.conftest import ROOT

NAMES = [phase.name for phase in PHASES]
FAKE_CUDA = os.environ.get("FAKE_CUDA")  # a Python whose PyTorch runs on a stand-in for CUDA, which computes nothing


def command(folder: Path, *flags: object, python: str = sys.executable, **variables: str):
    """`bench gpu` from the checkout's root."""
    return subprocess.run(
        [python, "-m", "bench", "gpu", "--out", folder, *map(str, flags)],
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """A dry run on the CPU: what the command printed, and its folder."""
    folder = tmp_path_factory.mktemp("dry") / "deep" / "er"
    return command(folder, "--dry-run", "--seconds", 400, CUDA_VISIBLE_DEVICES=""), folder


def test_every_phase_runs_where_there_is_no_gpu(dry):
    done, folder = dry
    assert done.returncode == 0, done.stdout + done.stderr
    run = report.read(folder / record.FILE)
    states = {entry["name"]: (entry["state"], entry["reason"]) for entry in run["phases"]}
    assert list(states) == NAMES == run["plan"]
    assert states.pop("profile") == (SKIPPED, "only kernels of a GPU are listed")
    assert set(states.values()) == {(OK, None)}
    assert not [failure for entry in run["phases"] for failure in entry["failures"]]
    assert all(entry["rows"] for entry in run["phases"] if entry["name"] != "profile")
    assert run["settings"] == {"seconds": 400, "dry_run": True, "device": "cpu", "precision": "fp32"}
    assert run["environment"]["commit"]
    assert {"torch", "numpy", "safetensors"} <= set(run["environment"]["packages"])
    steps = {(row["sequences"], row["context"]) for row in Record(folder).rows("decode steps")}
    assert steps == {(lanes, context) for lanes in DRY.grid_lanes for context in DRY.grid_contexts}


def test_the_page_has_a_table_for_every_phase(dry):
    done, folder = dry
    page = (folder / "gpu.md").read_text()
    assert page in done.stdout
    assert [line[3:] for line in page.splitlines() if line.startswith("## ")] == NAMES
    assert "A dry run: no figure means anything." in page
    assert "Nothing is wrong with what ran." in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len([row for row in rows if set(row) <= set("|-:")]) >= len(NAMES) - 1


def test_the_record_is_drawn_on_any_machine(dry, tmp_path):
    _, folder = dry
    copy = tmp_path / "gpu.json"
    copy.write_text((folder / record.FILE).read_text())
    picture = plots.draw([copy])
    assert picture == copy.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_only_a_dry_run_is_possible(tmp_path):
    done = command(tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("bench: PyTorch finds no GPU here; --dry-run goes through all phases on a CPU")
    assert not list(tmp_path.iterdir())


def test_seconds_are_checked(tmp_path):
    done = command(tmp_path, "--seconds", 0)
    assert (done.returncode, done.stderr) == (1, "bench: --seconds is 0; allowed is a number above 0\n")


@pytest.mark.skipif(not FAKE_CUDA, reason="$FAKE_CUDA names no Python with a stand-in for CUDA")
def test_captures_do_nothing_forbidden_on_a_stand_in_for_cuda(tmp_path):
    """It reports with "!!" what a real capture of a graph refuses."""
    log = tmp_path / "log"
    done = command(tmp_path / "out", "--dry-run", "--seconds", 450, python=str(FAKE_CUDA), FAKE_LOG=str(log))
    assert done.returncode == 0, done.stdout + done.stderr
    assert log.read_text().count("graph of") > 10
    assert "!!" not in log.read_text()
    states = {entry["name"]: entry["state"] for entry in Record(tmp_path / "out").phases}
    assert list(states) == NAMES
    assert {name for name, state in states.items() if state != OK} <= {"draws", "profile", "ChatTTS"}


def ran(tmp_path, *phases, seconds=60.0, forgiving=False, answers=lambda: True):
    """The entries of `phases`, which are (seconds at least, function), and whether all ran."""
    made = Record(tmp_path)
    listed = [Phase(f"{number}", least_s, run) for number, (least_s, run) in enumerate(phases)]
    until = time.monotonic() + seconds
    all_ran = run_phases(listed, tmp_path, made, until, forgiving=forgiving, answers=answers)
    return Record(tmp_path).phases, all_ran


def fine(_machine):
    yield {"a": 1.5}


def wrong(_machine):
    yield {"a": 2}
    yield Wrong("two is not one")


def broken(_machine):
    yield {"a": 3}
    raise ValueError("no")


def test_a_phase_that_fails_leaves_what_it_found_and_stops_no_other(tmp_path):
    entries, all_ran = ran(tmp_path, (0, wrong), (0, broken), (0, fine))
    assert all_ran
    assert [entry["state"] for entry in entries] == [FAILED, FAILED, OK]
    assert [entry["rows"] for entry in entries] == [[{"a": 2}], [{"a": 3}], [{"a": 1.5}]]
    assert entries[0]["failures"] == ["two is not one"]
    assert entries[1]["reason"] == "ValueError: no"
    assert not Record(tmp_path).is_good


def test_in_a_dry_run_wrong_numbers_fail_nothing_and_errors_do(tmp_path):
    entries, _ = ran(tmp_path, (0, wrong), (0, broken), forgiving=True)
    assert [entry["state"] for entry in entries] == [OK, FAILED]
    assert entries[0]["failures"] == ["two is not one"]


def test_what_does_not_fit_is_skipped_and_the_rest_goes_on(tmp_path):
    def long(_machine):
        yield {"a": 1}
        raise OutOfTimeError("1 of 2 points")

    def elsewhere(_machine):
        raise NotHereError("no such package")
        yield {}

    entries, _ = ran(tmp_path, (30, fine), (3, fine), (0, long), (0, elsewhere), seconds=20)
    assert [entry["state"] for entry in entries] == [SKIPPED, OK, CUT, SKIPPED]
    assert entries[0]["reason"].endswith(" s are left, it takes 30 s or more")
    assert entries[2]["rows"] == [{"a": 1}]
    assert [entry["reason"] for entry in entries[2:]] == ["1 of 2 points", "no such package"]
    assert Record(tmp_path).is_good


def test_every_row_is_on_disk_before_the_next_is_made(tmp_path):
    def looking(folder):
        for number in range(3):
            (entry,) = json.loads((folder / record.FILE).read_text())["phases"]
            assert [row["number"] for row in entry["rows"]] == list(range(number))
            yield {"number": number}

    entries, _ = ran(tmp_path, (0, looking))
    assert entries[0]["state"] == OK


def test_a_machine_that_does_not_answer_ends_the_process(tmp_path):
    entries, all_ran = ran(tmp_path, (0, fine), (0, broken), (0, fine), answers=lambda: False)
    assert not all_ran
    assert [entry["state"] for entry in entries] == [OK, FAILED]
    entries, all_ran = ran(tmp_path, (0, fine), (0, broken), (0, fine))
    assert all_ran
    assert [entry["state"] for entry in entries] == [OK, FAILED, OK]


WORKER = """
import os, signal, sys, time
from pathlib import Path
from bench.gpu.phases import Phase, run_phases
from bench.gpu.record import Record
from bench.gpu.supervisor import AGAIN

def fine(_):
    yield {"pid": os.getpid()}

def killed(_):
    yield {"pid": os.getpid()}
    os.kill(os.getpid(), signal.SIGSEGV)

def lost(_):
    raise RuntimeError("an illegal memory access")
    yield {}

def hangs(_):
    yield {"pid": os.getpid()}
    time.sleep(60)

folder, until = Path(sys.argv[1]), float(sys.argv[2])
phases = [Phase(name, 0.0, globals()[name.split()[0]]) for name in sys.argv[3:]]
record = Record(folder)
record.plan([phase.name for phase in phases])
sys.exit(0 if run_phases(phases, None, record, until, forgiving=False, answers=lambda: False) else AGAIN)
"""


def supervised(folder, seconds, *names):
    until = time.monotonic() + seconds
    arguments = [sys.executable, "-c", WORKER, str(folder), str(until), *names]
    return supervise(arguments, folder, until, grace_s=0.5)


def test_a_process_that_dies_is_followed_by_another_for_the_rest(tmp_path):
    made = supervised(tmp_path, 60, "fine 1", "killed", "fine 2", "lost", "fine 3")
    assert [entry["state"] for entry in made.phases] == [OK, FAILED, OK, FAILED, OK]
    assert made.phases[1]["reason"] == "its process ended by signal 11"
    assert made.phases[3]["reason"] == "RuntimeError: an illegal memory access"
    pids = [row["pid"] for entry in made.phases for row in entry["rows"]]
    assert pids[0] == pids[1]
    assert len(set(pids)) == 3


def test_a_phase_that_hangs_ends_with_the_time_and_the_rest_is_skipped(tmp_path):
    made = supervised(tmp_path, 2.0, "fine", "hangs", "fine 2")
    assert [entry["state"] for entry in made.phases] == [OK, FAILED, SKIPPED]
    assert made.phases[1]["reason"] == "its process was still busy when the time was over, and was ended"
    assert made.phases[2]["reason"] == "no time was left"


def test_a_process_that_does_not_begin_is_not_tried_again(tmp_path):
    made = supervise([sys.executable, "-c", "raise SystemExit(1)"], tmp_path, time.monotonic() + 30)
    assert (made.phases, made.is_good) == ([], False)


@pytest.fixture
def machine(tmp_path):
    return Machine(torch.device("cpu"), replace(OFFICIAL, **TINY), DRY, tmp_path, time.monotonic() + 60)


class Deaf(TorchOps):
    """Attends to nothing: as a kernel that reads the wrong place of the cache."""

    def attend_lanes(self, layer, qkv, *, watch=False):
        return torch.zeros_like(super().attend_lanes(layer, qkv, watch=watch))


class Blind(TorchOps):
    """Takes every head for looking at the text's first token."""

    def _note_looks(self, layer, lane, q, keys, first):
        super()._note_looks(layer, lane, q, keys[:1], first)


def found_wrong(phase, machine):
    return [found.what for found in phase(machine) if isinstance(found, Wrong)]


def test_logits_and_draws_of_kernels_that_are_wrong_are_found(monkeypatch, machine):
    assert found_wrong(checks.logits, machine) == found_wrong(checks.draws, machine) == []
    machine.release()
    monkeypatch.setattr(runner, "_ops", lambda model, buffers, *_: Deaf(model, buffers))
    (logits,) = found_wrong(checks.logits, machine)
    assert logits.startswith("fp32 logits differ from float32 by ")
    (draws,) = found_wrong(checks.draws, machine)
    assert draws.startswith("kernels and PyTorch, fp32: ")


def test_looks_of_kernels_that_are_wrong_are_found(monkeypatch, machine):
    monkeypatch.setattr(runner, "_ops", lambda model, buffers, *_: Blind(model, buffers))
    (looks,) = found_wrong(checks.draws, machine)
    assert looks.startswith("text heads look at the same token in ")


def test_a_request_that_its_neighbours_change_is_found(monkeypatch, machine):
    """Its random numbers are those of the lane before, where there is one."""
    assert found_wrong(checks.needles, machine) == []
    uniform = torch_ops.philox.uniform
    monkeypatch.setattr(torch_ops.philox, "uniform", lambda *words: uniform(*words).roll(4))
    (needles,) = found_wrong(checks.needles, machine)
    assert needles == "alone and among 3, fp32: 0 of 2 sequences are alike; 85% must be"
