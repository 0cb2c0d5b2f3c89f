"""Each committed config.pbtxt of an ONNX model against the graphs that an export puts beside it.

The rules are those of Triton's C++ ONNX Runtime backend, which `backends/onnxruntime` keeps and is asked for here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import model_config_pb2

from export.__main__ import DEMO
from export.checkpoint import Checkpoint
from export.convnext import Weights
from export.dvae import decoder_delay
from export.layout import DECODER_FILE, DVAE_FILE, VOCOS_FILE, tensor_shapes
from export.onnx_models import decoder_model, encoder_model, export_onnx_models, vocos_model
from export.sizes import SIZES
from export.synthetic import write_checkpoint
from tests import fake_pb_utils as pb

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("dvae_decoder", "vocos", "dvae_encoder")
backend = pb.load_model(ROOT / "backends" / "onnxruntime" / "model.py")


def official_models(out: Path) -> None:
    """The graphs of a checkpoint of official size; weights and depth show in no input or output: zeros, one layer."""
    official = SIZES["synthetic"]
    shallow = {key: replace(getattr(official, key), num_layers=1) for key in ("decoder", "dvae_encoder", "vocos")}
    zeros = {
        file: Weights({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
        for file, shapes in tensor_shapes(replace(official, **shallow)).items()
        if file in (DECODER_FILE, DVAE_FILE, VOCOS_FILE)
    }
    models = {
        "dvae_decoder": decoder_model(zeros[DECODER_FILE], official.gpt.hidden),
        "vocos": vocos_model(zeros[VOCOS_FILE], decoder_delay(zeros[DECODER_FILE])),
        "dvae_encoder": encoder_model(zeros[DVAE_FILE]),
    }
    for name, model in models.items():
        path = out / name / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(model, path)


@pytest.fixture(scope="module", params=["tiny", "demo", "official"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository's ONNX files."""
    out = tmp_path_factory.mktemp(request.param)
    if request.param == "official":
        official_models(out)
    elif request.param == "demo":
        export_onnx_models(Checkpoint.load(DEMO), out)
    else:
        export_onnx_models(write_checkpoint("tiny", out / "checkpoint"), out)
    return out


def committed_config(model: str) -> dict[str, Any]:
    """What Triton hands to a backend."""
    text = (ROOT / "model_repository" / model / "config.pbtxt").read_text("utf-8")
    message = text_format.Parse(text, model_config_pb2.ModelConfig(name=model))
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


@pytest.mark.parametrize("model", MODELS)
def test_the_committed_config_fits_the_exported_graph(
    model: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pb, "model_dir", exported / model / "1")
    committed = committed_config(model)
    completed = backend.TritonPythonModel.auto_complete_config(pb.ModelConfig(json.dumps(committed))).as_dict()
    arguments = {"model_config": json.dumps(completed), "model_instance_kind": "CPU", "model_instance_device_id": "0"}
    backend.TritonPythonModel().initialize(arguments)
    graph = onnx.load(exported / model / "1" / "model.onnx").graph
    for kind, nodes in (("input", graph.input), ("output", graph.output)):
        assert {entry["name"] for entry in completed[kind]} == {node.name for node in nodes}
    left_open = {"input", "output"} - {kind for kind in ("input", "output") if committed[kind]}
    assert completed == committed | {kind: completed[kind] for kind in left_open}  # batching and delay as they were


def test_no_batch_stays_open_while_its_model_is_busy() -> None:
    """Such a batch and a request of another length keep Triton's batcher spinning: CPU time of a core, for nothing."""
    found = []
    for folder in sorted((ROOT / "model_repository").iterdir()):
        config = committed_config(folder.name)
        batching, most = config.get("dynamic_batching"), config["max_batch_size"]
        lengths_differ = any(-1 in map(int, tensor["dims"]) for tensor in config["input"]) or not config["input"]
        if batching is not None and most > 1 and lengths_differ:
            assert batching["preferred_batch_size"] == list(range(1, most + 1)), folder.name
            assert int(batching["max_queue_delay_microseconds"]) == 0, folder.name
            found.append(folder.name)
    assert found == ["dvae_decoder", "dvae_encoder", "vocos"]
