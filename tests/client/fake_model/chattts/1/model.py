"""A stand-in for the ensemble `chattts`: same contract, and it tells what arrived (`tests/client/fake_synthesis.py`).

Texts with a meaning of their own:

    "fail CODE MESSAGE"   the request is answered with that TritonError code and message
    "full FILE"           UNAVAILABLE until FILE is there, which the first such text makes
    "hang SECONDS"        the answer comes that much later, whatever the deadline
    "silence"             an answer without a single sample
"""

import sys
import threading

import triton_python_backend_utils as pb_utils

from chattts_serving.launcher.tritonserver import ROOT

sys.path.append(str(ROOT))
from tests.client.fake_synthesis import described, is_full, said, whole


class TritonPythonModel:
    """Triton's entry point."""

    def execute(self, requests):
        """Answer each request, some of them later, as the real decoder does."""
        for request in requests:
            seen = {tensor.name(): described(tensor.as_numpy()) for tensor in request.inputs()}
            if request.request_id():
                seen["request_id"] = request.request_id()
            delay, response = _planned(seen)
            timer = threading.Timer(delay, _send, [request.get_response_sender(), response])
            timer.daemon = True
            timer.start()


def _send(sender, response):
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _planned(seen):
    """Seconds to wait, and the response."""
    command, _, rest = said(seen).partition(" ")
    if command == "full" and is_full(rest):
        command, rest = "fail", "UNAVAILABLE overloaded; try again later"
    if command == "fail":
        code, message = rest.split(" ", 1)
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
        return 0.0, pb_utils.InferenceResponse(error=error)
    outputs = [pb_utils.Tensor(name, array) for name, array in whole(seen).items()]
    return (float(rest) if command == "hang" else 0.0), pb_utils.InferenceResponse(outputs)
