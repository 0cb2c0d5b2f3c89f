"""A stand-in for the ensemble `chattts`: same contract, and it tells what arrived.

`refined_text` is a JSON object {input name: {"datatype", "shape", "value"}} of every input that arrived. The audio is
a tone of SAMPLES_PER_CHARACTER samples per character of the text. Texts with a meaning of their own:

    "fail CODE MESSAGE"   the request is answered with that TritonError code and message
    "hang SECONDS"        the answer comes that much later, whatever the deadline
    "silence"             an answer without a single sample
"""

import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils

SAMPLE_RATE = 24_000  # Hz
SAMPLES_PER_CHARACTER = 512
DEFAULT_SEED = 4_294_967_311  # does not fit 32 bits


class TritonPythonModel:
    """Triton's entry point."""

    def execute(self, requests):
        """Answer each request, some of them later, as the real decoder does."""
        for request in requests:
            seen = {tensor.name(): _described(tensor.as_numpy()) for tensor in request.inputs()}
            delay, response = _planned(seen)
            timer = threading.Timer(delay, _send, [request.get_response_sender(), response])
            timer.daemon = True
            timer.start()


def _send(sender, response):
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _described(array):
    value = array.reshape(-1)[0]
    value = value.decode("utf-8") if isinstance(value, bytes) else value.item()
    return {"datatype": str(array.dtype), "shape": array.shape, "value": value}


def _planned(seen):
    """Seconds to wait, and the response."""
    text = seen["text"]["value"]
    command, _, rest = text.partition(" ")
    if command == "fail":
        code, message = rest.split(" ", 1)
        error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
        return 0.0, pb_utils.InferenceResponse(error=error)
    return (float(rest) if command == "hang" else 0.0), _speech(text, seen)


def _speech(text, seen):
    num_tokens = 0 if text == "silence" else len(text)
    times = np.arange(num_tokens * SAMPLES_PER_CHARACTER) / SAMPLE_RATE
    outputs = {
        "audio": (0.5 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)[None],
        "sample_rate": np.array([[SAMPLE_RATE]], np.int32),
        "used_seed": np.array([[seen["seed"]["value"] if "seed" in seen else DEFAULT_SEED]], np.int64),
        "refined_text": np.array([[json.dumps(seen).encode()]], object),
        "num_tokens": np.array([[num_tokens]], np.int32),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
