"""The tokenizer against transformers' BertTokenizerFast, which ChatTTS uses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from transformers import BertTokenizerFast

from chattts_serving.errors import ConfigError
from chattts_serving.text.tags import CONTROL_TAGS
from chattts_serving.text.tokenizer import Tokenizer
from export.checkpoint import Checkpoint
from export.frontend_assets import export_frontend_assets
from export.synthetic import write_checkpoint

WORDS = [
    "don't",
    "do n't",
    "it's",
    "we 've",
    "I 'm",
    " ' ",
    " .",
    "a.b",
    "naïve",
    "ＡＢ",
    "x" * 120,
    "[Stts]",
    "[UNK]",
    "[foo]",
    "##ing",
]
UNITS = st.one_of(
    st.sampled_from([*WORDS, *sorted(CONTROL_TAGS)]),
    st.text(st.sampled_from("你好世界，。hello world.!?' \t[]_0123"), max_size=20),
    st.text(max_size=10),
)
TEXTS = st.lists(UNITS, max_size=12).map("".join)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return write_checkpoint("tiny", tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="module")
def ours(checkpoint, tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("assets")
    export_frontend_assets(checkpoint, folder)
    return Tokenizer(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def bert(checkpoint) -> BertTokenizerFast:
    return BertTokenizerFast.from_pretrained(checkpoint.tokenizer)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS)
def test_ids_are_those_of_bert(ours, bert, text):
    assert list(ours.encode(text)) == bert(text, add_special_tokens=False)["input_ids"]


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_any_ids_are_decoded_as_by_bert(ours, bert, data):
    ids = data.draw(st.lists(st.integers(0, len(bert) - 1), max_size=40))
    assert ours.decode(ids) == bert.batch_decode([ids])[0]


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_ids_of_text_are_decoded_as_by_bert(ours, bert, text):
    ids = ours.encode(text)
    assert ours.decode(ids) == bert.batch_decode([list(ids)])[0]


@pytest.mark.parametrize("tag", sorted(CONTROL_TAGS))
def test_a_tag_is_one_token(ours, tag):
    assert ours.encode(f"a{tag}b")[1:-1] == (ours.id_of(tag),)


def test_long_text_is_neither_cut_nor_padded(ours, tmp_path):
    """The official tokenizer.json asks for exactly 256 tokens."""
    path = tmp_path / "tokenizer.json"
    ours._tokenizer.save(str(path))
    official = RustTokenizer.from_file(str(path))  # of its own: all tests of this file share ours
    official.enable_truncation(256)
    official.enable_padding(length=256)
    official.save(str(path))
    loaded = Tokenizer(path)
    assert [len(loaded.encode("好" * length)) for length in (1, 1_000)] == [1, 1_000]


def test_unknown_special_token_is_refused(ours):
    with pytest.raises(ConfigError, match=r"\[nonsense\]"):
        ours.id_of("[nonsense]")


@pytest.mark.parametrize("content", [None, "", "{}", "[1, 2]"])
def test_missing_or_broken_file_is_refused(tmp_path: Path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="run python -m export"):
        Tokenizer(path)
