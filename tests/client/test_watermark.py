"""The watermark in samples of any kind, and `chattts detect` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from chattts_client import InvalidInputError
from chattts_client.detection import FALSE_ALARM, detect
from chattts_client.watermark import DEPTH_DB, EDGES_HZ, KEY_VARIABLE, PUBLIC_KEY, Marker, key_from, pattern

RATE = 24_000
OWN_KEY = "a key of the tests"


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """As loud as speech and, like it, louder and softer several times a second."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(10 ** rng.uniform(-2, 0, round(seconds / 0.1) + 1), round(0.1 * rate))[: round(seconds * rate)]
    return (0.1 * levels * rng.standard_normal(len(levels))).astype(np.float32)


def marked(audio: np.ndarray, rate: int = RATE, key: str = PUBLIC_KEY) -> np.ndarray:
    return Marker(key, rate)(audio)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Files by name: with the mark, without it, with that of OWN_KEY, and what is none."""
    folder = tmp_path_factory.mktemp("recordings")
    audio = noise(8)
    soundfile.write(folder / "marked.flac", marked(audio), RATE)
    soundfile.write(folder / "two.wav", np.stack([marked(audio), 0.3 * marked(audio)], axis=1), RATE)
    soundfile.write(folder / "unmarked.wav", audio, RATE)
    soundfile.write(folder / "own.wav", marked(audio, key=OWN_KEY), RATE)
    soundfile.write(folder / "empty.wav", audio[:0], RATE)
    soundfile.write(folder / "click.wav", audio[:100], RATE)
    (folder / "text.wav").write_text("no audio")
    return folder


def searched(folder, *names, key=""):
    """Exit status, standard output, standard error."""
    command = [sys.executable, "-m", "chattts_client", "detect", *names]
    environment = os.environ | {KEY_VARIABLE: key}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in run.stderr, run.stderr
    return run.returncode, run.stdout, run.stderr


@pytest.mark.parametrize("seed", range(5))
def test_pieces_have_the_bits_of_the_whole(seed):
    audio, rng = noise(3, seed), np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(audio), 40))  # some are empty, and some shorter than a filter
    marker = Marker(PUBLIC_KEY, RATE)
    parts = [marker(part) for part in np.split(audio, [*cuts, *(cuts[:5] + 1)][:40])]
    assert np.concatenate(parts).tobytes() == marked(audio)[: sum(map(len, parts))].tobytes()


def test_no_sample_is_later():
    """A click is where it was, and all that its mark adds is behind it, within the filter's 8 ms."""
    audio = np.zeros(RATE, np.float32)
    audio[10_000] = 1
    found = marked(audio)
    assert np.abs(found).argmax() == 10_000
    assert found[10_000] == pytest.approx(1, abs=0.2)
    assert not found[:10_000].any()
    assert not found[10_200:].any()


def test_silence_stays_silence():
    assert not marked(np.zeros(RATE, np.float32)).any()


def test_levels_change_by_no_more_than_the_depth():
    audio = np.random.default_rng(0).standard_normal(60 * RATE).astype(np.float32)

    def levels(samples):
        spectra = np.abs(np.fft.rfft(samples.reshape(-1, RATE // 50), axis=1)) ** 2
        return 10 * np.log10(spectra.reshape(50, -1, spectra.shape[1]).mean(axis=1))

    changes = np.abs(levels(marked(audio)) - levels(audio))  # of 50 Hz each, each over 60 blocks
    frequencies = np.arange(changes.shape[1]) * 50
    is_below, is_above = frequencies < EDGES_HZ[0] - 150, frequencies > EDGES_HZ[-1] + 150
    assert changes[:, is_below | is_above].max() < 0.25 * DEPTH_DB
    assert changes.max() < DEPTH_DB


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_it_is_found_at_any_sample_rate_where_its_pattern_began_or_not(rate):
    audio = marked(noise(8, rate=rate), rate)
    for start_s in (0, 0.0137, 1.111):
        found = detect(audio[round(start_s * rate) :], rate)
        assert found.found, (start_s, found)
        assert not detect(audio[round(start_s * rate) :], rate, OWN_KEY).found


def test_it_is_found_amid_what_has_none():
    audio = noise(70)
    audio[50 * RATE : 58 * RATE] = marked(noise(8, seed=1))
    found = detect(audio, RATE)
    assert found.found
    assert 47 <= found.start < found.end <= 61
    assert not detect(noise(70), RATE).found


@pytest.mark.parametrize("rate", [500, 1_200, RATE])
@pytest.mark.parametrize(
    "audio", [np.zeros(0), np.zeros(10), np.zeros(RATE), np.full(5 * RATE, np.nan), noise(3)[:500]]
)
def test_nothing_is_found_in_nothing(audio, rate):
    found = detect(audio, rate)
    assert not found.found
    assert found.p_value == 1


def test_what_is_called_rare_is_rare():
    """Over keys, as the bound has it: no recording and no key may be found often by chance."""
    clips = [noise(4, seed) for seed in range(4)]
    values = np.array([detect(clip, RATE, f"key {number}").p_value for clip in clips for number in range(50)])
    print(f"MEASURED: least of {len(values)} p-values of noise: {values.min():.2g}")
    for rare in (0.5, 0.1, 0.01):
        assert (values < rare).mean() <= rare
    assert values.min() > FALSE_ALARM


def test_a_key_that_is_too_short_is_refused_and_not_shown():
    assert key_from({}) == key_from({KEY_VARIABLE: ""}) == PUBLIC_KEY
    assert key_from({KEY_VARIABLE: OWN_KEY}) == OWN_KEY
    assert pattern(key_from({KEY_VARIABLE: "\udcff" * 16})).shape == (64, 37)  # bytes that are no UTF-8
    with pytest.raises(
        InvalidInputError, match="CHATTTS_WATERMARK_KEY has 6 characters; allowed are 16 or more"
    ) as told:
        key_from({KEY_VARIABLE: "secret"})
    assert "secret" not in str(told.value)


def test_the_status_says_whether_all_have_it(recordings):
    status, told, _ = searched(recordings, "marked.flac", "two.wav")
    assert status == 0
    assert [line.partition(", ")[0] for line in told.splitlines()] == ["marked.flac: watermark", "two.wav: watermark"]
    status, told, _ = searched(recordings, "marked.flac", "unmarked.wav", "empty.wav", "click.wav")
    assert status == 1
    assert told.count("no watermark") == 3


def test_a_key_of_ones_own_finds_its_own_marks_alone(recordings):
    assert searched(recordings, "own.wav", key=OWN_KEY)[0] == 0
    assert searched(recordings, "own.wav")[0] == 1
    assert searched(recordings, "marked.flac", key=OWN_KEY)[0] == 1


def test_programs_get_json(recordings):
    status, told, _ = searched(recordings, "--json", "marked.flac", "unmarked.wav")
    first, second = map(json.loads, told.splitlines())
    assert (status, first["file"], first["found"], second["found"]) == (1, "marked.flac", True, False)
    assert first["p_value"] < FALSE_ALARM < second["p_value"]
    assert first["score"] > second["score"]
    assert 0 <= first["start"] < first["end"] <= 8


@pytest.mark.parametrize("name", ["text.wav", "nowhere.wav"])
def test_what_cannot_be_read_is_told_and_the_rest_is_searched(recordings, name):
    status, told, why = searched(recordings, name, "marked.flac")
    assert status == 2
    assert why.startswith("failed: ")
    assert name in why
    assert told.startswith("marked.flac: watermark")


def test_a_wrong_key_is_a_wrong_command_line(recordings):
    status, _, why = searched(recordings, "marked.flac", key="secret")
    assert status == 2
    assert "CHATTTS_WATERMARK_KEY has 6 characters" in why
