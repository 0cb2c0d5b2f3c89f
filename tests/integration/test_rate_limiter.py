"""Triton's rate limiter on a live server: decoder and vocoder take turns where the command line says so."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import tritonclient.grpc

from chattts_serving.launcher.running import running_server
from tests.conftest import Deployment
from tests.streams import tensors

RUNS = 20  # of each model, both at once
NUM_TOKENS, NUM_FRAMES = 128, 256


def ones(*shape: int) -> np.ndarray:
    return np.ones((1, *shape), np.float32)


def runs(trace: Path) -> dict[str, set[tuple[int, int]]]:
    """First and last nanosecond of each run by the model's name, from the trace that Triton wrote."""
    names: dict[int, str] = {}
    times: dict[int, dict[str, int]] = {}
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if "model_name" in event:
            names[event["id"]] = event["model_name"]
        times.setdefault(event["id"], {}).update({at["name"]: at["ns"] for at in event.get("timestamps", ())})
    found: dict[str, set[tuple[int, int]]] = {name: set() for name in names.values()}
    for number, name in names.items():
        found[name].add((times[number]["COMPUTE_START"], times[number]["COMPUTE_END"]))
    return found


def test_decoder_and_vocoder_take_turns_and_answer(tiny: Deployment, tmp_path: Path) -> None:
    hidden_size = json.loads((tiny.repository / "gpt_decoder" / "1" / "config.json").read_text())["hidden_size"]
    inputs = {
        "dvae_decoder": {"hidden": ones(NUM_TOKENS, hidden_size), "mask": ones(NUM_TOKENS), "state": 0 * ones(1)},
        "vocos": {"mel": ones(NUM_FRAMES, 100), "mel_mask": ones(NUM_FRAMES), "state": 0 * ones(1)},
    }
    models, trace = tmp_path / "models", tmp_path / "trace.json"
    models.mkdir()
    for model in inputs:
        (models / model).symlink_to(tiny.repository / model)
    flags = [
        "--rate-limit=execution_count",
        f"--trace-config=triton,file={trace}",
        "--trace-config=rate=1",
        "--trace-config=level=TIMESTAMPS",
    ]
    with running_server(models, log_path=tmp_path / "log", flags=flags) as server:

        def use(model: str) -> None:
            with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
                for _ in range(RUNS):
                    client.infer(model, tensors(inputs[model]))

        with ThreadPoolExecutor(len(inputs)) as pool:
            list(pool.map(use, inputs))
    found = runs(trace)
    assert [len(found[model]) for model in inputs] == [RUNS, RUNS]
    in_order = sorted(run for model in inputs for run in found[model])
    assert all(before[1] <= after[0] for before, after in pairwise(in_order))
