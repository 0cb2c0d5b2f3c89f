"""Which streams a run uses, told by a stand-in for CUDA that computes nothing and notes what is launched where."""

import os
import subprocess

import pytest

from tests.conftest import ROOT

FAKE_CUDA = os.environ.get("FAKE_CUDA")  # a Python whose PyTorch runs on that stand-in
DEFAULT_STREAM = "(nil)"
RUN = """
from chattts_serving.engine import scheduler
from chattts_serving.engine.sequence import Kind, SamplingParams, Sequence
from tests.engine.models import random_engine

scheduler.MIN_SLOT_GROWTH = 8  # so that slots move
engine = random_engine(device="cuda", steps_ahead=1, max_sequences=3, max_prefill_tokens=64)
engine._runner.warm_up()
for number, kind in enumerate((Kind.AUDIO, Kind.TEXT, Kind.AUDIO)):
    params = SamplingParams(0.3, 0.7, 20, 1.05, 100, 100, seed=number, stream=0)
    engine.add(Sequence(kind, (5, 6, 7 + number), params))
    for _ in range(30):
        engine.step()
while not engine.is_idle:
    engine.step()
"""


@pytest.mark.skipif(not FAKE_CUDA, reason="$FAKE_CUDA names no Python with a stand-in for CUDA")
def test_nothing_is_launched_on_the_default_stream(tmp_path):
    log = tmp_path / "log"
    subprocess.run(
        [str(FAKE_CUDA), "-c", RUN], cwd=ROOT, env=os.environ | {"FAKE_LOG": str(log), "FAKE_VERBOSE": "1"}, check=True
    )
    streams = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("launch ")]
    assert len(streams) > 200
    assert DEFAULT_STREAM not in streams
    assert "!!" not in log.read_text()
