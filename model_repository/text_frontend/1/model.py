"""Text frontend: normalisation, sentences, prompts and voice; see config.pbtxt for its tensors."""

from pathlib import Path

import triton_python_backend_utils as pb_utils

from chattts_serving import triton_io
from chattts_serving.frontend import TextFrontend
from chattts_serving.request import request_from_inputs
from chattts_serving.voices import voices_from_triton


class TritonPythonModel:
    """Python backend model: a caller's inputs -> what the language model is to do, and in whose voice."""

    def initialize(self, args):
        """Load the assets that `python -m export` put beside this file, and the voices of the configuration."""
        folder = Path(args["model_repository"], args["model_version"])
        self._frontend = TextFrontend(folder, voices_from_triton(args["model_config"]))

    def execute(self, requests):
        """Answer each request by itself, whatever happens to the others."""
        return [triton_io.answer(pb_utils, lambda request=request: self._prepare(request)) for request in requests]

    def _prepare(self, request):
        synthesis = request_from_inputs(triton_io.read_scalars(request))
        generation, embedding, speaker = self._frontend.prepare(synthesis)
        return {"generation": generation.to_json(), "speaker_embedding": embedding, "used_speaker": speaker}
