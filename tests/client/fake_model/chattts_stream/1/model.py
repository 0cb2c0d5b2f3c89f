"""A stand-in for `chattts_stream`: same contract, and it tells what arrived (`tests/client/fake_synthesis.py`).

Texts with a meaning of their own:

    "fail CODE MESSAGE"    an error in place of the first chunk, with that TritonError code and message
    "break CODE MESSAGE"   the same after the first chunk
    "full FILE"            UNAVAILABLE until FILE is there, which the first such text makes
    "tell INPUT"           an error that tells what arrived as INPUT
    "hold FILE"            all but the last chunk, and an error once FILE is there
    "hang SECONDS"         the first chunk comes that much later
    "endless FILE"         the first chunk again and again, until it is cancelled, which is then written to FILE
    "mute FILE"            the same without a chunk
    "large ..."            one chunk
    "unfinished"           no chunk says that it is the last
    "silence"              an answer without a single sample
"""

import sys
import threading
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from chattts_serving.launcher.tritonserver import ROOT

sys.path.append(str(ROOT))
from tests.client.fake_synthesis import chunks, described, is_full, said

MOST_SECONDS = 20  # until a request that should be cancelled is given up
CHUNK_SECONDS = 0.02  # between two endless chunks
CANCELLED_SECONDS = 0.2  # Triton 2.51 can crash when a stream ends at the moment in which it is cancelled (measured)


class TritonPythonModel:
    """Triton's entry point."""

    def execute(self, requests):
        """Answer each request on a thread of its own."""
        for request in requests:
            seen = {tensor.name(): described(tensor.as_numpy()) for tensor in request.inputs()}
            if request.request_id():
                seen["request_id"] = request.request_id()
            arguments = (request.get_response_sender(), seen, *said(seen).partition(" ")[::2])
            threading.Thread(target=_answer, args=arguments, daemon=True).start()


def _answer(sender, seen, command, rest):
    if command in ("endless", "mute"):
        _wait_for_cancellation(sender, Path(rest), _response(chunks(seen)[0]) if command == "endless" else None)
    elif command == "hold":
        for outputs in chunks(seen)[:-1]:
            sender.send(_response(outputs))
        _wait_for(sender, lambda: Path(rest.strip()).exists())
        _fail(sender, "INTERNAL", "the text was held")
    elif command == "tell":
        _fail(sender, "INTERNAL", f"{rest} is {seen[rest]['value'] if isinstance(seen[rest], dict) else seen[rest]}")
    elif command == "full" and is_full(rest):
        _fail(sender, "UNAVAILABLE", "overloaded; try again later")
    elif command in ("fail", "break"):
        if command == "break":
            sender.send(_response(chunks(seen)[0]))
        _fail(sender, *rest.split(" ", 1))
    else:
        time.sleep(float(rest) if command == "hang" else 0)
        for outputs in chunks(seen, 10**9) if command == "large" else chunks(seen):
            if sender.is_cancelled():
                break
            unfinished = {"is_final": np.array([[False]])} if command == "unfinished" else {}
            sender.send(_response(outputs | unfinished))
    if sender.is_cancelled():
        time.sleep(CANCELLED_SECONDS)
    sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _fail(sender, code, message):
    error = pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    sender.send(pb_utils.InferenceResponse(error=error))


def _wait_for(sender, happened):
    end = time.monotonic() + MOST_SECONDS
    while not (happened() or sender.is_cancelled()) and time.monotonic() < end:
        time.sleep(CHUNK_SECONDS)


def _wait_for_cancellation(sender, file, response):
    def go_on():
        if response is not None:
            sender.send(response)
        return False

    _wait_for(sender, go_on)
    file.write_text("cancelled" if sender.is_cancelled() else "never cancelled", encoding="utf-8")


def _response(outputs):
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, array) for name, array in outputs.items()])
