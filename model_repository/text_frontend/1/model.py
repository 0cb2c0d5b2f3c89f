"""Text frontend: normalisation, sentences, prompts and voice; see config.pbtxt for its tensors."""

import os
import queue
import re
import sys
import threading
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from chattts_serving.request import request_from_inputs
from chattts_serving.speech.admission import Door
from chattts_serving.text.part import Part
from chattts_serving.triton import io as triton_io
from chattts_serving.triton.garbage import keep_what_is_loaded
from chattts_serving.triton.metrics import Metrics
from chattts_serving.triton.reports import RequestReports
from chattts_serving.variables import LEXICON
from chattts_serving.voice.voices import library_text, read_library

SWITCH_S = 0.0005  # after which the thread that works lets those that refuse go on; Python's default is 5 ms
# Between two refusals. Triton's HTTP server loses answers when more than some 277 wait for one of its threads: it hands
# them over through a socket, and does not look whether they fit (libevhtp's evthr_defer, 212,992 bytes by default).
PACE_S = 0.001
NEEDED = "speaker_embedding"  # by gpt_decoder: a request that does not ask for it, as a probe's, ends here


class TritonPythonModel:
    """Python backend model: a caller's inputs -> what the language model is to do, and in whose voice.

    One thread does the work and answers, another one refuses, so that those who find no room hear so at once.
    """

    def initialize(self, args):
        """Load the assets that `python -m export` put beside this file."""
        # 0.3 s of a core: not where Triton imports this only to complete its configuration, once more at each start.
        from chattts_serving.text.frontend import TextFrontend  # noqa: PLC0415
        from chattts_serving.text.lexicon import load_lexicon  # noqa: PLC0415

        folder = Path(args["model_repository"], args["model_version"])
        voices = read_library(folder / "voices.json")
        lexicon = load_lexicon(Path(os.environ[LEXICON])) if os.environ.get(LEXICON) else {}
        self._frontend, self._voices = TextFrontend(folder, voices, lexicon), library_text(voices)
        self._metrics = Metrics(pb_utils)
        self._reports = RequestReports(self._metrics, "text_frontend", speaks=False)
        self._door = Door(int(re.findall(r"\d+", args["model_instance_name"])[-1]))  # "text_frontend_0_1"
        self._waiting = queue.SimpleQueue()  # (sender, report, request, part, stays, wanted); None ends the thread
        self._refused = queue.SimpleQueue()  # (sender, report, error); None ends the thread
        self._threads = [threading.Thread(target=one, daemon=True) for one in (self._work, self._refuse)]
        for thread in self._threads:
            thread.start()
        sys.setswitchinterval(SWITCH_S)
        keep_what_is_loaded()

    def execute(self, requests):
        """Refuse what is wrong or too much, hand the rest on, and return at once."""
        for request in requests:
            sender = request.get_response_sender()
            wanted = set(request.requested_output_names())
            if wanted == {"voices"}:
                triton_io.send_last(pb_utils, sender, triton_io.success(pb_utils, {"voices": self._voices}))
                continue
            report = self._reports.arrived(request)
            stays = NEEDED not in wanted
            try:
                triton_io.refuse_parameters(request)
                values = triton_io.read_scalars(request)
                part = Part.from_json(values.pop("part")) if "part" in values else None
                synthesis = request_from_inputs(values)
                if enters(part):
                    self._door.enter(is_batch=synthesis.priority == "batch", stays=stays)
            except Exception as error:
                self._refused.put((sender, report, error))
            else:
                self._waiting.put((sender, report, synthesis, part, stays, wanted))

    def finalize(self):
        """End the threads."""
        for waiting, thread in zip((self._waiting, self._refused), self._threads, strict=True):
            waiting.put(None)
            thread.join()
        self._metrics.close()

    def _work(self):
        while (one := self._waiting.get()) is not None:
            sender, report, synthesis, part, stays, wanted = one
            try:
                response = triton_io.success(pb_utils, self._prepare(synthesis, part), wanted)
            except Exception as error:
                if enters(part):
                    self._door.leave(passes=False, stays=stays)
                self._refused.put((sender, report, error))
            else:
                if enters(part):
                    self._door.leave(passes=True, stays=stays)
                triton_io.send_last(pb_utils, sender, response)

    def _refuse(self):
        while (one := self._refused.get()) is not None:
            sender, report, error = one
            report.ended(error)
            triton_io.send_last(pb_utils, sender, triton_io.failure(pb_utils, error))
            time.sleep(PACE_S)

    def _prepare(self, synthesis, part):
        prepared = self._frontend.prepare(synthesis, part)
        as_json = {name: getattr(prepared, name).to_json() for name in ("generation", "so_far")}
        return prepared._asdict() | as_json


def enters(part):
    """Whether a request comes to the door with `part`: further parts are of one that is open."""
    return part is None or part.is_first
