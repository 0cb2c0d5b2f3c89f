"""All artifacts of an export beside ChatTTS, and an export without it."""

import json
import subprocess
import sys

import pytest

import export.comparison
from export.__main__ import DEMO, main
from export.comparison import compare
from export.repository import ARTIFACT_MODELS

NOT_THERE = ("ChatTTS", "torch", "torchaudio", "transformers", "vocos", "requests", "tqdm")
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_THERE!r}))  # None: as if it were not installed
from export.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def export_without_chattts(*arguments):
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def repository(checkpoint, tmp_path_factory):
    """The tiny checkpoint, exported without a comparison."""
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export.comparison, "compare", lambda *_: [])
        assert main(["--checkpoint", str(checkpoint.directory), "--out", str(folder)]) == 0
    return folder


def test_every_artifact_is_compared_and_near_enough(repository, checkpoint, chat, monkeypatch):
    monkeypatch.setattr(export.comparison, "load_chat", lambda _: chat)
    results = compare(checkpoint, repository, "fp32")
    assert {result.name.partition(" ")[0] for result in results} == set(ARTIFACT_MODELS)
    for result in results:
        result.check()


def test_the_demo_checkpoint_is_exported_alike_without_chattts_and_pytorch(tmp_path):
    with_it, without = tmp_path / "with", tmp_path / "without"
    assert main(["--checkpoint", "demo", "--out", str(with_it)]) == 0
    result = export_without_chattts("--checkpoint", "demo", "--out", without)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("not compared: the package ChatTTS is not installed") == len(ARTIFACT_MODELS)
    names = {path.relative_to(with_it) for path in with_it.rglob("*") if path.is_file()}
    assert names == {path.relative_to(without) for path in without.rglob("*") if path.is_file()}
    differing = {path.name for path in names if (with_it / path).read_bytes() != (without / path).read_bytes()}
    assert differing == {"export.json", "homophones.json"}  # the stamp, and Chinese characters, which it cannot say
    assert json.loads((without / "text_frontend" / "1" / "homophones.json").read_text()) == {}


def test_what_is_not_the_demo_asks_for_chattts(checkpoint, tmp_path):
    result = export_without_chattts("--checkpoint", checkpoint.directory, "--out", tmp_path / "out")
    assert result.returncode == 1
    assert "needs the package ChatTTS" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_demo_checkpoint_has_what_chattts_else_brings():
    assert (DEMO / "asset" / "spk_stat.txt").is_file()
