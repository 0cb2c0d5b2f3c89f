import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from chattts_serving.engine.gpt_config import GPTConfig
from chattts_serving.errors import ConfigError
from export.checkpoint import Checkpoint, load_tensors
from export.gpt import export_gpt, fold_weight_norm, fuse_weights
from export.gpt_parity import check_gpt


@pytest.fixture
def exported(checkpoint, tmp_path):
    export_gpt(checkpoint, tmp_path)
    return tmp_path


def test_the_exported_model_equals_chattts_at_random_lengths_and_batches(chat, exported):
    for result in check_gpt(chat, exported):
        result.check()


@pytest.mark.parametrize("name", ["embed_text", "embed_code", "layers.1.qkv", "layers.0.down", "norm", "head_code"])
def test_the_check_notices_a_changed_tensor(chat, exported, name):
    weights = load_file(exported / "model.safetensors")
    weights[name] = weights[name].roll(1, 0)
    save_file(weights, exported / "model.safetensors")
    assert any(result.difference > result.allowed for result in check_gpt(chat, exported))


def test_a_fused_product_is_the_separate_products_side_by_side(checkpoint):
    llama, embed = load_tensors(checkpoint.gpt), load_tensors(checkpoint.embed)
    weights = fuse_weights(llama, embed, checkpoint.sizes.gpt.num_layers)
    x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
    separate = [x @ llama[f"layers.1.self_attn.{name}_proj.weight"].T for name in "qkv"]
    np.testing.assert_allclose(x @ weights["layers.1.qkv"].T, np.concatenate(separate, axis=1), rtol=0, atol=1e-5)
    separate = [x @ llama[f"layers.0.mlp.{name}_proj.weight"].T for name in ("gate", "up")]
    np.testing.assert_allclose(x @ weights["layers.0.gate_up"].T, np.concatenate(separate, axis=1), rtol=0, atol=1e-5)


def test_folded_heads_are_the_weights_that_torch_computes(checkpoint, chat):
    embed = load_tensors(checkpoint.embed)
    for name, head in (("head_text", chat.embed.head_text), ("head_code.3", chat.embed.head_code[3])):
        torch.testing.assert_close(torch.from_numpy(fold_weight_norm(embed, name)), head.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_checkpoints_are_exported_as_float32(own_checkpoint, tmp_path, dtype):
    for path in (own_checkpoint / "asset/gpt/model.safetensors", own_checkpoint / "asset/Embed.safetensors"):
        save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    export_gpt(Checkpoint.load(own_checkpoint), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert torch.equal(found["norm"], load_file(own_checkpoint / "asset/gpt/model.safetensors")["norm.weight"].float())


def test_the_config_holds_the_ids_of_the_tokenizer(exported):
    config = GPTConfig.load(exported)
    assert (config.ebreak_id, config.spk_emb_id, config.break_0_id) == (1_158, 1_165, 1_169)
    assert (config.num_text_tokens, config.num_audio_tokens, config.num_codebooks) == (1_200, 626, 4)


@pytest.mark.parametrize("token", ["[Ebreak]", "[spk_emb]", "[break_0]"])
def test_a_tokenizer_without_one_of_chattts_tokens_is_refused(own_checkpoint, tmp_path, token):
    path = own_checkpoint / "asset/tokenizer/tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = [entry for entry in values["added_tokens"] if entry["content"] != token]
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=token.strip("[]")):
        export_gpt(Checkpoint.load(own_checkpoint), tmp_path)


def test_a_token_beyond_the_text_embedding_is_refused(own_checkpoint, tmp_path):
    path = own_checkpoint / "asset/tokenizer/tokenizer.json"
    values = json.loads(path.read_text())
    next(entry for entry in values["added_tokens"] if entry["content"] == "[break_0]")["id"] = 1_200
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"break_0.*1200"):
        export_gpt(Checkpoint.load(own_checkpoint), tmp_path)
