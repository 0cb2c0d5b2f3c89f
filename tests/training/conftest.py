"""A corpus of noise with the words of two sentences."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from chattts_serving.audio import SAMPLES_PER_TOKEN
from tests.training.spoken import BYE, HELLO


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slt.jsonl").write_text("".join(json.dumps(asdict(one)) + "\n" for one in (HELLO, BYE)))
    rng = np.random.default_rng(0)
    rng.integers(-9_000, 9_000, 64 * SAMPLES_PER_TOKEN, np.int16).tofile(tmp_path / "slt.i16")
    np.save(tmp_path / "slt.codes.npy", rng.integers(0, 625, (64, 4)).astype(np.uint16))
    return tmp_path
