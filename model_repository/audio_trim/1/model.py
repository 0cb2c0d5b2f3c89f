"""Cuts padded waveforms to the audio in them; see config.pbtxt."""

import numpy as np
import triton_python_backend_utils as pb_utils

from chattts_serving.audio import SAMPLE_RATE


class TritonPythonModel:
    """Python backend model: waveform [rows, N], num_samples [rows, 1] -> audio [rows, num_samples], sample_rate."""

    def execute(self, requests):
        """Answer each request with the first `num_samples` samples of its waveform."""
        return [self._trim(request) for request in requests]

    def _trim(self, request):
        waveform = pb_utils.get_input_tensor_by_name(request, "waveform").as_numpy()
        num_samples = pb_utils.get_input_tensor_by_name(request, "num_samples").as_numpy()
        length = int(num_samples[0, 0])
        if not 0 <= length <= waveform.shape[1] or (num_samples != length).any():
            return pb_utils.InferenceResponse(
                error=pb_utils.TritonError(
                    f"input 'num_samples' is {num_samples.ravel().tolist()}; allowed is one number from 0 to "
                    f"{waveform.shape[1]}, the length of 'waveform', for all rows of a request",
                    pb_utils.TritonError.INVALID_ARG,
                )
            )
        rates = np.full((len(waveform), 1), SAMPLE_RATE, np.int32)
        audio = np.ascontiguousarray(waveform[:, :length])
        return pb_utils.InferenceResponse([pb_utils.Tensor("audio", audio), pb_utils.Tensor("sample_rate", rates)])
