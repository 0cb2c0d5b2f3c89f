"""A server's file of words and how to say them, from the launcher's flag to what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from chattts_serving.launcher.running import RunningServer, running_server
from tests.conftest import ROOT
from tests.frontend_assets import make_frontend_assets


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The text frontend alone."""
    folder: Path = tmp_path_factory.mktemp("lexicon")
    shutil.copytree(
        ROOT / "model_repository" / "text_frontend", folder / "models" / "text_frontend", dirs_exist_ok=True
    )
    make_frontend_assets(folder / "models" / "text_frontend" / "1")
    voices = {"default": {"description": "Sampled.", "seed": 7}}
    (folder / "models" / "text_frontend" / "1" / "voices.json").write_text(json.dumps(voices))
    lexicon = folder / "our words; (1).json"
    lexicon.write_text('{"nginx": "engine x", "重庆": "虫庆"}', encoding="utf-8")
    flags = [f"--lexicon={lexicon}"]
    with running_server(folder / "models", log_path=folder / "log", launcher_flags=flags) as running:
        yield running


def said(server: RunningServer, text: str, **inputs: str) -> list[str]:
    tensors = []
    for name, value in {"text": text, **inputs}.items():
        tensors.append(tritonclient.http.InferInput(name, [1, 1], "BYTES"))
        tensors[-1].set_data_from_numpy(np.array([[value.encode()]], np.object_))
    with tritonclient.http.InferenceServerClient(server.http_url) as client:
        result = client.infer("text_frontend", tensors, outputs=[tritonclient.http.InferRequestedOutput("generation")])
    texts: list[str] = json.loads(result.as_numpy("generation").item())["texts"]
    return texts


def test_words_of_the_servers_file_are_said_as_it_says(server):
    assert said(server, "We run nginx.\n我在重庆。") == ["We run engine x.", "我在虫庆。"]


def test_words_of_a_request_go_before_them(server):
    assert said(server, "nginx, SQL", lexicon='{"nginx": "N", "SQL": "sequel"}') == ["N, sequel"]
    with pytest.raises(InferenceServerException, match=r"input 'lexicon' is \{'x': 3\}; allowed is 1 to 200"):
        said(server, "nginx", lexicon='{"x": 3}')
