"""The whole audio of a request, from the chunks of `speech_chunk`; see config.pbtxt."""

from functools import partial

import triton_python_backend_utils as pb_utils

from chattts_serving.speech import session
from chattts_serving.speech.reader import Reader
from chattts_serving.triton import io as triton_io
from chattts_serving.triton.config import ReadingConfig
from chattts_serving.triton.garbage import keep_what_is_loaded
from chattts_serving.triton.loop_thread import LoopThread
from chattts_serving.triton.metrics import Metrics
from chattts_serving.triton.reports import RequestReports
from chattts_serving.triton.tracing import Tracer


class TritonPythonModel:
    """Python backend model: generation, speaker_embedding -> audio and what it says; answers later, from a loop."""

    def initialize(self, args):
        """Start the loop that requests are worked on in."""
        self._plan = ReadingConfig.from_triton(args["model_config"]).plan("exact")
        self._loop = LoopThread(triton_io.CALLS_AT_ONCE)
        self._reader = Reader(partial(triton_io.call_model_async, pb_utils))
        self._metrics, self._tracer = Metrics(pb_utils), Tracer()
        self._reports = RequestReports(self._metrics, "speech")
        keep_what_is_loaded()

    def execute(self, requests):
        """Start each request and return at once."""
        for request in requests:
            sender, report = request.get_response_sender(), self._reports.arrived(request)
            try:
                generation = triton_io.read_text(request, "generation")
                (speaker,) = triton_io.read_array(request, "speaker_embedding")
                warned = any(tensor.name() == "text_warning" for tensor in request.inputs())
                warning = triton_io.read_text(request, "text_warning") if warned else ""
            except Exception as error:
                report.ended(error)
                triton_io.send_last(pb_utils, sender, triton_io.failure(pb_utils, error))
                report.gone()
            else:
                prepared = {"generation": generation, "speaker_embedding": speaker.copy(), "warning": warning}
                trace = self._tracer.of(request)
                call = partial(triton_io.call_model_async, pb_utils, request_id=request.request_id(), trace=trace)
                models = session.Models(call, self._reader, trace.span, self._reports.held)
                wanted = set(request.requested_output_names())
                self._loop.run(self._speak(sender, report, models, prepared, wanted))

    def finalize(self):
        """Give up what is still spoken."""
        self._loop.close()
        self._metrics.close()
        self._tracer.close()

    async def _speak(self, sender, report, models, prepared, wanted):
        try:
            outputs = await session.speak(models, self._plan, prepared)
            triton_io.check_shared_memory(outputs["audio"].nbytes)
            response = triton_io.success(pb_utils, outputs, wanted)
        except Exception as error:
            report.ended(error)
            response = triton_io.failure(pb_utils, error)
        else:
            report.heard(outputs)
            report.ended()
        triton_io.send_last(pb_utils, sender, response)
        report.gone()
