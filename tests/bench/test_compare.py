"""The comparison's table and ratios, from made-up turns; and the repository's precision."""

import re

import pytest

from bench import repository
from bench.compare import Turn, speedup, speedup_lines, turn_table
from chattts_serving.audio import SAMPLE_RATE, num_samples
from chattts_serving.errors import ConfigError
from chattts_serving.launcher.tritonserver import ROOT

TURNS = [
    *(Turn("ChatTTS", 1, seconds) for seconds in (6.0, 5.0, 9.0)),
    *(Turn("ChatTTS", 16, seconds) for seconds in (30.0, 32.0, 31.0)),
    *(Turn("server fp32", 1, seconds) for seconds in (3.0, 1.0, 2.0)),
    *(Turn("server fp32", 16, seconds) for seconds in (8.0, 9.0, 7.0)),
    *(Turn("server int8", 1, seconds) for seconds in (1.5, 1.5, 1.5)),
    *(Turn("server int8", 16, seconds) for seconds in (4.0, 4.0, 4.0)),
]


def test_ratios_are_of_medians():
    found = speedup(TURNS, "fp32", 16, 96)
    assert (found["single"], found["concurrent"]) == (3.0, 31 / 8)
    assert found["rtf"] == pytest.approx(8 / (16 * num_samples(96) / SAMPLE_RATE))


def test_table_has_a_row_for_each_system_with_its_spread():
    header, *rows = [line.split() for line in turn_table(TURNS, 96).splitlines()]
    assert header == ["system", "sentences", "seconds", "least", "most", "tokens/s", "sentences/s", "RTF"]
    assert len(rows) == 6
    assert rows[1] == ["server", "fp32", "1", "2", "1", "3", "48", "0.5", "0.982"]
    assert rows[3][:5] == ["ChatTTS", "16", "31", "30", "32"]


def test_the_last_lines_are_as_programs_read_them():
    lines = speedup_lines({precision: speedup(TURNS, precision, 16, 96) for precision in ("fp32", "int8")}).splitlines()
    assert lines[0::2] == ["precision fp32", "precision int8"]
    for line in lines[1::2]:
        assert re.fullmatch(r"speedup_vs_chattts single=\d+\.\d+ concurrent=\d+\.\d+ rtf=\d+\.\d+", line)
    assert lines[1] == "speedup_vs_chattts single=3.00 concurrent=3.88 rtf=0.2454"


def test_a_copy_of_the_repository_has_the_precision(tmp_path, monkeypatch):
    monkeypatch.setattr(repository, "FOLDER", tmp_path)
    original = ROOT / "model_repository"
    before = (original / "gpt_decoder" / "config.pbtxt").read_text()
    other = "int8" if repository.precision_of(original) != "int8" else "fp32"
    for _ in range(2):  # the second replaces the first
        copy = repository.with_precision(original, other)
    assert repository.precision_of(copy) == other
    assert (original / "gpt_decoder" / "config.pbtxt").read_text() == before
    assert (copy / "gpt_decoder" / "1" / "model.py").resolve() == original / "gpt_decoder" / "1" / "model.py"
    assert {path.name for path in copy.iterdir()} == {path.name for path in original.iterdir()}


def test_a_folder_that_is_no_repository_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        repository.precision_of(tmp_path)
    (tmp_path / "gpt_decoder").mkdir()
    (tmp_path / "gpt_decoder" / "config.pbtxt").write_text("")
    with pytest.raises(ConfigError, match="0 times"):
        repository.precision_of(tmp_path)
