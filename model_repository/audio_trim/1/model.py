"""Cuts padded waveforms to the audio in them; see config.pbtxt."""

import numpy as np
import triton_python_backend_utils as pb_utils

from chattts_serving import triton_io
from chattts_serving.audio import SAMPLE_RATE
from chattts_serving.errors import InvalidInputError


class TritonPythonModel:
    """Python backend model: waveform [1, N], num_samples [1, 1] -> audio [1, num_samples], sample_rate [1, 1]."""

    def execute(self, requests):
        """Answer each request with the first `num_samples` samples of its waveform."""
        return [triton_io.answer(pb_utils, lambda request=request: _trim(request)) for request in requests]


def _trim(request):
    (waveform,) = triton_io.read_array(request, "waveform")
    num_samples = triton_io.read_array(request, "num_samples").item()
    if not 0 <= num_samples <= len(waveform):
        raise InvalidInputError("num_samples", num_samples, f"0 to {len(waveform)}, the length of 'waveform'")
    return {"audio": waveform[:num_samples], "sample_rate": np.array([SAMPLE_RATE], np.int32)}
