"""Reference recordings: what is read and what is refused before anything is sent."""

from __future__ import annotations

import re

import numpy as np
import pytest
import soundfile
from chattts_client import InvalidInputError, read_recording
from chattts_client.recording import recording_tensors

RATE = 16_000
TONE = (0.5 * np.sin(np.arange(RATE) / 10)).astype(np.float32)  # 1 s


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "mp3"])
def test_every_format_is_read_at_its_sample_rate(tmp_path, ending):
    soundfile.write(tmp_path / f"a.{ending}", TONE, RATE)
    audio, sample_rate = read_recording(tmp_path / f"a.{ending}")
    assert (sample_rate, audio.dtype) == (RATE, np.float32)
    np.testing.assert_allclose(audio[: len(TONE)], TONE, atol=0.15)  # MP3 is lossy and padded
    assert len(audio) - len(TONE) < 2_400


def test_thirty_seconds_are_read_whole(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(30 * RATE), RATE)
    assert len(read_recording(tmp_path / "a.wav")[0]) == 30 * RATE


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(30 * RATE + 1, np.float32), "input 'audio' is '480001 samples'; allowed is above 0 to 30 s"),
        (np.zeros(0, np.float32), "input 'audio' is '0 samples'"),
        (np.stack([TONE, TONE], axis=1), "an audio file of one channel; it has 2"),
        (np.array([0, np.nan], np.float32), "input 'audio' is nan; allowed is samples that are finite"),
        (np.array([0, np.inf], np.float32), "input 'audio' is inf; allowed is samples that are finite"),
    ],
)
def test_a_recording_that_is_of_no_use_is_refused(tmp_path, audio, message):
    soundfile.write(tmp_path / "a.wav", audio, RATE, subtype="FLOAT")
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        read_recording(tmp_path / "a.wav")


@pytest.mark.parametrize("content", [b"", b"hello", b"RIFF" + bytes(100)])
def test_a_file_that_is_no_audio_is_refused(tmp_path, content):
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"a\.wav'; allowed is an audio file; libsndfile says: "):
        read_recording(tmp_path / "a.wav")


def test_a_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_recording(tmp_path / "a.wav")


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_samples_go_as_float32_with_the_batch_in_front(dtype):
    audio, sample_rate = (tensor.array for tensor in recording_tensors(TONE.astype(dtype), RATE))
    assert (audio.shape, audio.dtype) == ((1, RATE), np.float32)
    assert (sample_rate.tolist(), sample_rate.dtype) == ([[RATE]], np.int32)


@pytest.mark.parametrize(
    ("audio", "sample_rate", "name"),
    [
        (np.zeros((1, 10)), RATE, "audio"),
        (np.zeros(10, np.int16), RATE, "audio"),
        (np.full(10, 1e300), RATE, "audio"),
        (TONE, 0, "sample_rate"),
        (TONE, 2**31, "sample_rate"),
        (TONE, 24_000.0, "sample_rate"),
        (TONE, True, "sample_rate"),
        (TONE, 500, "audio"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_name(audio, sample_rate, name):
    with pytest.raises(InvalidInputError, match=f"^input '{name}' is "):
        recording_tensors(audio, sample_rate)
