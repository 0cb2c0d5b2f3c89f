"""Bad requests to the live server: each is refused with INVALID_ARGUMENT and the input's name, and harms nobody."""

import lzma
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pybase16384
import pytest
import requests
import tritonclient.grpc
import tritonclient.http
from chattts_client import InvalidInputError, TTSClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from chattts_serving.speech.windows import ReadingPlan


def text(value):
    return np.array([[value if isinstance(value, bytes) else value.encode()]], np.object_)


def integer(value):
    return np.array([[value]], np.int32)


def number(value):
    return np.array([[value]], np.float32)


def packed(payload):
    """`payload` as the raw LZMA2 in base16384 of ChatTTS's speaker strings."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    return text(pybase16384.encode_to_string(lzma.compress(payload, lzma.FORMAT_RAW, filters=filters)))


def packed_sample(shape, payload):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    data = np.array(shape, "<u2").tobytes() + lzma.compress(payload, lzma.FORMAT_RAW, filters=filters)
    return text(pybase16384.encode_to_string(data))


BAD = [
    ("text", text("")),
    ("text", text("   \n\t ")),
    ("text", text("。，！？…—")),
    ("text", text("?!.,;:-()")),
    ("text", text("🙂🙂🙂")),
    ("text", text("x" * 20_001)),
    ("text", text("hello\0there")),
    ("text", text(b"\xed\xa0\x80 lone surrogate")),
    ("text", text(b"\xff\xfe not UTF-8")),
    ("text", text("hello [laugh_9] there")),
    ("text", text("hello [Ebreak] there")),
    ("text", np.array([["one", "two"]], np.object_)),
    ("text", np.array(["flat"], np.object_)),
    ("text", number(1.0)),
    ("speaker", text("Bob")),
    ("speaker", text("not base16384 at all")),
    ("speaker", text("\u4e00" * 8_193)),
    ("speaker", text("蘁淰敝")),
    ("speaker", packed(b"\0" * 100_000_000)),  # a bomb: 100 MB out of 15 kB
    ("speaker", packed(np.zeros(3, np.float16).tobytes())),
    ("speaker", packed(np.full(64, np.nan, np.float16).tobytes())),
    ("speaker", packed(np.zeros(64, np.float16).tobytes())),
    ("speaker", text("hello\0")),
    ("speaker_sample", text("nonsense")),
    ("speaker_sample", packed_sample((4, 65_535), b"\0" * 4 * 65_535 * 2)),
    ("speaker_sample", packed_sample((3, 2), np.zeros(6, "<u2").tobytes())),
    ("speaker_sample", packed_sample((4, 2), np.full(8, 60_000, "<u2").tobytes())),
    ("sample_text", text("x" * 1_001)),
    ("seed", np.array([[-1]], np.int64)),
    ("seed", np.array([[np.iinfo(np.int64).min]], np.int64)),
    ("seed", text("5")),
    ("temperature", number(0)),
    ("temperature", number(-1)),
    ("temperature", number(np.nan)),
    ("temperature", number(np.inf)),
    ("temperature", np.array([[0.3]], np.float64)),
    ("temperature", np.array([[0.3, 0.4]], np.float32)),
    ("refine_temperature", number(-np.inf)),
    ("top_p", number(0)),
    ("top_p", number(1.5)),
    ("top_p", number(np.nan)),
    ("top_k", integer(0)),
    ("top_k", integer(627)),
    ("top_k", integer(np.iinfo(np.int32).min)),
    ("repetition_penalty", number(0)),
    ("repetition_penalty", number(np.nan)),
    ("min_new_tokens", integer(-5)),
    ("min_new_tokens", integer(2_049)),
    ("max_new_tokens", integer(0)),
    ("max_new_tokens", integer(np.iinfo(np.int32).max)),
    ("refine_max_new_tokens", integer(385)),
    ("skip_refine", integer(1)),
    ("refine_only", integer(1)),
    ("prompt", text("[speed_99]")),
    ("prompt", text("x" * 1_001)),
    ("refine_prompt", text("[oral_")),
    ("language", text("fr")),
    ("deadline_ms", integer(0)),
    ("deadline_ms", integer(-1)),
]


def infer(library, url, inputs):
    tensors = []
    for name, array in inputs.items():
        tensors.append(library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    with library.InferenceServerClient(url) as triton:
        return triton.infer("chattts", tensors)


@pytest.mark.parametrize("number_of_case", range(len(BAD)))
def test_a_bad_request_is_refused_by_name(tiny, number_of_case):
    name, array = BAD[number_of_case]
    inputs = {"text": text("hello"), name: array}
    for library, url, status in (
        (tritonclient.grpc, tiny.server.grpc_url, "StatusCode.INVALID_ARGUMENT"),
        (tritonclient.http, tiny.server.http_url, "400"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            infer(library, url, inputs)
        assert caught.value.status() == status, caught.value
        assert f"'{name}'" in caught.value.message()
    with TTSClient(tiny.server.grpc_url) as client:
        assert client.synthesize("Still here.", skip_refine=True, max_new_tokens=4).audio.size


def test_a_refusal_shows_the_characters_that_were_sent(tiny):
    inputs = {"text": text("hello"), "speaker": text("默认 é 🙂")}
    for library, url in ((tritonclient.grpc, tiny.server.grpc_url), (tritonclient.http, tiny.server.http_url)):
        with pytest.raises(
            InferenceServerException, match="'speaker' is '默认 é 🙂'; allowed is a voice of this server"
        ):
            infer(library, url, inputs)
    for protocol in ("grpc", "http"):
        url = tiny.server.grpc_url if protocol == "grpc" else tiny.server.http_url
        with TTSClient(url, protocol) as client, pytest.raises(InvalidInputError, match="'speaker' is '默认 é 🙂'"):
            list(client.stream("hello", speaker="默认 é 🙂"))


def test_a_missing_text_and_an_unknown_input_are_refused_by_name(tiny):
    for inputs, name in (
        ({"seed": np.array([[1]], np.int64)}, "text"),
        ({"text": text("hi"), "volume": number(1)}, "volume"),
    ):
        with pytest.raises(InferenceServerException, match=name) as caught:
            infer(tritonclient.grpc, tiny.server.grpc_url, inputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_two_texts_in_one_request_are_refused(tiny):
    """Their answers would differ in length; Triton itself says so, naming the model."""
    with pytest.raises(InferenceServerException, match="batch-size must be <= 1 for 'chattts'") as caught:
        infer(tritonclient.grpc, tiny.server.grpc_url, {"text": np.array([["one"], ["two"]], np.object_)})
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_bad_requests_beside_good_ones_harm_nobody(tiny):
    """All at once, in every order that threads make of it."""

    def bad(case):
        name, array = case
        with pytest.raises(InferenceServerException):
            infer(tritonclient.grpc, tiny.server.grpc_url, {"text": text("hello"), name: array})

    def good(seed):
        with TTSClient(tiny.server.grpc_url) as client:
            return client.synthesize("Still here.", seed=seed, skip_refine=True, max_new_tokens=10).audio

    expected = good(1)
    with ThreadPoolExecutor(16) as pool:
        refused = pool.map(bad, BAD)
        answered = list(pool.map(good, [1] * 20))
        list(refused)
    for audio in answered:
        np.testing.assert_allclose(audio, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("junk", [b"", b"{}", b"null", b'{"prompts": [[1]]}', b"\xff"])
def test_gpt_decoder_refuses_what_text_frontend_never_writes(tiny, junk):
    inputs = {"stream_id": text("mine"), "generation": text(junk), "speaker_embedding": np.ones((1, 3), np.float32)}
    inputs["reading"] = text(ReadingPlan((16,), 16).to_json())
    tensors = []
    for name, array in inputs.items():
        tensors.append(tritonclient.grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        tensors[-1].set_data_from_numpy(array)
    with tritonclient.grpc.InferenceServerClient(tiny.server.grpc_url) as triton:
        with pytest.raises(InferenceServerException, match="generation") as caught:
            triton.infer("gpt_decoder", tensors)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert triton.is_model_ready("gpt_decoder")


@pytest.mark.parametrize("width", [32, 63, 65, 128])  # the tiny checkpoint's is 64
def test_hidden_states_of_another_width_are_refused_by_triton(tiny, width):
    """Half of it or twice would fit the graph's reshape; the frames would be others."""
    tensors = []
    for name, shape in (("hidden", (1, 16, width)), ("mask", (1, 17)), ("state", (1, 1))):
        array = np.ones(shape, np.float32)
        tensors.append(tritonclient.grpc.InferInput(name, array.shape, "FP32"))
        tensors[-1].set_data_from_numpy(array)
    with tritonclient.grpc.InferenceServerClient(tiny.server.grpc_url) as triton:
        with pytest.raises(InferenceServerException, match=r"unexpected shape for input 'hidden'") as caught:
            triton.infer("dvae_decoder", tensors)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert triton.is_model_ready("dvae_decoder")


def test_what_is_not_spoken_is_named_in_whole_answers_and_in_streams(tiny):
    request = {"text": "The word Привет is Russian.", "skip_refine": True, "max_new_tokens": 5}
    with TTSClient(tiny.server.grpc_url) as client:
        whole, chunks = client.synthesize(**request), list(client.stream(**request))
    with TTSClient(tiny.server.http_url, protocol="http") as client:
        over_http = client.synthesize(**request)
    warnings = {one.warning for one in (whole, over_http, *chunks)}
    assert warnings == {"not spoken, as the model speaks Chinese and English: 6 letters (Cyrillic)"}


@pytest.mark.parametrize("model", ["chattts", "chattts_stream"])
def test_a_misspelt_input_of_generate_is_refused_by_name(tiny, model):
    body = {"text": "Hello there.", "skip_refine": True, "max_new_tokens": 5, "tempreature": 0.5}
    endpoint = "generate_stream" if model == "chattts_stream" else "generate"
    answer = requests.post(f"http://{tiny.server.http_url}/v2/models/{model}/{endpoint}", json=body, timeout=60)
    assert "input 'tempreature' is 0.5; allowed is nothing: there is no such input" in answer.text
    assert answer.status_code == 400


def test_a_passed_deadline_is_no_fault_of_the_callers(tiny):
    values = [("text", "BYTES", "Hello there. " * 50), ("deadline_ms", "INT32", 1)]
    body = {"inputs": [{"name": name, "shape": [1, 1], "datatype": kind, "data": [one]} for name, kind, one in values]}
    answer = requests.post(f"http://{tiny.server.http_url}/v2/models/chattts/infer", json=body, timeout=60)
    assert answer.json()["error"] == "in ensemble 'chattts', deadline exceeded before the audio was complete"
    assert answer.status_code == 503
