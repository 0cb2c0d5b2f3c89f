"""Loading the GPT; what it computes is compared with ChatTTS by the export and by the oracle tests."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from chattts_serving.engine.gpt_config import weight_shapes
from chattts_serving.engine.gpu.gpt import GPT
from chattts_serving.errors import ConfigError
from tests.engine.models import CONFIG

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    save_file(
        {name: torch.zeros(shape) for name, shape in weight_shapes(CONFIG).items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(asdict(CONFIG)))
    return tmp_path


def test_a_complete_folder_loads(folder):
    assert GPT.load(folder, CPU).config == CONFIG


def test_missing_and_broken_files_are_named(folder):
    (folder / "model.safetensors").write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        GPT.load(folder, CPU)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json"):
        GPT.load(folder, CPU)


@pytest.mark.parametrize("change", [{"surplus": 1}, {"hidden_size": None}])
def test_a_config_with_other_keys_is_refused(folder, change):
    values = {key: value for key, value in (asdict(CONFIG) | change).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=next(iter(change))):
        GPT.load(folder, CPU)


def test_weights_of_another_shape_are_named(folder):
    (folder / "config.json").write_text(json.dumps(asdict(CONFIG) | {"num_layers": 3}))
    with pytest.raises(ConfigError, match=r"weight 'layers.2.down' has shape None, config.json wants \(32, 64\)"):
        GPT.load(folder, CPU)
