"""The GPT of ChatTTS; see config.pbtxt. All logic is in chattts_serving.triton.decoder."""

import logging
from pathlib import Path

import triton_python_backend_utils as pb_utils

from chattts_serving.triton import io as triton_io
from chattts_serving.triton.config import DecoderConfig
from chattts_serving.triton.decoder import Decoder
from chattts_serving.triton.device import device_of
from chattts_serving.triton.garbage import keep_what_is_loaded
from chattts_serving.triton.metrics import Metrics
from chattts_serving.triton.reports import EngineReports


class TritonPythonModel:
    """Python backend model: a stream's next window of hidden states; answers later, from the engine's thread."""

    def initialize(self, args):
        """Load the model and start the engine."""
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        folder = Path(args["model_repository"]) / args["model_version"]
        self._metrics = Metrics(pb_utils)
        config = DecoderConfig.from_triton(args["model_config"])
        self._decoder = Decoder(folder, config, device_of(args), EngineReports(self._metrics))
        keep_what_is_loaded()

    def execute(self, requests):
        """Hand the requests to the engine and return at once."""
        for request in requests:
            self._submit(request)

    def finalize(self):
        """Stop the engine."""
        self._decoder.close()
        self._metrics.close()

    def _submit(self, request):
        sender = request.get_response_sender()
        wanted = set(request.requested_output_names())

        def reply(outcome):
            def outputs():
                if isinstance(outcome, Exception):
                    raise outcome
                return {name: value for name, value in outcome.items() if name in wanted}

            triton_io.send_last(pb_utils, sender, triton_io.answer(pb_utils, outputs))

        try:
            self._start(request, reply)
        except Exception as error:
            reply(error)

    def _start(self, request, reply):
        given = {tensor.name() for tensor in request.inputs()}
        stream_id = triton_io.read_text(request, "stream_id")
        if "generation" in given:
            generation = triton_io.read_text(request, "generation")
            speaker = triton_io.read_array(request, "speaker_embedding")
            reading = triton_io.read_text(request, "reading")
            about = {name: triton_io.read_text(request, name) for name in ("reader", "traceparent") if name in given}
            self._decoder.open(stream_id, generation, speaker[0], reading, reply, **about)
        elif "expected" in given:
            self._decoder.wait(stream_id, triton_io.read_text(request, "expected"), reply)
        elif "more" in given:
            self._decoder.extend(stream_id, triton_io.read_text(request, "more"), reply)
        elif "cancel" in given:
            self._decoder.cancel(stream_id, reply)
        else:
            self._decoder.read(stream_id, reply)
