import ast
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import export.comparison
import export.repository
from chattts_serving.voice.speaker import encode_speaker
from chattts_serving.voice.voices import Voice, read_library, voice_path
from export.__main__ import main
from export.lock import locked
from export.parity import ParityResult
from export.repository import ARTIFACT_MODELS, LOCK_FILE, ROOT, SERVING_SOURCES, SOURCE_REPOSITORY, STAMP_FILE
from export.sizes import SIZES
from export.voice_library import SOURCE_VOICES, VOICES_FILE, voices_for

ONNX_MODELS = ("dvae_decoder", "vocos", "dvae_encoder")


@pytest.fixture
def parity(monkeypatch):
    """Replace ONNX files and comparisons, which take seconds, by ones that take no time and differ by `value[0]`."""
    value = [0.0]

    def export_onnx_models(_checkpoint, out_dir, precision):
        for model in ONNX_MODELS:
            (out_dir / model / "1").mkdir(parents=True)
            (out_dir / model / "1" / "model.onnx").write_bytes(precision.encode())

    def compare(*_):
        return [ParityResult(model, value[0], 1e-4) for model in ARTIFACT_MODELS]

    monkeypatch.setattr(export.repository, "export_onnx_models", export_onnx_models)
    monkeypatch.setattr(export.comparison, "compare", compare)
    return value


@pytest.fixture
def run(checkpoint, tmp_path, parity):
    """Run the command line on the tiny checkpoint; returns its exit status."""

    def run(*options, source=checkpoint.directory):
        arguments = ["--checkpoint", str(source), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
        return main([*arguments, *options])

    return run


def artifacts(folder):
    """When each exported file was written; whatever the export leaves behind shows up here too."""
    files = [path for path in folder.glob("*/1/**/*") if path.is_file() and path.name != "model.py"]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def test_the_repository_is_complete(run, tmp_path):
    assert run() == 0
    written = set(artifacts(tmp_path / "out"))
    frontend = {"tokenizer.json", "homophones.json", "frontend.json"}
    assert {f"{model}/1/{name}" for model in ("text_frontend", "gpt_decoder") for name in frontend} <= written
    assert {"gpt_decoder/1/model.safetensors", "gpt_decoder/1/config.json"} <= written
    assert {f"{model}/1/model.onnx" for model in ONNX_MODELS} <= written
    for config in SOURCE_REPOSITORY.glob("*/config.pbtxt"):
        assert (tmp_path / "out" / config.parent.name / "1").is_dir()
        assert (tmp_path / "out" / config.relative_to(SOURCE_REPOSITORY)).read_text() == config.read_text()
    library, _ = voices_for(SOURCE_VOICES, SIZES["tiny"].gpt.hidden)
    assert read_library(tmp_path / "out" / VOICES_FILE) == library


def test_one_line_is_printed_per_model(run, capsys):
    run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(ARTIFACT_MODELS)
    assert all(" MB " in line and "allowed" in line for line in lines[1:-1])


def test_a_second_run_changes_no_artifact(run, tmp_path, capsys):
    run()
    before = artifacts(tmp_path / "out")
    assert run() == 0
    assert "up to date" in capsys.readouterr().out
    after = artifacts(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} <= {VOICES_FILE}


def test_force_exports_again(run, tmp_path):
    run()
    before = artifacts(tmp_path / "out")
    run("--force")
    assert artifacts(tmp_path / "out")["vocos/1/model.onnx"] != before["vocos/1/model.onnx"]


@pytest.mark.parametrize("name", ["vocos/1/model.onnx", "gpt_decoder/1/model.safetensors", STAMP_FILE])
def test_a_missing_or_shortened_file_is_exported_again(run, tmp_path, name):
    run()
    (tmp_path / "out" / name).write_bytes(b"")
    assert run() == 0
    assert (tmp_path / "out" / name).stat().st_size > 0


def test_a_changed_checkpoint_is_exported_again(run, tmp_path, own_checkpoint, capsys):
    run(source=own_checkpoint)
    status = (own_checkpoint / "asset/Vocos.safetensors").stat()
    os.utime(own_checkpoint / "asset/Vocos.safetensors", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    capsys.readouterr()
    run(source=own_checkpoint)
    assert "up to date" not in capsys.readouterr().out


def test_a_changed_package_is_exported_again(run, monkeypatch, capsys):
    run()
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{package} 99")
    capsys.readouterr()
    run()
    assert "up to date" not in capsys.readouterr().out


def test_another_precision_is_exported_again(run, tmp_path):
    vocos = tmp_path / "out" / "vocos" / "1" / "model.onnx"
    run()
    assert vocos.read_text() == "fp32"
    run("--vocoder-precision", "fp16")
    assert vocos.read_text() == "fp16"
    run()
    assert vocos.read_text() == "fp32"


def test_the_stamp_covers_every_serving_module_that_the_export_uses():
    used = set()
    for path in Path(export.repository.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("chattts_serving"):
                module = node.module.partition(".")[2]
                is_file = (ROOT / "chattts_serving" / f"{module.replace('.', '/')}.py").exists()
                used |= {module} if is_file else {f"{module}.{alias.name}".strip(".") for alias in node.names}
    assert used - {"errors"} == set(SERVING_SOURCES)


def test_an_artifact_that_differs_is_refused_and_the_old_repository_stays(run, tmp_path, parity, capsys):
    run()
    config = tmp_path / "out" / "vocos" / "config.pbtxt"
    config.write_text("edited")
    before = artifacts(tmp_path / "out")
    parity[0] = 1.0
    assert run("--force") == 1
    assert "text_frontend" in capsys.readouterr().err
    assert artifacts(tmp_path / "out") == before
    assert config.read_text() == "edited"


def test_an_export_that_fails_puts_nothing_into_a_new_folder(run, tmp_path, parity):
    parity[0] = 1.0
    assert run() == 1
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert files == [tmp_path / "out" / LOCK_FILE]


def test_a_checkpoint_that_cannot_be_used_leaves_the_output_alone(run, tmp_path):
    assert run(source=tmp_path) == 1
    assert not (tmp_path / "out").exists()


def test_models_are_replaced_where_the_artifacts_are_up_to_date(run, tmp_path):
    run()
    config = tmp_path / "out" / "vocos" / "config.pbtxt"
    config.write_text("edited")
    assert run() == 0
    assert config.read_text() == (SOURCE_REPOSITORY / "vocos" / "config.pbtxt").read_text()


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_folder(*_):
    save_file({}, "/nowhere/model.safetensors")


@pytest.mark.parametrize(("write", "message"), [(full, "No space left on device"), (no_folder, "No such file")])
def test_a_file_that_cannot_be_written_is_one_sentence_and_status_1(run, monkeypatch, capsys, write, message):
    monkeypatch.setattr(export.repository, "export_gpt", write)
    assert run() == 1
    error = capsys.readouterr().err
    assert error.startswith("export: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_second_export_to_one_folder_waits_for_the_first(tmp_path):
    command = [
        sys.executable,
        "-c",
        f"from pathlib import Path; from export.lock import locked\n"
        f"with locked(Path({str(tmp_path / 'lock')!r})): print('locked')",
    ]
    with locked(tmp_path / "lock"):
        second = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert second.stderr.readline().startswith("waiting for another export")
        assert second.poll() is None
    assert second.communicate(timeout=60) == ("locked\n", "")


def test_the_folder_is_locked_while_it_is_looked_at_and_written(run, tmp_path, monkeypatch):
    """Also for removing what a killed export left, which else would be the other's work."""

    def assert_locked(*_):
        with (tmp_path / "out" / LOCK_FILE).open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        looked.append(True)

    looked = []
    monkeypatch.setattr("export.__main__.is_up_to_date", lambda *_: assert_locked() or True)
    monkeypatch.setattr("export.__main__.update_models", assert_locked)
    monkeypatch.setattr("export.__main__.build_repository", lambda *_: assert_locked() or [])
    run()
    run("--force")
    assert len(looked) == 3


def test_what_a_killed_export_left_is_removed(run, tmp_path):
    leftover = tmp_path / "out" / "gpt_decoder" / "1" / ".export-killed"
    leftover.mkdir(parents=True)
    (leftover / "half").write_bytes(b"x")
    assert run() == 0
    assert not leftover.exists()


def test_named_checkpoints_are_made_in_the_cache(run, tmp_path):
    assert run(source="tiny") == 0
    assert (tmp_path / "cache" / "tiny" / "asset" / "Vocos.safetensors").is_file()


def test_a_folder_that_is_no_checkpoint_is_one_sentence_and_status_1(run, tmp_path, capsys):
    assert run(source=tmp_path / "nothing") == 1
    error = capsys.readouterr().err
    assert error.startswith("export: checkpoint is ")
    assert error.count("\n") == 1


def test_hf_is_downloaded_into_the_cache(run, tmp_path, monkeypatch, checkpoint):
    def download(folder):
        folder.symlink_to(checkpoint.directory)

    monkeypatch.setattr("export.download.download_checkpoint", download)
    assert run(source="hf") == 0
    assert (tmp_path / "cache" / "hf").is_symlink()


@pytest.fixture
def voices(tmp_path):
    """A library of two voices, one of them for another checkpoint."""
    (tmp_path / "voices").mkdir()
    voice_path(tmp_path / "voices", "default").write_text('{"description": "d", "seed": 5}')
    other = Voice("other", "o", speaker=encode_speaker(np.ones(7, np.float16)))
    voice_path(tmp_path / "voices", "other").write_text(other.to_json(), "utf-8")
    return tmp_path / "voices"


def offered(tmp_path):
    return read_library(tmp_path / "out" / VOICES_FILE)


def test_voices_that_fit_are_offered_and_the_others_named(run, tmp_path, voices, capsys):
    assert run("--voices", str(voices)) == 0
    assert offered(tmp_path) == (Voice("default", "d", seed=5),)
    assert capsys.readouterr().err == "left out: voice 'other' has 7 values; this checkpoint's voices have 64\n"


def test_a_new_voice_is_offered_without_another_export(run, tmp_path, voices, capsys):
    run("--voices", str(voices))
    before = artifacts(tmp_path / "out")
    voice_path(voices, "new").write_text('{"description": "n", "seed": 6}')
    capsys.readouterr()
    assert run("--voices", str(voices)) == 0
    assert "up to date" in capsys.readouterr().out
    after = artifacts(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {VOICES_FILE}
    assert "new" in [voice.name for voice in offered(tmp_path)]


def test_a_voice_that_was_removed_is_no_longer_offered(run, tmp_path, voices):
    voice_path(voices, "new").write_text('{"description": "n", "seed": 6}')
    run("--voices", str(voices))
    voice_path(voices, "new").unlink()
    run("--voices", str(voices))
    assert "new" not in [voice.name for voice in offered(tmp_path)]


def test_a_broken_voice_is_one_sentence_and_leaves_the_output_alone(run, tmp_path, voices, capsys):
    voice_path(voices, "new").write_text("{}")
    assert run("--voices", str(voices)) == 1
    error = capsys.readouterr().err
    assert error.startswith("export: voice 'new' is ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_export_into_the_checkout_changes_no_tracked_file(run, tmp_path, monkeypatch, voices):
    """Whatever the checkpoint: its voices belong to the artifacts."""
    monkeypatch.setattr(export.repository, "SOURCE_REPOSITORY", tmp_path / "out")
    for path in SOURCE_REPOSITORY.rglob("*"):
        if path.name in ("config.pbtxt", "model.py", ".gitkeep"):  # what git tracks
            copy = tmp_path / "out" / path.relative_to(SOURCE_REPOSITORY)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
    tracked = [*(tmp_path / "out").glob("*/config.pbtxt"), *(tmp_path / "out").glob("*/1/model.py")]
    before = [(path.stat().st_mtime_ns, path.stat().st_ino) for path in tracked]
    assert run("--voices", str(voices), "--force") == 0
    assert [(path.stat().st_mtime_ns, path.stat().st_ino) for path in tracked] == before
    assert [voice.name for voice in offered(tmp_path)] == ["default"]
