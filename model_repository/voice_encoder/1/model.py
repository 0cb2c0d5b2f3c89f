"""Voice cloning: a reference recording becomes a `speaker_sample` string; see config.pbtxt for its tensors."""

from functools import partial

import numpy as np
import triton_python_backend_utils as pb_utils

from chattts_serving.triton import io as triton_io
from chattts_serving.triton.tracing import Tracer
from chattts_serving.voice.voice_encoder import speaker_sample


class TritonPythonModel:
    """Python backend model: audio, sample_rate -> speaker_sample, num_tokens; calls dvae_encoder."""

    def initialize(self, _args):
        """Make ready to trace."""
        self._tracer = Tracer()

    def execute(self, requests):
        """Answer each request by itself, whatever happens to the others."""
        return [triton_io.answer(pb_utils, partial(_clone, request, self._tracer.of(request))) for request in requests]

    def finalize(self):
        """Send what was traced."""
        self._tracer.close()


def _clone(request, trace):
    (audio,) = triton_io.read_array(request, "audio")
    sample_rate = triton_io.read_array(request, "sample_rate").item()
    text, num_tokens = speaker_sample(audio, sample_rate, partial(_encode, trace))
    return {"speaker_sample": text, "num_tokens": np.array([num_tokens], np.int32)}


def _encode(trace, samples):
    inputs = {"audio": samples, "num_samples": np.array([len(samples)], np.int32)}
    outputs = triton_io.call_model(pb_utils, "dvae_encoder", inputs, ["codes", "num_tokens"], trace=trace)
    return outputs["codes"][: outputs["num_tokens"].item()]
