"""model_repository/chattts_stream/1/model.py, run without a server: its streams are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chattts_serving.speech import session
from chattts_serving.triton import pieces
from chattts_serving.triton.pieces import OpenText
from chattts_serving.variables import LEXICON
from tests import fake_pb_utils as pb

MODEL = Path(__file__).parents[2] / "model_repository" / "chattts_stream" / "1" / "model.py"


@pytest.mark.parametrize(("version", "seconds"), [(None, [0.2]), ("2.51.0", [0.2]), ("2.59.0", [0]), ("2.71.0", [0])])
def test_a_cancelled_stream_ends_later_where_triton_could_crash_else(
    version: str | None, seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    async def stream_nothing(*_: object) -> None:
        """As for a caller that has gone."""

    async def sleep(seconds: float) -> None:
        assert not request.get_response_sender().final
        waited.append(seconds)

    monkeypatch.delenv("TRITON_SERVER_VERSION", raising=False)
    if version:
        monkeypatch.setenv("TRITON_SERVER_VERSION", version)
    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize({"model_config": "{}"})
    request = pb.InferenceRequest([], ["audio"])
    request.get_response_sender().cancelled = True
    monkeypatch.setattr(session, "stream", stream_nothing)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    asyncio.run(model.execute([request]))
    model.finalize()
    assert waited == seconds
    assert request.get_response_sender().final


def test_a_chunk_has_what_its_caller_asked_for_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = {
        "audio": np.zeros(512, np.float32),
        "num_tokens": np.array([2], np.int32),
        "is_final": np.array([True]),
        "used_speaker": "a voice",
    }

    async def stream_one(
        _call: object, _plan: object, _inputs: object, send: Callable[..., None], _gone: object
    ) -> None:
        send(outputs)

    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize({"model_config": "{}"})
    request = pb.InferenceRequest([], ["is_final", "audio"])
    monkeypatch.setattr(session, "stream", stream_one)
    asyncio.run(model.execute([request]))
    model.finalize()
    (response,) = request.get_response_sender().responses
    assert [tensor.name() for tensor in response.output_tensors()] == ["audio", "is_final"]


def test_a_text_in_pieces_has_the_words_of_the_servers_lexicon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    async def stream_one(
        _models: object, _plan: object, text: OpenText, send: Callable[..., None], _gone: object
    ) -> None:
        said.extend(sentence.text for sentence in text.take().sentences)
        send({"is_final": np.array([True])})

    words = tmp_path / "words.json"
    words.write_text('{"nginx": "engine x", "SQL": "S Q L"}', encoding="utf-8")
    monkeypatch.setenv(LEXICON, str(words))
    model = pb.load_model(MODEL).TritonPythonModel()
    model.initialize({"model_config": "{}"})
    monkeypatch.setattr(pieces, "stream", stream_one)
    inputs = {
        "text_id": "a",
        "part": "first",
        "text": "We run nginx and SQL.\nAnd then more of it",
        "lexicon": '{"SQL": "sequel"}',
    }
    tensors = [pb.Tensor(name, np.array([[value.encode()]], np.object_)) for name, value in inputs.items()]
    asyncio.run(model.execute([pb.InferenceRequest(tensors, ["is_final"])]))
    model.finalize()
    assert said == ["We run engine x and sequel."]
