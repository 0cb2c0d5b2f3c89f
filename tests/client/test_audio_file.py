"""Audio files, read back with soundfile."""

from __future__ import annotations

import io
import sys
import wave
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from chattts_client import InvalidInputError, Speech
from chattts_client.audio_file import FORMATS, MARK, WAV, Encoder, audio_format, write_whole

SAMPLE_RATE = 24_000
LOSSLESS = (".wav", ".flac")


def spoken(audio: np.ndarray) -> Speech:
    return Speech(audio, SAMPLE_RATE, 1, "", "", len(audio) // 512, ())


def speech(num_samples: int, amplitude: float = 0.5) -> Speech:
    tone = amplitude * np.sin(2 * np.pi * 440 * np.arange(num_samples) / SAMPLE_RATE)
    return spoken(tone.astype(np.float32))


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("num_samples", [256, 24_000, 50_001])
def test_every_format_reads_back(tmp_path, ending, num_samples):
    said = speech(num_samples)
    said.save(tmp_path / f"out{ending}")
    audio, sample_rate = soundfile.read(tmp_path / f"out{ending}", dtype="float32")
    assert (audio.shape, sample_rate) == ((num_samples,), SAMPLE_RATE)
    if ending in LOSSLESS:
        np.testing.assert_allclose(audio, said.audio, atol=1 / 32_767)
    elif num_samples > 10_000:  # lossy codecs need some length before they resemble anything
        assert np.corrcoef(audio, said.audio)[0, 1] > 0.99


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
def test_every_file_says_that_a_machine_made_it(tmp_path, ending, floating):
    if floating and ending != ".wav":
        return
    path = tmp_path / f"out{ending}"
    speech(4_801).save(path, floating=floating)
    with soundfile.SoundFile(path) as file:
        assert (file.comment, len(file)) == (MARK, 4_801)
    if ending == ".wav" and not floating:
        with wave.open(str(path)) as file:
            assert file.getnframes() == 4_801
        assert int.from_bytes(path.read_bytes()[4:8], "little") == path.stat().st_size - 8


def test_a_wav_that_follows_other_bytes_is_marked_within_its_bounds():
    buffer = io.BytesIO(b"before")
    buffer.seek(0, io.SEEK_END)
    with Encoder(buffer, WAV) as encoder:
        encoder.write(speech(256).audio, SAMPLE_RATE)
    before, file = buffer.getvalue()[:6], buffer.getvalue()[6:]
    assert before == b"before"
    assert int.from_bytes(file[4:8], "little") == len(file) - 8
    with soundfile.SoundFile(io.BytesIO(file)) as found:
        assert (found.comment, len(found)) == (MARK, 256)


@pytest.mark.parametrize("ending", [".ogg", ".mp3"])
def test_minutes_of_noise_do_not_crash_the_encoder(tmp_path, ending):
    """One write of 120 s ends the process inside libsndfile's Vorbis encoder."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 180 * SAMPLE_RATE).astype(np.float32)
    spoken(noise).save(tmp_path / f"out{ending}")
    assert soundfile.info(tmp_path / f"out{ending}").duration == 180


def test_loud_samples_are_clipped_and_do_not_wrap(tmp_path):
    speech(24_000, amplitude=3.0).save(tmp_path / "out.wav")
    audio, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    np.testing.assert_allclose(audio, np.clip(speech(24_000, amplitude=3.0).audio, -1, 1), atol=1 / 32_767)


def test_sixteen_bits_are_those_of_libsndfile_but_for_rounding(tmp_path):
    """WAV is written without it, so that the client needs no other package; it rounds down, we to the nearest."""
    said = spoken(np.random.default_rng(0).uniform(-1.2, 1.2, 100_000).astype(np.float32))
    said.save(tmp_path / "out.wav")
    soundfile.write(tmp_path / "other.wav", said.audio, SAMPLE_RATE, subtype="PCM_16")
    ours, theirs = (soundfile.read(tmp_path / name, dtype="int16")[0] for name in ("out.wav", "other.wav"))
    assert set(np.unique(ours.astype(int) - theirs)) == {0, 1}
    steps = np.clip(said.audio.astype(float) * 32_768, -32_768, 32_767)
    assert np.abs(ours - steps).max() <= 0.5


@pytest.mark.parametrize(("name", "floating"), [("out.flac", False), ("out.MP3", False), ("out.wav", True)])
def test_what_libsndfile_would_write_names_the_package_where_it_is_missing(tmp_path, monkeypatch, name, floating):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InvalidInputError, match=r"soundfile \(pip install 'chattts-client\[audio\]'\)"):
        speech(100).save(tmp_path / name, floating=floating)
    speech(100).save(tmp_path / "out.wav")
    with wave.open(str(tmp_path / "out.wav")) as written:
        assert written.getnframes() == 100


def test_floating_point_wav_keeps_every_bit(tmp_path):
    said = speech(1_000, amplitude=3.0)
    said.save(tmp_path / "out.wav", floating=True)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "out.wav", dtype="float32")[0], said.audio)


def test_the_case_of_the_ending_does_not_matter(tmp_path):
    speech(1_000).save(tmp_path / "OUT.WAV")
    assert soundfile.info(tmp_path / "OUT.WAV").subtype == "PCM_16"


@pytest.mark.parametrize("name", ["out", "out.", "out.aac", "out.wav.txt", ".wav", ""])
def test_an_unknown_ending_is_refused(name):
    with pytest.raises(InvalidInputError, match=r"ends in \.wav, \.flac, \.ogg, \.mp3"):
        audio_format(name)


@pytest.mark.parametrize("ending", [".flac", ".ogg", ".mp3"])
def test_floating_point_is_for_wav_only(ending):
    with pytest.raises(InvalidInputError, match=r"in \.wav, for floating point"):
        audio_format(f"out{ending}", floating=True)


@pytest.mark.parametrize("ending", FORMATS)
def test_no_audio_is_refused_and_leaves_no_file(tmp_path, ending):
    with pytest.raises(InvalidInputError, match="input 'audio' is"):
        speech(0).save(tmp_path / f"out{ending}")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_replaced(tmp_path):
    (tmp_path / "out.wav").write_bytes(b"old")
    speech(1_000).save(tmp_path / "out.wav")
    assert soundfile.info(tmp_path / "out.wav").frames == 1_000
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_an_error_leaves_the_old_file_and_no_partial_one(tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    (tmp_path / "out.wav").write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        speech(1_000).save(tmp_path / "out.wav")
    assert (tmp_path / "out.wav").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.wav"]


def test_what_libsndfile_refuses_is_an_os_error_and_leaves_no_file(tmp_path):
    """MP3 knows nine sample rates."""
    said = replace(speech(1_000), sample_rate=12_345)
    with pytest.raises(OSError, match=r"libsndfile cannot write MP3 at 12345 Hz: .*sample rates"):
        said.save(tmp_path / "out.mp3")
    assert not list(tmp_path.iterdir())


def test_duration_is_in_seconds():
    assert speech(36_000).duration == 1.5
