"""A stand-in for `chattts` that keeps a record of its requests: each text on a line of `taken` in its own folder.

The answer, that of `tests/client/fake_synthesis.py`, comes 0.1 s later. The tests copy this file into a repository.
"""

import sys
import threading
from pathlib import Path

import triton_python_backend_utils as pb_utils

from chattts_serving.launcher.tritonserver import ROOT

sys.path.append(str(ROOT))
from tests.client.fake_synthesis import described, whole

ANSWER_S = 0.1


class TritonPythonModel:
    """Triton's entry point."""

    def initialize(self, args):
        """Open the record."""
        self._record = (Path(args["model_repository"]) / "taken").open("a", buffering=1, encoding="utf-8")

    def execute(self, requests):
        """Record each request and answer it later, while the next ones come."""
        for request in requests:
            seen = {tensor.name(): described(tensor.as_numpy()) for tensor in request.inputs()}
            self._record.write(f"{seen['text']['value']}\n")
            timer = threading.Timer(ANSWER_S, _answer, [request.get_response_sender(), seen])
            timer.daemon = True
            timer.start()


def _answer(sender, seen):
    outputs = [pb_utils.Tensor(name, array) for name, array in whole(seen).items()]
    sender.send(pb_utils.InferenceResponse(outputs), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
