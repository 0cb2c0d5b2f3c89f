"""Tables and JSON files."""

import json
from datetime import datetime, timedelta, timezone

import pytest

from bench import report
from chattts_serving.errors import ConfigError


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_table_lines_columns_up():
    rows = [("a", 1234.567, None, 0), ("long name", 0.012345, 12.345, 100_000)]
    assert report.table(("name", "x", "y", "n"), rows) == (
        "     name       x     y       n\n        a    1235     -       0\nlong name  0.0123  12.3  100000"
    )


def test_what_is_written_is_read_again_with_where_it_ran():
    results = {
        "settings": {"precision": "int8"},
        "levels": [{"latencies_s": [1.5, 2e-7, 3.25]}],
        "words": ["a b", "[1]"],
    }
    path = report.write("server", results)
    found = report.read(path)
    assert {name: found[name] for name in results} == results
    assert found["part"] == "server"
    assert found["environment"]["cpus"] >= 1
    assert datetime.now(timezone.utc) - datetime.fromisoformat(found["environment"]["time"]) < timedelta(minutes=1)
    assert path.name.startswith("server-")


def test_numbers_of_a_list_share_a_line():
    text = report.write("server", {"latencies_s": [0.25] * 100}).read_text()
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize("text", ['{"settings": {}}', "[]", "no JSON"])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"old\.json"):
        report.read(path)
    with pytest.raises(ConfigError, match="cannot read"):
        report.read(tmp_path / "missing.json")


def test_hardware_names_the_gpu_where_there_is_one():
    environment = {"cpu": "Xeon", "cpus": 2, "gpu": None}
    assert report.hardware(environment) == "Xeon, 2 CPUs"
    assert report.hardware(environment | {"gpu": "H100"}) == "H100, Xeon, 2 CPUs"
    assert json.dumps(report.environment())
