"""Pictures from the JSON of runs."""

import sys

import numpy as np
import pytest
from matplotlib.image import imread

from bench import plots, report
from chattts_serving.errors import ConfigError
from tests.bench.runs import RUNS, engine_run, server_run

PANELS = {"server": 4, "engine": 2, "compare": 2, "peers": 2}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes one run; each gets a folder of its own, since names have a resolution of a second."""

    def write_one(part, results):
        monkeypatch.setattr(report, "RESULTS", tmp_path / f"{part}{len(list(tmp_path.iterdir()))}")
        return report.write(part, results)

    return write_one


def pixels(path):
    """[height, width, 3], 0 to 1."""
    return imread(path)[..., :3]


def panels_with_curves(image, panels):
    """How many of the picture's places for panels, two a row, have pixels of a curve's colour (not grey)."""
    rows = np.array_split(image, -(-panels // 2), axis=0)
    places = [place for row in rows for place in np.array_split(row, 2, axis=1)]
    return sum(int((np.ptp(place, axis=2) > 0.3).sum() > 200) for place in places)


@pytest.mark.parametrize("part", RUNS)
def test_each_part_is_drawn_beside_its_json(write, part):
    path = write(part, RUNS[part]())
    picture = plots.draw([path])
    assert picture == path.with_suffix(".png")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.stat().st_size < 300_000
    image = pixels(picture)
    assert image.shape[1] == pytest.approx(2 * plots.PANEL_INCHES[0] * plots.DOTS_PER_INCH, abs=1)
    assert panels_with_curves(image, PANELS[part]) == PANELS[part]


@pytest.mark.parametrize(("soak", "rates", "panels"), [(True, (), 3), (False, (1, 2), 3), (True, (1, 2), 4)])
def test_there_is_a_panel_for_what_was_measured(write, soak, rates, panels):
    image = pixels(plots.draw([write("server", server_run(soak=soak, rates=rates))]))
    assert panels_with_curves(image, 4) == panels


@pytest.mark.parametrize(("rates", "panels"), [((), 4), ((1, 2), 7)])
def test_streams_have_panels_of_first_audio_and_underruns(write, rates, panels):
    image = pixels(plots.draw([write("server", server_run(soak=False, rates=rates, mode="exact"))]))
    assert panels_with_curves(image, 8 if rates else 4) == panels


def test_streams_without_an_underrun_are_drawn(write):
    run = server_run(soak=False, rates=(), mode="exact")
    for level in run["levels"]:
        level |= {"underrun_share": 0.0, "with_underruns": 0, "underruns": 0, "silence_s": 0.0}
    assert panels_with_curves(pixels(plots.draw([write("server", run)])), 4) == 4


def test_both_modes_and_whole_answers_share_a_picture(write):
    paths = [write("server", server_run(soak=False, rates=(), mode=mode)) for mode in ("exact", "low_latency", None)]
    assert [plots._name(report.read(path)) for path in paths] == ["fp32 exact", "fp32 low_latency", "fp32"]
    assert panels_with_curves(pixels(plots.draw(paths)), 4) == 4


@pytest.mark.parametrize("make", [server_run, engine_run])
def test_two_runs_share_a_picture(write, make):
    part = make.__name__.partition("_")[0]
    paths = [write(part, make(precision)) for precision in ("fp32", "int8")]
    alone, both = (pixels(plots.draw(some)) for some in (paths[:1], paths))
    assert plots.draw(paths).name == f"{paths[0].stem}-and-1.png"
    assert alone.shape == both.shape
    assert (np.abs(alone - both).max(axis=2) > 0.3).sum() > 500


def test_a_level_without_an_answer_is_left_out(write):
    run = server_run(soak=False, rates=())
    run["levels"][3] |= {"answered": 0, "p50_s": None, "p90_s": None, "p99_s": None, "rtf": None}
    assert panels_with_curves(pixels(plots.draw([write("server", run)])), 2) == 2


def test_runs_of_two_parts_are_refused(write):
    paths = [write(part, RUNS[part]()) for part in ("server", "engine")]
    with pytest.raises(ConfigError, match="not of engine, server"):
        plots.draw(paths)


def test_without_matplotlib_one_line_says_so(write, monkeypatch, capsys):
    path = write("compare", RUNS["compare"]())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    plots.draw_beside([path])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("no plot: matplotlib is not installed")
    assert not path.with_suffix(".png").exists()
