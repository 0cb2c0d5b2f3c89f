"""`python -m export.voice`: voices from strings, seeds and files of torch.save."""

from __future__ import annotations

import importlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch

from chattts_serving.voice.speaker import MAX_HIDDEN_SIZE, decode_speaker, encode_speaker
from chattts_serving.voice.voices import Voice
from export.chattts_package import import_chattts
from export.voice import MAX_PT_BYTES, main

SPEAKER = encode_speaker(np.arange(1, 65, dtype=np.float16))


@pytest.fixture
def add(tmp_path):
    """Run the command for a library in `tmp_path`; returns its exit status."""

    def add(*arguments, description="Someone."):
        return main([*map(str, arguments), "--description", description, "--voices", str(tmp_path / "voices")])

    return add


def voice(tmp_path, name="new") -> Voice:
    return Voice.from_json(name, (tmp_path / "voices" / f"{name}.json").read_text(encoding="utf-8"))


def test_a_voice_from_a_seed(add, tmp_path, capsys):
    assert add("new", "--seed", 42, description="什么都行") == 0
    assert voice(tmp_path) == Voice("new", "什么都行", seed=42)
    assert "fits every checkpoint" in capsys.readouterr().out


def test_a_voice_from_a_speaker_string(add, tmp_path, capsys):
    assert add("new", "--speaker", SPEAKER) == 0
    assert voice(tmp_path) == Voice("new", "Someone.", speaker=SPEAKER)
    assert "64 values" in capsys.readouterr().out


def test_a_voice_that_is_a_mixture(add, tmp_path, capsys):
    assert add("new", "--mixture", "seed-1:2+seed-2") == 0
    assert voice(tmp_path) == Voice("new", "Someone.", mixture="seed-1:2+seed-2")
    assert "fits checkpoints with the voices seed-1, seed-2" in capsys.readouterr().out
    assert add("other", "--mixture", "seed-1:0") == 1
    assert "mixture of voice 'other' is 'seed-1:0'" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64,), (1, 64)])
def test_a_voice_from_a_saved_tensor(add, tmp_path, dtype, shape):
    tensor = torch.randn(shape, generator=torch.manual_seed(0)).to(dtype)
    torch.save(tensor, tmp_path / "voice.pt")
    assert add("new", "--pt", tmp_path / "voice.pt") == 0
    assert np.array_equal(decode_speaker(voice(tmp_path).speaker), tensor.reshape(-1).to(torch.float16).numpy())


def test_a_saved_tensor_speaks_as_in_chattts(add, tmp_path):
    """Its vector is the one that ChatTTS makes of the same file's tensor by its own encoder."""
    import_chattts()
    speaker = importlib.import_module("ChatTTS.model.speaker").Speaker
    tensor = torch.randn(768, generator=torch.manual_seed(0))
    torch.save(tensor, tmp_path / "voice.pt")
    add("new", "--pt", tmp_path / "voice.pt")
    assert np.array_equal(speaker._decode(voice(tmp_path).speaker), speaker._decode(speaker._encode(tensor)))


class Exploit:
    def __reduce__(self):
        return exec, ("raise SystemExit('the file was run')",)


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(100_000_000))
    return file.getvalue()


BAD_FILES = {
    "code": saved(Exploit()),
    "a plain pickle": pickle.dumps(Exploit()),
    "a dictionary": saved({"spk_emb": torch.ones(64)}),
    "a matrix": saved(torch.ones(2, 64)),
    "a number": saved(torch.tensor(1.0)),
    "nothing": saved(torch.ones(0)),
    "integers": saved(torch.ones(64, dtype=torch.int32)),
    "complex numbers": saved(torch.ones(64, dtype=torch.complex64)),
    "a huge view": saved(torch.ones(1).expand(10**12)),
    "too many values": saved(torch.ones(MAX_HIDDEN_SIZE + 1)),
    "NaN": saved(torch.full((64,), torch.nan)),
    "beyond float16": saved(torch.full((64,), 1e5)),
    "zero": saved(torch.zeros(64)),
    "no storage": saved(torch.ones(64, device="meta")),
    "sparse": saved(torch.ones(64).to_sparse()),
    "a bomb": zip_bomb(),
    "too large": saved(torch.ones(MAX_PT_BYTES // 4)),
    "words": b"hello",
    "empty": b"",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_without_a_voice_is_one_sentence_and_status_1(add, tmp_path, capsys, kind):
    (tmp_path / "bad.pt").write_bytes(BAD_FILES[kind])
    assert add("new", "--pt", tmp_path / "bad.pt") == 1
    error = capsys.readouterr().err
    assert error.startswith("voice: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "voices").exists()


@pytest.mark.parametrize(
    "arguments",
    [("New", "--seed", 1), ("../new", "--seed", 1), ("new", "--seed", -1), ("new", "--speaker", "Alice")],
    ids=["name", "path", "seed", "speaker"],
)
def test_what_no_voice_may_have_is_one_sentence_and_status_1(add, tmp_path, capsys, arguments):
    assert add(*arguments) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "voices").exists()


def test_a_missing_file_is_one_sentence_and_status_1(add, tmp_path, capsys):
    assert add("new", "--pt", tmp_path / "nothing.pt") == 1
    assert "nothing.pt" in capsys.readouterr().err


def test_a_voice_is_replaced_only_by_force(add, tmp_path, capsys):
    add("new", "--seed", 1)
    assert add("new", "--seed", 2) == 1
    assert "--force" in capsys.readouterr().err
    assert voice(tmp_path).seed == 1
    assert add("new", "--seed", 2, "--force") == 0
    assert voice(tmp_path).seed == 2


@pytest.mark.parametrize("arguments", [(), ("--seed", "1", "--speaker", SPEAKER)], ids=["none", "two"])
def test_exactly_one_source_is_asked_for(add, arguments):
    with pytest.raises(SystemExit):
        add("new", *arguments)
