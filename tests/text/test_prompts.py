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
