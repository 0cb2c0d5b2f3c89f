"""Voice cloning: a reference recording becomes a `speaker_sample` string; see config.pbtxt for its tensors."""

import numpy as np
import triton_python_backend_utils as pb_utils

from chattts_serving.triton import io as triton_io
from chattts_serving.voice.voice_encoder import speaker_sample


class TritonPythonModel:
    """Python backend model: audio, sample_rate -> speaker_sample, num_tokens; calls dvae_encoder."""

    def execute(self, requests):
        """Answer each request by itself, whatever happens to the others."""
        return [triton_io.answer(pb_utils, lambda request=request: _clone(request)) for request in requests]


def _clone(request):
    (audio,) = triton_io.read_array(request, "audio")
    sample_rate = triton_io.read_array(request, "sample_rate").item()
    text, num_tokens = speaker_sample(audio, sample_rate, _encode)
    return {"speaker_sample": text, "num_tokens": np.array([num_tokens], np.int32)}


def _encode(samples):
    inputs = {"audio": samples, "num_samples": np.array([len(samples)], np.int32)}
    outputs = triton_io.call_model(pb_utils, "dvae_encoder", inputs, ["codes", "num_tokens"])
    return outputs["codes"][: outputs["num_tokens"].item()]
