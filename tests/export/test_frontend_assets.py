import json
import subprocess
import sys

import pybase16384
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from chattts_serving.errors import ConfigError
from export.chattts_package import homophones, sha256_map, speaker_statistics
from export.checkpoint import Checkpoint
from export.frontend_assets import FRONTEND_ASSETS, check_tokenizer, export_frontend_assets
from export.layout import GPT_CONFIG_FILE, OFFICIAL_FILES
from export.synthetic_tokenizer import CHATTTS_TOKENS


@pytest.fixture(scope="module")
def assets(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    export_frontend_assets(checkpoint, folder)
    return folder


def test_every_asset_is_written(assets):
    assert sorted(path.name for path in assets.iterdir()) == sorted(FRONTEND_ASSETS)


def test_the_tokenizer_equals_bert_tokenizer_fast(checkpoint, assets):
    expected = BertTokenizerFast.from_pretrained(checkpoint.tokenizer)
    found = Tokenizer.from_file(str(assets / "tokenizer.json"))
    pieces = st.one_of(st.text(max_size=5), st.sampled_from([*CHATTTS_TOKENS, "你好", "World", "[UNK]", " ", "##a"]))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(pieces, max_size=8).map("".join))
    def same_ids(text):
        assert found.encode(text, add_special_tokens=False).ids == expected(text, add_special_tokens=False)["input_ids"]

    same_ids()


def test_the_check_passes_and_notices_another_tokenizer(checkpoint, assets, tmp_path):
    check_tokenizer(checkpoint, assets).check()
    values = json.loads((assets / "tokenizer.json").read_text())
    values["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="tokenizer"):
        check_tokenizer(checkpoint, tmp_path).check()


def test_frontend_json_holds_the_checkpoints_own_statistics(checkpoint, assets):
    values = json.loads((assets / "frontend.json").read_text())
    assert len(pybase16384.decode_from_string(values["spk_stat"])) == 4 * 64
    assert values["spk_stat"] == checkpoint.speaker_statistics()
    assert (values["hidden_size"], values["max_prompt_tokens"]) == (64, 2_048)


def test_statistics_of_another_size_are_refused(own_checkpoint, tmp_path):
    (own_checkpoint / "asset/spk_stat.txt").unlink()
    with pytest.raises(ConfigError, match="768 dimensions, the checkpoint 64"):
        export_frontend_assets(Checkpoint.load(own_checkpoint), tmp_path)


def test_broken_statistics_are_refused(own_checkpoint, tmp_path):
    (own_checkpoint / "asset/spk_stat.txt").write_text("not base16384")
    with pytest.raises(ConfigError, match="base16384"):
        export_frontend_assets(Checkpoint.load(own_checkpoint), tmp_path)


def test_a_gpt_without_room_for_a_sentence_is_refused(own_checkpoint, tmp_path):
    path = own_checkpoint / GPT_CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 2_048}))
    with pytest.raises(ConfigError, match="2048 positions"):
        export_frontend_assets(Checkpoint.load(own_checkpoint), tmp_path)


def test_a_broken_tokenizer_is_refused_by_its_folder(own_checkpoint, tmp_path):
    (own_checkpoint / "asset/tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="tokenizer"):
        export_frontend_assets(Checkpoint.load(own_checkpoint), tmp_path)


def test_the_package_knows_every_official_file():
    assert list(sha256_map()) == list(OFFICIAL_FILES)
    assert all(len(digest) == 64 for digest in sha256_map().values())


def test_homophones_are_single_characters(assets):
    found = json.loads((assets / "homophones.json").read_text())
    assert found == homophones()
    assert found["粡"] == "同"
    assert all(len(key) == 1 for key in found)


def test_the_package_s_statistics_are_of_the_official_size():
    assert len(pybase16384.decode_from_string(speaker_statistics())) == 4 * 768


def test_constants_are_read_without_importing_chattts():
    code = (
        "import sys; from export.chattts_package import homophones, sha256_map, speaker_statistics;"
        "homophones(); sha256_map(); speaker_statistics(); sys.exit('ChatTTS' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
