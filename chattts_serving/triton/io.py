"""Between Triton's request and response objects and plain Python: the one adapter to the Python backend's `pb_utils`.

Models hand their `triton_python_backend_utils` module in, so that nothing here needs a server to be imported.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import CalledModelError, EngineError, InvalidInputError, ServingError
from chattts_serving.triton.tracing import PARAMETER, UNTRACED, Trace
from chattts_serving.variables import SERVER_VERSION

logger = logging.getLogger(__name__)

_TRITON_CODES = {  # ServingError.status -> attribute of pb_utils.TritonError
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAVAILABLE": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
    "INTERNAL": "INTERNAL",
}

# Of other models by one model; each takes a thread on both sides while it lasts. Triton has 32 for each instance of a
# Python model, of which answers take one for a moment, too.
CALLS_AT_ONCE = 28

SHARED_MEMORY = "/dev/shm"  # noqa: S108 # where the Python backend keeps tensors
LARGE_ANSWER_BYTES = 4 * 2**20  # 43 s of audio; the launcher gives each process 16 MiB

_ENSEMBLE_PREFIX = re.compile(r"^in ensemble '[^']*', ")  # Triton's, in front of the message of the step that failed

Outputs = Mapping[str, npt.NDArray[Any] | str]


def triton_version() -> tuple[int, int]:
    """Triton's version, (0, 0) where nobody says: the Python backend does not, only the environment may."""
    found = re.match(r"(\d+)\.(\d+)", os.environ.get(SERVER_VERSION, ""))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def read_scalars(request: Any) -> dict[str, object]:
    """Inputs of a `pb_utils.InferenceRequest` by name, each with one element, as str, int, float or bool.

    Raises:
        InvalidInputError: an input has no or several elements, or is no UTF-8.
    """
    return {tensor.name(): _scalar(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}


def read_text(request: Any, name: str) -> str:
    """The STRING input `name`, which has one element.

    Raises:
        InvalidInputError: it is not there, or as for `read_scalars`.
    """
    value = _scalar(name, read_array(request, name))
    if not isinstance(value, str):
        raise InvalidInputError(name, value, "a UTF-8 string")
    return value


def read_array(request: Any, name: str) -> npt.NDArray[Any]:
    """The input `name`, batch dimension included.

    Raises:
        InvalidInputError: it is not there.
    """
    for tensor in request.inputs():
        if tensor.name() == name:
            array: npt.NDArray[Any] = tensor.as_numpy()
            return array
    raise InvalidInputError(name, None, "a tensor; it was not sent")


def refuse_parameters(request: Any) -> None:
    """Refuse what HTTP's generate endpoints make parameters of: JSON keys that are no inputs, such as misspelt ones.

    The one that says which trace a request belongs to is let through.

    Raises:
        InvalidInputError: there is one.
    """
    try:
        parameters = json.loads(request.parameters())
    except UnicodeDecodeError as error:
        raise InvalidInputError("parameters", error.object, "UTF-8 text") from error
    parameters.pop(PARAMETER, None)
    for name, value in parameters.items():
        raise InvalidInputError(name, value, "nothing: there is no such input")


def success(pb_utils: Any, outputs: Outputs, wanted: Collection[str] | None = None) -> Any:
    """The response of one request: `outputs` with the batch dimension in front; a str becomes a STRING of shape [1].

    A response that is sent must have none that was not asked for: `wanted` are the request's `requested_output_names`.
    Triton 2.51 drops the others itself, and Python's objects with them, while another thread may run Python: from 3.12
    on that ends the process.
    """
    if wanted is not None:
        outputs = {name: value for name, value in outputs.items() if name in wanted}
    return pb_utils.InferenceResponse(_tensors(pb_utils, outputs))


def failure(pb_utils: Any, error: Exception) -> Any:
    """The response that says `error`, with Triton's code for its status.

    An error that nobody foresaw, one that is no `ServingError`, goes to the log; its words stay in the server.
    """
    if not isinstance(error, ServingError):
        logger.error("a request failed", exc_info=error)
        error = EngineError("the request failed; the server's log has the cause")
    code = getattr(pb_utils.TritonError, _TRITON_CODES[error.status])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def send_last(pb_utils: Any, sender: Any, response: Any) -> None:
    """Send the one response of a request. Where that fails, which its caller never hears, the log says so."""
    try:
        sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception:
        logger.exception("an answer could not be sent")


def check_shared_memory(num_bytes: int) -> None:
    """Refuse an answer that would find no room: Triton 2.51 takes it as given before it copies it, and never sends it.

    Raises:
        EngineError: `num_bytes` are more than a model's process has from the start, and than are free.
    """
    space = os.statvfs(SHARED_MEMORY)
    if max(LARGE_ANSWER_BYTES, space.f_bavail * space.f_frsize) < num_bytes:
        raise EngineError(f"an answer of {num_bytes:,} bytes finds no room in {SHARED_MEMORY}; take it as a stream")


def call_model(
    pb_utils: Any,
    model: str,
    inputs: Outputs,
    outputs: Sequence[str],
    *,
    request_id: str = "",
    trace: Trace = UNTRACED,
) -> Outputs:
    """Have another model answer `inputs` (without the batch dimension), and wait for its `outputs`, likewise.

    `trace` gets a span of the call.

    Raises:
        CalledModelError: it answered with an error, or there is no such model.
    """
    with trace.span(model) as parent:
        return _outputs(
            pb_utils, model, _call(pb_utils, model, inputs, outputs, request_id=request_id, parent=parent).exec()
        )


async def call_model_async(
    pb_utils: Any,
    model: str,
    inputs: Outputs,
    outputs: Sequence[str],
    *,
    request_id: str = "",
    trace: Trace = UNTRACED,
) -> Outputs:
    """As `call_model`; the call takes a thread of the running loop's default executor until it is answered."""
    with trace.span(model) as parent:
        call = _call(pb_utils, model, inputs, outputs, request_id=request_id, parent=parent)
        return _outputs(pb_utils, model, await call.async_exec())


def answer(pb_utils: Any, call: Callable[[], Outputs]) -> Any:
    """The response of one request: what `call` returns, or what it raises, so that no other request sees it."""
    try:
        return success(pb_utils, call())
    except Exception as error:
        return failure(pb_utils, error)


def _call(pb_utils: Any, model: str, inputs: Outputs, outputs: Sequence[str], *, request_id: str, parent: str) -> Any:
    return pb_utils.InferenceRequest(
        request_id=request_id,
        model_name=model,
        requested_output_names=list(outputs),
        inputs=_tensors(pb_utils, inputs),
        # Else a model on a GPU leaves its outputs there, where NumPy cannot read them.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        **({"parameters": {PARAMETER: parent}} if parent else {}),  # ensembles hand it on to their steps
    )


def _tensors(pb_utils: Any, values: Outputs) -> list[Any]:
    """`values` with the batch dimension in front; a str becomes a STRING of shape [1]."""
    tensors = []
    for name, value in values.items():
        array = np.array([value.encode()], np.object_) if isinstance(value, str) else value
        tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(array[np.newaxis])))
    return tensors


def _outputs(pb_utils: Any, model: str, response: Any) -> Outputs:
    if response.has_error():
        error = response.error()
        codes = {getattr(pb_utils.TritonError, code): status for status, code in _TRITON_CODES.items()}
        message = _ENSEMBLE_PREFIX.sub("", error.message())
        raise CalledModelError(message, codes.get(error.code(), "INTERNAL"), model)
    return {tensor.name(): _unbatched(tensor.as_numpy()) for tensor in response.output_tensors()}


def _unbatched(array: npt.NDArray[Any]) -> npt.NDArray[Any] | str:
    """`array` without its batch dimension, a single STRING as str."""
    value: npt.NDArray[Any] = array[0]
    if value.dtype == np.object_ and value.size == 1:
        text: str = value.item().decode()
        return text
    return value


def _scalar(name: str, array: npt.NDArray[Any]) -> object:
    if array.size != 1:
        raise InvalidInputError(name, f"of shape {list(array.shape)}", "one element")
    value: object = array.item()
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(name, value, "UTF-8 text") from error
