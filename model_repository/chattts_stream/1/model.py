"""Text in, speech out chunk by chunk; see config.pbtxt. All logic is in chattts_serving.speech.session."""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import triton_python_backend_utils as pb_utils

from chattts_serving.speech import session
from chattts_serving.speech.reader import Reader
from chattts_serving.text.lexicon import Lexicon, load_lexicon
from chattts_serving.triton import io as triton_io
from chattts_serving.triton import pieces
from chattts_serving.triton.config import MODES, ReadingConfig, num_instances
from chattts_serving.triton.garbage import keep_what_is_loaded
from chattts_serving.triton.metrics import Metrics
from chattts_serving.triton.reports import RequestReports
from chattts_serving.triton.tracing import Tracer
from chattts_serving.variables import LEXICON

# Triton 2.51 can crash where a gRPC stream ends at the moment in which it is cancelled (measured); mended since.
SETTLE_S, SETTLED = 0.2, (2, 59)
TEXTS_AT_ONCE = 8  # so that long texts do not take the threads of what is spoken; a batch of text_frontend


class TritonPythonModel:
    """Decoupled Python backend model: the inputs of `chattts` and `mode` -> one response a chunk."""

    def initialize(self, args):
        """Read the configuration."""
        self._config = ReadingConfig.from_triton(args["model_config"])
        lexicon = Lexicon(load_lexicon(Path(os.environ[LEXICON])) if os.environ.get(LEXICON) else {})
        self._open_texts = pieces.OpenTexts(self._config.text_wait_s, num_instances(args["model_config"]), lexicon)
        self._settle_s = 0.0 if triton_io.triton_version() >= SETTLED else SETTLE_S
        self._executor = ThreadPoolExecutor(triton_io.CALLS_AT_ONCE)
        self._texts = asyncio.Semaphore(TEXTS_AT_ONCE)
        self._reader = Reader(partial(triton_io.call_model_async, pb_utils))
        self._metrics, self._tracer = Metrics(pb_utils), Tracer()
        self._reports = RequestReports(self._metrics, "chattts_stream", streams=True)
        keep_what_is_loaded()

    async def execute(self, requests):
        """Stream every request; Triton starts this anew for requests that come meanwhile."""
        asyncio.get_running_loop().set_default_executor(self._executor)  # where calls of models wait
        await asyncio.gather(*map(self._answer, requests))

    def finalize(self):
        """Let go of the metrics."""
        self._metrics.close()
        self._tracer.close()

    async def _call(self, model, inputs, outputs, **about):
        async with self._texts if model == "text_frontend" else nullcontext():
            return await triton_io.call_model_async(pb_utils, model, inputs, outputs, **about)

    async def _answer(self, request):
        """A request is a text, the beginning of one, or more of it; no await comes before that is known."""
        piece = refusal = None
        try:
            triton_io.refuse_parameters(request)
            if any(tensor.name() in pieces.INPUTS for tensor in request.inputs()):
                piece = pieces.Piece.of(triton_io.read_scalars(request))
                if piece.part != pieces.FIRST:
                    self._open_texts.add(piece)
                    request.get_response_sender().send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    return
        except Exception as error:
            refusal = error
        await self._stream(request, self._reports.arrived(request), piece, refusal)

    async def _stream(self, request, report, piece, refusal):
        sender, ended, wanted = request.get_response_sender(), False, set(request.requested_output_names())

        def is_cancelled():  # asked past the end, Triton 2.51 crashes
            return not ended and sender.is_cancelled()

        def send(response, *, last):
            nonlocal ended
            if not ended and not is_cancelled():
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0)
                ended = last

        def send_chunk(outputs):
            report.heard(outputs)
            send(triton_io.success(pb_utils, outputs, wanted), last=bool(outputs["is_final"]))

        try:
            _raise(refusal)
            inputs = {tensor.name(): tensor.as_numpy()[0] for tensor in request.inputs()}
            mode = triton_io.read_text(request, "mode") if inputs.pop("mode", None) is not None else MODES[0]
            trace = self._tracer.of(request)
            call = partial(self._call, request_id=request.request_id(), trace=trace)
            models = session.Models(call, self._reader, trace.span, self._reports.held)
            plan = self._config.plan(mode, live=True)
            if piece is None:
                await session.stream(models, plan, inputs, send_chunk, is_cancelled)
            else:
                inputs = {name: value for name, value in inputs.items() if name not in pieces.INPUTS}
                inputs.pop("text", None)
                with self._open_texts.opened(piece, inputs) as text:
                    await pieces.stream(models, plan, text, send_chunk, is_cancelled)
            report.ended()
        except Exception as error:
            if getattr(error, "model", "") != "text_frontend":  # which reports those that end there
                report.ended(error)
            send(triton_io.failure(pb_utils, error), last=True)
        if not ended:
            await asyncio.sleep(self._settle_s)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        report.gone()


def _raise(error):
    if error is not None:
        raise error
