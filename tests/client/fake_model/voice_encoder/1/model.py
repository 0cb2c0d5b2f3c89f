"""A stand-in for `voice_encoder`: the speaker sample tells what arrived. It refuses a sample rate below 8,000 Hz."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Triton's entry point."""

    def execute(self, requests):
        """Answer at once."""
        return [_answer(request) for request in requests]


def _answer(request):
    audio, rate = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("audio", "sample_rate"))
    if rate.item() < 8_000:
        message = f"input 'sample_rate' is {rate.item()}; allowed is 8000 or more"
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG))
    seen = {"shapes": [audio.shape, rate.shape], "sum": float(audio.sum(dtype=np.float64)), "sample_rate": rate.item()}
    outputs = {
        "speaker_sample": np.array([[json.dumps(seen).encode()]], object),
        "num_tokens": np.array([[audio.shape[1] // 512]], np.int32),
    }
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
