import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chattts_serving.errors import ConfigError
from export.checkpoint import Checkpoint
from export.layout import GPT_CONFIG_FILE, OFFICIAL_FILES, TENSOR_FILES, tensor_shapes
from export.sizes import SIZES


def edit_config(directory, **changes):
    path = directory / GPT_CONFIG_FILE
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value != "absent"}))


def edit_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_sizes_are_read_from_the_files(checkpoint):
    assert Checkpoint.load(checkpoint.directory).sizes == SIZES["tiny"]


@pytest.mark.parametrize("name", OFFICIAL_FILES)
def test_a_missing_file_is_named(own_checkpoint, name):
    (own_checkpoint / name).unlink()
    with pytest.raises(ConfigError, match=name):
        Checkpoint.load(own_checkpoint)


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_a_truncated_tensor_file_is_named(own_checkpoint, name):
    path = own_checkpoint / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=name):
        Checkpoint.load(own_checkpoint)


@pytest.mark.parametrize("file", TENSOR_FILES)
def test_every_missing_tensor_is_noticed(own_checkpoint, file):
    tensors = load_file(own_checkpoint / file)
    for name in tensor_shapes(SIZES["tiny"])[file]:
        save_file({key: value for key, value in tensors.items() if key != name}, own_checkpoint / file)
        with pytest.raises(ConfigError, match=file):
            Checkpoint.load(own_checkpoint)


@pytest.mark.parametrize("file", TENSOR_FILES)
def test_every_tensor_of_another_shape_is_noticed(own_checkpoint, file):
    tensors = load_file(own_checkpoint / file)
    for name in tensor_shapes(SIZES["tiny"])[file]:
        longer = np.concatenate([tensors[name]] * 2)
        save_file(tensors | {name: longer}, own_checkpoint / file)
        with pytest.raises(ConfigError, match=r"safetensors|num_hidden_layers|hidden_size|channels"):
            Checkpoint.load(own_checkpoint)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(own_checkpoint):
    def change(tensors):
        tensors["norm.weight"] = tensors["norm.weight"][:10]

    edit_tensors(own_checkpoint / "asset/gpt/model.safetensors", change)
    with pytest.raises(ConfigError, match=r"'norm.weight' has shape \[10\].*ask for \[64\]"):
        Checkpoint.load(own_checkpoint)


def test_a_gap_in_the_layers_is_noticed(own_checkpoint):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("layers.0.")]:
            del tensors[name]

    edit_tensors(own_checkpoint / "asset/gpt/model.safetensors", change)
    with pytest.raises(ConfigError, match="without a gap"):
        Checkpoint.load(own_checkpoint)


def test_tensors_that_are_not_needed_do_no_harm(own_checkpoint):
    def change(tensors):
        tensors["embed_tokens.weight"] = np.zeros((3, 64), np.float32)

    edit_tensors(own_checkpoint / "asset/gpt/model.safetensors", change)
    assert Checkpoint.load(own_checkpoint).sizes == SIZES["tiny"]


@pytest.mark.parametrize(
    ("changes", "rope_theta"),
    [
        ({"rope_theta": 500.0}, 500.0),
        ({"rope_theta": "absent"}, 10_000.0),
        ({"rope_theta": "absent", "rope_parameters": {"rope_type": "default", "rope_theta": 2e4}}, 2e4),
        ({"rope_theta": 500.0, "rope_scaling": None}, 500.0),
    ],
)
def test_rope_theta_is_read_as_old_and_new_transformers_write_it(own_checkpoint, changes, rope_theta):
    edit_config(own_checkpoint, **changes)
    assert Checkpoint.load(own_checkpoint).sizes.gpt.rope_theta == rope_theta


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 65},
        {"num_hidden_layers": 3},
        {"num_key_value_heads": 1},
        {"num_attention_heads": 3},
        {"num_attention_heads": 64},
        {"num_attention_heads": True},
        {"max_position_embeddings": 0},
        {"num_attention_heads": 2.5},
        {"num_attention_heads": "absent"},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"rms_norm_eps": -1},
        {"rms_norm_eps": float("nan")},
        {"max_position_embeddings": "many"},
        {"rope_theta": 0},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
)
def test_a_config_that_the_model_cannot_follow_is_refused_by_key(own_checkpoint, changes):
    edit_config(own_checkpoint, **changes)
    with pytest.raises(ConfigError, match=r"config.json.*('|rotary)"):
        Checkpoint.load(own_checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_config_that_is_no_json_object_is_refused(own_checkpoint, text):
    (own_checkpoint / GPT_CONFIG_FILE).write_text(text)
    with pytest.raises(ConfigError, match=r"config.json"):
        Checkpoint.load(own_checkpoint)
