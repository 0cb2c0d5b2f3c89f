"""The live server against the ChatTTS package on the same checkpoint, sentence by sentence, at near-zero temperature.

Both passes, both languages, both protocols; tokens must be equal, hidden states and audio within 1e-4.
"""

import functools
import secrets

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from chattts_client import TTSClient
from tritonclient.utils import np_to_triton_dtype

from chattts_serving.speech.windows import Chunk, ReadingPlan
from tests.oracle import NEAR_ZERO, Oracle

TOLERANCE = 1e-4
NUM_TOKENS = 64
REFINED_TOKENS = 16
SENTENCES = {
    "en": "The quick brown fox jumps over the lazy dog, and nobody minds.",
    "zh": "今天天气真不错，我们一起去公园散步吧。",
}
OPTIONS = {
    "temperature": NEAR_ZERO,
    "refine_temperature": NEAR_ZERO,
    "min_new_tokens": NUM_TOKENS,
    "max_new_tokens": NUM_TOKENS,
    "refine_max_new_tokens": REFINED_TOKENS,
}
# The demo checkpoint knows no Chinese: it may refine it to nothing, which ChatTTS tries again for ever near zero.
CASES = [("tiny", "en"), ("tiny", "zh"), ("demo", "en"), ("official", "en"), ("official", "zh")]
CLIENTS = {"grpc": tritonclient.grpc, "http": tritonclient.http}


@functools.cache
def oracle(checkpoint):
    return Oracle(checkpoint)


@functools.cache
def spoken_by_chattts(checkpoint, language, refine):
    """ChatTTS's voice and speech; computed once for both protocols."""
    speaker = oracle(checkpoint).random_speaker(seed=7)
    speech = oracle(checkpoint).speak(
        SENTENCES[language],
        speaker,
        refine=refine,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        refine_max_new_tokens=REFINED_TOKENS,
    )
    return speaker, speech


@pytest.fixture(
    params=[pytest.param(case, marks=[pytest.mark.slow] * (case[0] == "official"), id="-".join(case)) for case in CASES]
)
def case(request):
    """A deployment and the language that it is asked to speak."""
    checkpoint, language = request.param
    return request.getfixturevalue(checkpoint), language


def infer(protocol, server, model, inputs, outputs):
    """One request to `model` by tritonclient; `inputs` are name -> array."""
    library = CLIENTS[protocol]
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with library.InferenceServerClient(url) as triton:
        tensors = []
        for name, array in inputs.items():
            tensors.append(library.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
            tensors[-1].set_data_from_numpy(array)
        result = triton.infer(model, tensors, outputs=[library.InferRequestedOutput(name) for name in outputs])
        return {name: result.as_numpy(name) for name in outputs}


def decode(protocol, server, text, speaker, refine):
    """Codes and hidden states of one sentence, from the first two models of the pipeline."""
    values = {"text": text, "speaker": speaker, "skip_refine": not refine, **OPTIONS}
    inputs = {}
    for name, value in values.items():
        dtype = {bool: bool, int: np.int32, float: np.float32}.get(type(value), np.object_)
        inputs[name] = np.array([[value.encode() if isinstance(value, str) else value]], dtype)
    front = infer(protocol, server, "text_frontend", inputs, ["generation", "speaker_embedding"])
    front["stream_id"] = np.array([[secrets.token_hex(8).encode()]], np.object_)
    front["reading"] = np.array([[ReadingPlan((NUM_TOKENS,), NUM_TOKENS).to_json().encode()]], np.object_)
    return infer(protocol, server, "gpt_decoder", front, ["codes", "hidden", "mask", "chunk"])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
def test_codes_and_hidden_states_are_those_of_chattts(case, refine, protocol):
    deployment, language = case
    speaker, expected = spoken_by_chattts(deployment.checkpoint, language, refine)
    ours = decode(protocol, deployment.server, SENTENCES[language], speaker, refine)
    assert Chunk.from_json(ours["chunk"].item().decode()).texts == (expected.text,)
    assert ours["codes"].shape == (1, NUM_TOKENS, 4)
    assert np.array_equal(ours["codes"][0], expected.codes)
    hidden = ours["hidden"][0][ours["mask"][0, :-1] == 1]
    np.testing.assert_allclose(hidden, expected.hidden, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("refine", [False, True], ids=["plain", "refined"])
def test_audio_is_that_of_chattts(case, refine, protocol):
    deployment, language = case
    speaker, expected = spoken_by_chattts(deployment.checkpoint, language, refine)
    server = deployment.server
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with TTSClient(url, protocol) as tts:
        speech = tts.synthesize(SENTENCES[language], speaker=speaker, skip_refine=not refine, **OPTIONS)
    assert speech.refined_text == expected.text
    assert speech.num_tokens == NUM_TOKENS
    assert speech.sample_rate == 24_000
    assert speech.audio.shape == expected.audio.shape
    assert np.abs(expected.audio).max() > 0.01  # noise, but no silence
    np.testing.assert_allclose(speech.audio, expected.audio, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_sentence_that_ends_by_itself_ends_where_chattts_ends_it(tiny, seed):
    """The end token's own hidden state is not spoken. What ends before 8 tokens would be drawn again, here alone."""
    limits = {"min_new_tokens": 8, "max_new_tokens": 400, "refine_max_new_tokens": 200}
    speaker = oracle(tiny.checkpoint).random_speaker(seed)
    expected = oracle(tiny.checkpoint).speak(SENTENCES["en"], speaker, refine=True, **limits)
    assert len(expected.codes) < 400
    with TTSClient(tiny.server.grpc_url) as tts:
        speech = tts.synthesize(SENTENCES["en"], speaker=speaker, **OPTIONS | limits)
    assert speech.refined_text == expected.text
    assert speech.num_tokens == len(expected.codes)
    np.testing.assert_allclose(speech.audio, expected.audio, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("with_speaker", [False, True], ids=["sample alone", "sample and speaker"])
def test_a_cloned_voice_speaks_as_in_chattts(tiny, with_speaker):
    """A speaker sample and its transcript go into the prompt where ChatTTS puts them."""
    chattts = oracle(tiny.checkpoint)
    speaker, reference = spoken_by_chattts(tiny.checkpoint, "en", False)
    sample = chattts.chat.sample_audio_speaker(reference.audio)
    expected = chattts.speak(
        SENTENCES["zh"],
        speaker if with_speaker else None,
        refine=False,
        min_new_tokens=NUM_TOKENS,
        max_new_tokens=NUM_TOKENS,
        refine_max_new_tokens=1,
        speaker_sample=sample,
        sample_text=SENTENCES["en"],
    )
    with TTSClient(tiny.server.grpc_url) as tts:
        speech = tts.synthesize(
            SENTENCES["zh"],
            speaker=speaker if with_speaker else None,
            speaker_sample=sample,
            sample_text=SENTENCES["en"],
            skip_refine=True,
            **OPTIONS,
        )
    np.testing.assert_allclose(speech.audio, expected.audio, atol=TOLERANCE, rtol=0)
