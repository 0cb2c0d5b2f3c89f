"""Answers, without a server."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chattts_client import InvalidInputError, Sentence, ServerError, joined
from chattts_client.speech import chunk_from, speech_from
from chattts_client.voices import voices_from

from tests.client.fake_synthesis import chunks, described, whole

OUTPUTS = ["audio", "sample_rate", "used_seed", "used_speaker", "warning", "refined_text", "num_tokens", "sentences"]
SEEN = {"text": described(np.array([[b"a\nb"]], dtype=object))}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_missing_output_is_a_server_error(name):
    outputs = {key: array for key, array in whole(SEEN).items() if key != name}
    with pytest.raises(ServerError, match=f"the answer has no output '{name}'"):
        speech_from(outputs.get)


@pytest.mark.parametrize("name", [*OUTPUTS, "chunk_index", "is_final"])
def test_a_chunks_missing_output_is_a_server_error(name):
    outputs = {key: array for key, array in chunks(SEEN)[0].items() if key != name}
    with pytest.raises(ServerError, match=f"the answer has no output '{name}'"):
        chunk_from(outputs.get)


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name != "audio"])
def test_an_output_of_several_elements_is_a_server_error(name):
    with pytest.raises(ServerError, match=f"output '{name}' has 0 elements"):
        speech_from((whole(SEEN) | {name: np.zeros((1, 0))}).get)


@pytest.mark.parametrize("text", ["", "5", "[5]", '[{"text": "a"}]', '[{"text": "a", "more": 1}]'])
def test_sentences_that_are_not_the_contracts_are_a_server_error(text):
    outputs = whole(SEEN) | {"sentences": np.array([[text.encode()]], dtype=object)}
    with pytest.raises(ServerError, match="output 'sentences' is not the contract's list"):
        speech_from(outputs.get)


def test_a_server_that_knows_no_words_is_one_without_any():
    outputs = {name: array for name, array in whole(SEEN).items() if name != "words"}
    assert speech_from(outputs.get).words == ()


def test_joined_chunks_have_the_texts_that_begin_and_the_sentences_that_end_in_them():
    def chunk(text, *sentences):
        entries = [{"text": name, "start": 0, "end": 1, "num_tokens": 2, "finish_reason": "stop"} for name in sentences]
        texts = {"refined_text": text, "sentences": json.dumps(entries)}
        outputs = chunks(SEEN)[0] | {name: np.array([[value.encode()]], object) for name, value in texts.items()}
        return chunk_from(outputs.get)

    speech = joined([chunk("a"), chunk(""), chunk("b\nc", "a", "b"), chunk("", "c")])
    assert speech.refined_text == "a\nb\nc"
    assert speech.sentences == tuple(Sentence(name, 0, 1, 2, "stop") for name in "abc")
    assert speech.num_tokens == 4 * 3
    assert len(speech.audio) == 4 * 3 * 512


def test_no_chunks_are_refused():
    with pytest.raises(InvalidInputError, match="input 'chunks' is"):
        joined([])


@pytest.mark.parametrize("text", ["", "{", "5", '{"x": {}}', '{"x": 5}'])
def test_voices_that_are_not_the_contracts_are_a_server_error(text):
    with pytest.raises(ServerError, match="the list of voices is"):
        voices_from(text)
