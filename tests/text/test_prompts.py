"""Prompts against ChatTTS's own."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chattts_serving.errors import ConfigError
from chattts_serving.text.prompts import Prompts
from chattts_serving.text.tokenizer import Tokenizer
from export.chattts_package import import_chattts
from tests.frontend_assets import make_frontend_assets


@pytest.fixture(scope="module")
def assets(tmp_path_factory) -> Path:
    return make_frontend_assets(tmp_path_factory.mktemp("assets"))


@pytest.fixture(scope="module")
def prompts(assets) -> Prompts:
    return Prompts(assets)


@pytest.fixture(scope="module")
def encode(assets) -> Callable[[str], tuple[int, ...]]:
    return Tokenizer(assets / "tokenizer.json").encode


@pytest.mark.parametrize("text", ["Hello", " 你好[uv_break] ", "[Stts]a[spk_emb]b[empty_spk]", "[Ptts]", ""])
@pytest.mark.parametrize("prompt", ["", "[speed_5]"])
@pytest.mark.parametrize("sample_text", ["", "a sample"])
@pytest.mark.parametrize("has_speaker", [False, True])
def test_prompts_are_those_of_chattts(prompts, encode, text, prompt, sample_text, has_speaker):
    import_chattts()
    speaker = importlib.import_module("ChatTTS.model.speaker").Speaker
    (code_prompt,) = speaker.decorate_code_prompts([text], prompt, sample_text, "any voice" if has_speaker else None)
    (refine_prompt,) = speaker.decorate_text_prompts([text], prompt)
    assert prompts.code_prompt(text, prompt, sample_text, has_speaker=has_speaker) == encode(code_prompt)
    assert prompts.refine_prompt(text, prompt) == encode(refine_prompt)


def test_refined_text_leaves_out_the_tags_that_set_a_style(prompts, encode):
    assert prompts.refined_text(encode("hello[uv_break]world[break_3][oral_2]")) == "hello [uv_break] world"
    assert prompts.refined_text(encode("[break_3]")) == ""


TEXTS = [  # and the words of each
    ("hello, my friend [uv_break] good [laugh] day.", ["hello", "my", "friend", "good", "day"]),
    ("今天 ok[lbreak]吗。", ["今", "天", "ok", "吗"]),
    ("don't unbelievable[uv_break]", ["don't", "unbelievable"]),
    (" [Stts]a [spk_emb]b [break_2]", ["a", "b"]),
    ("[laugh]", []),
]


@pytest.mark.parametrize(("text", "words"), TEXTS)
@pytest.mark.parametrize("before", [("", ""), ("[speed_5]", ""), ("[speed_5]", "a sample, 样本")])
@pytest.mark.parametrize("has_speaker", [False, True])
def test_words_are_found_in_the_prompt_that_has_them_spoken(prompts, encode, text, words, before, has_speaker):
    ids = prompts.code_prompt(text, *before, has_speaker=has_speaker)
    places = prompts.places(text, *before, has_speaker=has_speaker)
    assert [word.text for word in places.words] == words
    own = ids[places.first : places.end]
    for word in places.words:
        assert own[word.first : word.end] == encode(word.text)
    assert ids[: places.first] == encode(f"[Stts]{'[spk_emb]' if has_speaker else '[empty_spk]'}{before[1]}{before[0]}")
    assert ids[places.end :] == encode("[Ptts]")


def test_a_transcript_that_runs_into_the_text_leaves_its_words_in_order(prompts):
    """A transcript without a mark at its end runs into the text."""
    places = prompts.places("low tide", "", "bel", has_speaker=True)
    assert [word.text for word in places.words] == ["low", "tide"]
    assert 0 <= places.words[0].first < places.words[0].end <= places.words[1].first


@pytest.mark.parametrize("tag", ["[spk_emb]", "[break_0]", "[oral_3]"])
def test_vocabulary_without_a_tag_is_refused(assets, tmp_path, tag):
    text = (assets / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace(tag, "[other]"), encoding="utf-8")
    with pytest.raises(ConfigError, match=tag.strip("[]")):
        Prompts(tmp_path)


def test_the_language_model_loads_no_number_grammars():
    """They would cost its process 0.5 s and 50 MB."""
    code = "import sys, chattts_serving.triton.decoder; sys.exit('wetext' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
