"""Voices on the live server: names, strings that can be kept, and strings made of reference recordings."""

import functools
import json
import urllib.request

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from chattts_client import TTSClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from chattts_serving.voice.voice_encoder import resample
from export.voice_library import SOURCE_VOICES, voices_for
from tests.codes import chattts_codes, check_codes
from tests.oracle import Oracle

LIBRARIES = {"grpc": tritonclient.grpc, "http": tritonclient.http}
BAD_STATUS = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}


def infer(protocol, server, model, **inputs):
    """The outputs of one request; `inputs` are arrays, or str and int of shape [1, 1]."""
    library = LIBRARIES[protocol]
    url = server.grpc_url if protocol == "grpc" else server.http_url
    tensors = []
    for name, value in inputs.items():
        array = value if isinstance(value, np.ndarray) else scalar(value)
        tensors.append(library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    with library.InferenceServerClient(url) as triton:
        result = triton.infer(model, tensors)
    response = result.get_response() if protocol == "http" else result.get_response(as_json=True)
    return {output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]}


def scalar(value):
    if isinstance(value, str):
        return np.array([[value.encode()]], np.object_)
    return np.array([[value]], np.int64)


def rate(value):
    return np.array([[value]], np.int32)


def speech_like(seconds, sample_rate=24_000):
    """Syllables of a harmonic voice over a noise floor 60 dB below, float32 [1, N]."""
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    voice = sum(0.3 / harmonic * np.sin(2 * np.pi * 140 * harmonic * time + harmonic) for harmonic in range(1, 30))
    noise = 3e-4 * np.random.default_rng(0).standard_normal(len(time))
    return (np.clip(np.sin(4 * np.pi * time), 0, 1) * voice + noise).astype(np.float32)[np.newaxis]


def noise(*shape):
    return np.random.default_rng(0).uniform(-0.5, 0.5, shape).astype(np.float32)


@functools.cache
def oracle(checkpoint):
    return Oracle(checkpoint)


@pytest.fixture(params=["tiny", pytest.param("official", marks=pytest.mark.slow)])
def deployment(request):
    return request.getfixturevalue(request.param)


def clone(server, audio, sample_rate=24_000, protocol="grpc"):
    """The string and its number of tokens."""
    answer = infer(protocol, server, "voice_encoder", audio=audio, sample_rate=rate(sample_rate))
    return answer["speaker_sample"].item().decode(), answer["num_tokens"].item()


# Voices by name


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_server_lists_the_voices_of_the_checkout(tiny, protocol):
    voices, _ = voices_for(SOURCE_VOICES, 64)
    with TTSClient(getattr(tiny.server, f"{protocol}_url"), protocol) as client:
        assert [(voice.name, voice.description) for voice in client.voices()] == [
            (voice.name, voice.description) for voice in voices
        ]


def test_a_listed_voice_says_how_it_is_made(tiny):
    """For who calls the model without this client."""
    body = {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [""]}],
        "outputs": [{"name": "voices"}],
    }
    url = f"http://{tiny.server.http_url}/v2/models/text_frontend/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as answer:
        (output,) = json.load(answer)["outputs"]
    voices, _ = voices_for(SOURCE_VOICES, 64)
    assert json.loads(output["data"][0]) == {voice.name: json.loads(voice.to_json()) for voice in voices}


@pytest.mark.parametrize("protocol", LIBRARIES)
def test_a_name_speaks_in_one_voice_whatever_the_seed(tiny, protocol):
    one, two, other = (
        infer(protocol, tiny.server, "text_frontend", text="Hello", speaker=name, seed=seed)
        for name, seed in (("default", 1), ("default", 2), ("seed-1", 1))
    )
    assert np.array_equal(one["speaker_embedding"], two["speaker_embedding"])
    assert not np.array_equal(one["speaker_embedding"], other["speaker_embedding"])


@pytest.mark.parametrize("protocol", LIBRARIES)
def test_an_unknown_name_is_refused_with_the_known_ones(tiny, protocol):
    with pytest.raises(InferenceServerException, match=r"'speaker' is 'nobody'.*\(default, .*seed-1") as caught:
        infer(protocol, tiny.server, "text_frontend", text="Hello", speaker="nobody")
    assert caught.value.status() == BAD_STATUS[protocol]


def test_the_used_speaker_is_the_same_vector_bit_for_bit_also_to_chattts(deployment):
    sampled = infer("grpc", deployment.server, "text_frontend", text="Hello", seed=11)
    string = sampled["used_speaker"].item().decode()
    again = infer("http", deployment.server, "text_frontend", text="Hello", seed=12, speaker=string)
    assert again["speaker_embedding"].tobytes() == sampled["speaker_embedding"].tobytes()
    assert again["used_speaker"].item().decode() == string
    theirs = oracle(deployment.checkpoint).chat.speaker._decode(string)
    unit = theirs.astype(np.float64) / np.linalg.norm(theirs.astype(np.float64))
    np.testing.assert_allclose(sampled["speaker_embedding"][0], unit, rtol=0, atol=1e-3)  # float16's rounding


def test_no_speaker_was_used_where_a_recording_alone_decides(tiny):
    sample, _ = clone(tiny.server, speech_like(1))
    answer = infer("grpc", tiny.server, "text_frontend", text="Hello", speaker_sample=sample)
    assert answer["used_speaker"].item() == b""


# Recordings


@pytest.mark.parametrize("protocol", LIBRARIES)
@pytest.mark.parametrize(
    "audio", [speech_like(1), speech_like(3.21), noise(1, 30 * 24_000)], ids=["1 s", "3 s", "30 s"]
)
def test_the_codes_are_those_that_chattts_samples(deployment, audio, protocol):
    string, num_tokens = clone(deployment.server, audio, protocol=protocol)
    chat = oracle(deployment.checkpoint).chat
    found = chat.speaker.decode_prompt(string).numpy()
    assert found.shape == (4, num_tokens)
    check_codes(found.T, *chattts_codes(chat.dvae, audio[0]))


@pytest.mark.parametrize("sample_rate", [16_000, 22_050, 44_100, 48_000, 192_000])
def test_another_rate_gives_as_many_tokens(tiny, sample_rate):
    _, num_tokens = clone(tiny.server, speech_like(2, sample_rate), sample_rate)
    assert num_tokens == 94  # (1 + 48,000 / 256) / 2


def test_a_recording_at_48_khz_gives_what_chattts_samples_once_it_is_resampled(tiny):
    audio = speech_like(2, 48_000)
    chat = oracle(tiny.checkpoint).chat
    found = chat.speaker.decode_prompt(clone(tiny.server, audio, 48_000)[0]).numpy()
    check_codes(found.T, *chattts_codes(chat.dvae, resample(audio[0], 48_000)))


SPOILED = noise(1, 24_000)
BAD_RECORDINGS = {
    "no samples": ("audio", {"audio": SPOILED[:, :0]}),
    "silence": ("audio", {"audio": SPOILED * 0}),
    "near silence": ("audio", {"audio": SPOILED * 1e-4}),
    "a constant": ("audio", {"audio": SPOILED * 0 + 0.5}),
    "half a second": ("audio", {"audio": SPOILED[:, :12_000]}),
    "a sample too few": ("audio", {"audio": SPOILED[:, 1:]}),
    "a sample too many": ("audio", {"audio": noise(1, 30 * 24_000 + 1)}),
    "a minute": ("audio", {"audio": noise(1, 61 * 24_000)}),
    "NaN": ("audio", {"audio": np.where(np.arange(24_000) == 99, np.float32(np.nan), SPOILED)}),
    "infinity": ("audio", {"audio": np.where(np.arange(24_000) == 99, np.float32(-np.inf), SPOILED)}),
    "huge values": ("audio", {"audio": SPOILED * np.float32(1e38)}),
    "16-bit integers as floats": ("audio", {"audio": SPOILED * 32_767}),
    "16-bit integers": ("audio", {"audio": (SPOILED * 32_767).astype(np.int16)}),
    "float64": ("audio", {"audio": SPOILED.astype(np.float64)}),
    "a string": ("audio", {"audio": scalar("recording.wav")}),
    "two channels": ("audio", {"audio": noise(1, 2, 24_000)}),
    "interleaved channels": ("audio", {"audio": noise(1, 24_000, 2)}),
    "two recordings": ("audio", {"audio": noise(2, 24_000)}),
    "without its batch dimension": ("audio", {"audio": SPOILED[0]}),
    "8 kHz": ("sample_rate", {"sample_rate": rate(8_000)}),
    "no rate": ("sample_rate", {"sample_rate": rate(0)}),
    "a negative rate": ("sample_rate", {"sample_rate": rate(-24_000)}),
    "1 MHz": ("sample_rate", {"sample_rate": rate(1_000_000)}),
    "another type of rate": ("sample_rate", {"sample_rate": np.array([[24_000]], np.float32)}),
    "two rates": ("sample_rate", {"sample_rate": np.array([[24_000, 24_000]], np.int32)}),
}


@pytest.mark.parametrize("protocol", LIBRARIES)
@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_a_bad_recording_is_refused_by_name(tiny, kind, protocol):
    name, bad = BAD_RECORDINGS[kind]
    with pytest.raises(InferenceServerException) as caught:
        infer(protocol, tiny.server, "voice_encoder", **{"audio": SPOILED, "sample_rate": rate(24_000), **bad})
    assert caught.value.status() == BAD_STATUS[protocol], caught.value
    assert f"input '{name}'" in caught.value.message()


@pytest.mark.parametrize("missing", ["audio", "sample_rate"])
def test_a_missing_input_is_refused_by_name(tiny, missing):
    inputs = {"audio": SPOILED, "sample_rate": rate(24_000)}
    del inputs[missing]
    with pytest.raises(InferenceServerException, match=rf"missing required input\(s\) \['{missing}'\]") as caught:
        infer("grpc", tiny.server, "voice_encoder", **inputs)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_after_bad_recordings_a_good_one_is_cloned(tiny):
    before = clone(tiny.server, speech_like(1))
    for _, bad in BAD_RECORDINGS.values():
        with pytest.raises(InferenceServerException):
            infer("grpc", tiny.server, "voice_encoder", **{"audio": SPOILED, "sample_rate": rate(24_000), **bad})
    assert clone(tiny.server, speech_like(1)) == before


def test_a_recording_may_come_as_json_alone(tiny):
    """As curl sends it to Triton's `generate`."""
    body = json.dumps({"audio": SPOILED[0].tolist(), "sample_rate": 24_000}).encode()
    with urllib.request.urlopen(f"http://{tiny.server.http_url}/v2/models/voice_encoder/generate", body) as answer:
        assert json.load(answer)["speaker_sample"] == clone(tiny.server, SPOILED)[0]
