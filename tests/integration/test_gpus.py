"""The real tritonserver on a machine that shows it two GPUs, which are made up: what it makes of the configurations.

That of nvidia-pytriton is built for GPUs and asks CUDA's runtime, before which a stand-in is put.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from chattts_serving.launcher.running import running_server
from chattts_serving.launcher.server import has_gpu
from chattts_serving.launcher.tritonserver import EXPORTED_FILES, find_installation
from chattts_serving.triton.device import VISIBLE
from tests.integration.test_server_process import launch
from tests.launcher.stand_in import driver, runtime

MODELS = Path(__file__).resolve().parents[2] / "model_repository"
# Writes down what Triton tells each instance, and what the language model makes of it.
TELLS = """
import json, os
from pathlib import Path
from chattts_serving.triton.device import device_of
class TritonPythonModel:
    def initialize(self, args):
        told = {name: args["model_instance_" + name] for name in ("kind", "device_id")}
        place = Path(args["model_repository"]) / ("instance_%d" % os.getpid())
        place.write_text(json.dumps(told | {"device": device_of(args)}))
    def execute(self, requests):
        raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is started sees two."""
    if find_installation().libraries is None or has_gpu():
        pytest.skip("the stand-in is for the tritonserver of nvidia-pytriton, on a machine without GPUs")
    monkeypatch.setenv("LD_PRELOAD", str(runtime(tmp_path / "cuda")))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver(tmp_path / "cuda").parent))
    monkeypatch.delenv(VISIBLE, raising=False)


def model(repository: Path, name: str, config: str, *files: str) -> None:
    """A model of this configuration that tells what its instances are."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    (folder / "model.py").write_text(TELLS, encoding="utf-8")
    for file in files:
        (folder / file).touch()


def instance_group(name: str) -> str:
    """What the repository says of the instances of a model, as a part of a configuration."""
    found = re.search(r"^instance_group \[.*?\]$", (MODELS / name / "config.pbtxt").read_text("utf-8"), re.M | re.S)
    assert found
    return found[0]


def told(repository: Path, name: str) -> list[dict[str, str]]:
    """What the instances of a model were told, each once."""
    files = (repository / name).glob("instance_*")
    return sorted((json.loads(file.read_text(encoding="utf-8")) for file in files), key=lambda one: one["device_id"])


@pytest.mark.parametrize(("visible", "devices"), [(None, ["0", "1"]), ("1", ["0"])])
def test_there_is_one_language_model_and_an_onnx_model_for_each_gpu_that_is_seen(
    visible: str | None, devices: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models"
    config = (MODELS / "gpt_decoder" / "config.pbtxt").read_text(encoding="utf-8")
    model(repository, "gpt_decoder", config, *EXPORTED_FILES["gpt_decoder"])
    tensors = 'input { name: "x" data_type: TYPE_FP32 dims: 1 } output { name: "y" data_type: TYPE_FP32 dims: 1 }\n'
    model(repository, "like_vocos", f'backend: "python"\n{tensors}{instance_group("vocos")}\n')
    if visible:
        monkeypatch.setenv(VISIBLE, visible)
    with running_server(repository, log_path=tmp_path / "log"):
        assert told(repository, "gpt_decoder") == [{"kind": "MODEL", "device_id": "0", "device": "cuda:0"}]
        assert [(one["kind"], one["device_id"]) for one in told(repository, "like_vocos")] == [
            ("GPU", device) for device in devices
        ]


def test_an_onnx_model_on_a_gpu_says_what_to_install_when_onnx_runtime_has_no_cuda(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(MODELS / "vocos", repository / "vocos", ignore=shutil.ignore_patterns("*.onnx"))
    (repository / "vocos" / "1").mkdir(exist_ok=True)
    (repository / "vocos" / "1" / "model.onnx").touch()
    done = launch(f"--model-repository={repository}", "--http-port=0", "--grpc-port=0", "--metrics-port=0")
    assert done.returncode == 1
    assert re.search(
        r"unable to load model 'vocos': its instance is on GPU 0, but onnxruntime \S+ here has no CUDAExecutionProvider"
        r".*uninstall onnxruntime and install onnxruntime-gpu \(1\.27 or newer for CUDA 13",
        done.stderr,
    )
