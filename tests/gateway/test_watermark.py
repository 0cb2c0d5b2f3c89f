"""The watermark of a gateway in speech: found again after what happens to recordings, not found elsewhere, not heard.

`pytest -rP` shows the figures.
"""

from __future__ import annotations

import io
import random
import shutil
from collections.abc import Callable

import av
import numpy as np
import pytest
import requests
import soundfile
import soxr
from chattts_client.detection import FALSE_ALARM, detect
from chattts_client.watermark import KEY_VARIABLE, PUBLIC_KEY, Marker

from chattts_serving.audio import SAMPLE_RATE as RATE
from gateway.audio import FORMATS, AudioWriter
from gateway.process import running_gateway
from gateway.settings import SettingsError, parse
from tests.gateway.test_session import MODEL, TEXT, audio_of, cut
from tests.gateway.test_session import spoken as spoken_in_pieces
from tests.gateway.test_speech import decoded
from training.corpus import speak
from training.listen import Listener, word_error_rate
from training.sentences import held_out
from training.utterances import VOICES

BODY = {"model": "chattts", "response_format": "pcm", "seed": 7, "refine": False}
TURNS = [{"text": held_out()[number], "voice": VOICES[number % 4]} for number in range(12)]
OWN_KEY = "a key of the tests"
KEYS = [f"key {number}" for number in range(40)]
LISTENED = range(0, 40, 4)

Audio = np.ndarray
CODECS = {"mp3": "libmp3lame", "ogg": "libopus", "adts": "aac"}


def coded(audio: Audio, container: str, kbit_per_s: int) -> Audio:
    """By the gateway's encoders, at the gateway's 48 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(CODECS[container], rate=48_000, layout="mono", bit_rate=1_000 * kbit_per_s)
        frame = av.AudioFrame.from_ndarray(integers(audio)[None], format="s16", layout="mono")
        frame.sample_rate = RATE
        out.mux([*stream.encode(frame), *stream.encode(None)])
    samples, rate = decoded(file.getvalue(), container)
    return soxr.resample(samples, rate, RATE)


def integers(audio: Audio) -> Audio:
    return np.round(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def resampled(audio: Audio, rate: int) -> Audio:
    return soxr.resample(soxr.resample(audio, RATE, rate), rate, RATE)


def with_noise(audio: Audio, db: float) -> Audio:
    """White noise, so much below the speech."""
    added = np.random.default_rng(0).standard_normal(len(audio))
    return audio + added * np.sqrt(np.mean(audio**2) / np.mean(added**2)) * 10 ** (-db / 20)


# What happens to a recording, and after how many seconds of it the mark is found, from wherever they begin.
WITHSTOOD: dict[str, tuple[Callable[[Audio], Audio], float]] = {
    "WAV": (lambda audio: integers(audio) / 32767, 3),
    "16 kHz and back": (lambda audio: resampled(audio, 16_000), 3),
    "8 kHz and back": (lambda audio: resampled(audio, 8_000), 3),
    "20 dB softer": (lambda audio: integers(0.1 * audio) / 32767, 3),
    "MP3, 64 kbit/s": (lambda audio: coded(audio, "mp3", 64), 3),
    "AAC, 64 kbit/s": (lambda audio: coded(audio, "adts", 64), 3),
    "Opus, 32 kbit/s": (lambda audio: coded(audio, "ogg", 32), 6),
    "noise, 20 dB below": (lambda audio: with_noise(audio, 20), 12),
    "MP3, 64 kbit/s, of noise 20 dB below": (lambda audio: coded(with_noise(audio, 20), "mp3", 64), 12),
}


@pytest.fixture(scope="module")
def marking(demo, tmp_path_factory):
    log = tmp_path_factory.mktemp("marking") / "gateway.log"
    with running_gateway(demo.server.grpc_url, log, "--watermark") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def plain(demo, tmp_path_factory):
    with running_gateway(demo.server.grpc_url, tmp_path_factory.mktemp("plain") / "gateway.log") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def noisy(tiny, tmp_path_factory):
    """Marks what a model with random weights says."""
    log = tmp_path_factory.mktemp("noisy") / "gateway.log"
    with running_gateway(tiny.server.grpc_url, log, "--watermark") as gateway:
        yield gateway


def answered(gateway, **fields) -> bytes:
    answer = requests.post(gateway.url + "/v1/audio/speech", json=BODY | fields, timeout=300)
    assert answer.ok, answer.text
    return answer.content


def spoken(gateway, **fields) -> Audio:
    return np.frombuffer(answered(gateway, **fields), "<i2") / 32767


@pytest.fixture(scope="module")
def speech(marking) -> Audio:
    """Four voices in turns, marked."""
    return spoken(marking, input=TURNS)


@pytest.fixture(scope="module")
def unmarked(plain) -> Audio:
    return spoken(plain, input=TURNS)


def pieces_of(audio: Audio, seconds: float) -> list[Audio]:
    size = round(seconds * RATE)
    return [audio[start : start + size] for start in range(round(0.37 * RATE), len(audio) - size, size)]


@pytest.mark.parametrize("what", WITHSTOOD)
def test_it_is_found_after_what_happens_to_recordings(speech, what):
    change, seconds = WITHSTOOD[what]
    found = [detect(piece, RATE) for piece in pieces_of(change(speech), seconds)]
    print(f"MEASURED: {what}, {seconds} s: scores {', '.join(f'{one.score:.1f}' for one in found)}")
    assert all(one.found for one in found), found


@pytest.mark.parametrize("what", WITHSTOOD)
def test_nothing_is_found_in_unmarked_speech_nor_with_another_key(speech, unmarked, what):
    change, _ = WITHSTOOD[what]
    assert not detect(change(unmarked), RATE).found
    assert not detect(change(speech), RATE, OWN_KEY).found


def test_speech_without_the_mark_is_found_no_more_often_than_is_said(unmarked):
    values = np.array([detect(piece, RATE, key).p_value for piece in pieces_of(unmarked, 3) for key in KEYS])
    print(f"MEASURED: least of {len(values)} p-values of unmarked speech: {values.min():.2g}")
    for rare in (0.5, 0.1, 0.01):
        assert (values < rare).mean() <= rare
    assert values.min() > FALSE_ALARM


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
@pytest.mark.parametrize("voice", VOICES)
def test_speech_of_flite_is_marked_as_well(voice):
    audio = np.concatenate([speak(voice, held_out()[number])[0] for number in range(3)]) / np.float32(32767)
    assert not detect(audio, RATE).found
    assert detect(coded(Marker(PUBLIC_KEY, RATE)(audio), "mp3", 64), RATE).found


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_it(marking, name):
    audio, rate = decoded(answered(marking, input=TURNS[:4], response_format=name), name)
    assert detect(audio, rate).found


@pytest.mark.parametrize("speed", [0.7, 1.5])
def test_it_is_there_at_any_speed_that_was_asked_for(marking, speed):
    found = detect(spoken(marking, input=TURNS[:8], speed=speed), RATE)
    assert found.found, found


def test_a_low_latency_stream_has_it(marking):
    assert detect(spoken(marking, input=TURNS[:4], mode="low_latency"), RATE).found


def test_noise_of_a_model_that_cannot_speak_has_it(noisy):
    fields = {"input": "The library opens at nine.", "min_new_tokens": 400, "max_new_tokens": 400}
    assert detect(spoken(noisy, **fields), RATE).found


def test_a_stream_has_the_bytes_of_the_whole_file(marking):
    streamed = answered(marking, input=TURNS[:2], response_format="wav")
    whole = answered(marking, input=TURNS[:2], response_format="wav", stream=False)
    assert np.array_equal(soundfile.read(io.BytesIO(streamed))[0], soundfile.read(io.BytesIO(whole))[0])


def test_sentences_of_a_text_in_pieces_join_as_in_the_whole(noisy):
    config = {"type": "session.config", "response_format": "pcm", "stream_audio": True, **MODEL}
    audio = audio_of(spoken_in_pieces(noisy, config, cut(TEXT, random.Random(0))))
    whole = np.frombuffer(answered(noisy, input=TEXT, **MODEL), "<i2").astype(int)
    assert len(audio) == len(whole)
    assert np.abs(audio - whole).max() <= 1e-4 * 32767  # of windows of other lengths, which round differently


def test_no_sample_waits_and_a_silence_stays_one(noisy):
    chunk = 0.1 * np.random.default_rng(0).standard_normal(512).astype(np.float32)
    assert len(AudioWriter("pcm", RATE, marker=Marker(PUBLIC_KEY, RATE)).write(chunk)) == 2 * len(chunk)
    assert not any(answered(noisy, input="😀", allow_silence=True))


def test_speech_and_mark_are_as_far_apart_as_is_said(speech, unmarked):
    assert len(speech) == len(unmarked)
    mark = speech - unmarked
    ratio = 10 * np.log10(np.mean(unmarked**2) / np.mean(mark**2))

    def levels(audio):
        spectra = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(audio, 768)[::192] * np.hanning(768)))
        return 20 * np.log10(spectra + 1e-3)  # silence is no level

    differences = levels(speech) - levels(unmarked)
    distance = np.sqrt((differences**2).mean(axis=1)).mean()
    print(f"MEASURED: the mark is {ratio:.1f} dB below the speech, log-spectral distance {distance:.2f} dB")
    assert ratio > 18
    assert distance < 1


def test_words_are_understood_as_well(marking, plain):
    listener = Listener()

    def rate(gateway):
        said = {held_out()[number]: VOICES[number % 4] for number in LISTENED}
        return word_error_rate(
            listener.listen(spoken(gateway, input=text, voice=voice).astype(np.float32), text)
            for text, voice in said.items()
        )

    with_mark, without = rate(marking), rate(plain)
    print(f"MEASURED: words heard wrong with the mark {with_mark:.3f}, without {without:.3f}")
    assert with_mark <= without + 0.08  # of some 80 words, of which some are heard or not by chance


def test_a_key_of_ones_own_comes_from_the_environment():
    assert parse([], {KEY_VARIABLE: OWN_KEY}).marker(RATE) is None
    audio = np.random.default_rng(0).standard_normal(8 * RATE).astype(np.float32)
    marked = parse(["--watermark"], {KEY_VARIABLE: OWN_KEY}).marker(RATE)(audio)
    assert detect(marked, RATE, OWN_KEY).found
    assert not detect(marked, RATE).found
    assert OWN_KEY not in repr(parse(["--watermark"], {KEY_VARIABLE: OWN_KEY}))
    with pytest.raises(SettingsError, match="CHATTTS_WATERMARK_KEY has 3 characters"):
        parse(["--watermark"], {KEY_VARIABLE: "abc"})
