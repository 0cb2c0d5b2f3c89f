"""Between Triton's request and response objects and plain Python: the one adapter to the Python backend's `pb_utils`.

Models hand their `triton_python_backend_utils` module in, so that nothing here needs a server to be imported.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from chattts_serving.errors import EngineError, InvalidInputError, ServingError

logger = logging.getLogger(__name__)

_TRITON_CODES = {  # ServingError.status -> attribute of pb_utils.TritonError
    "INVALID_ARGUMENT": "INVALID_ARG",
    "UNAVAILABLE": "UNAVAILABLE",
    "CANCELLED": "CANCELLED",
    "INTERNAL": "INTERNAL",
}

Outputs = Mapping[str, npt.NDArray[Any] | str]


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


def success(pb_utils: Any, outputs: Outputs) -> Any:
    """The response of one request: `outputs` with the batch dimension in front; a str becomes a STRING of shape [1]."""
    tensors = []
    for name, value in outputs.items():
        array = np.array([value.encode()], np.object_) if isinstance(value, str) else value
        tensors.append(pb_utils.Tensor(name, np.ascontiguousarray(array[np.newaxis])))
    return pb_utils.InferenceResponse(tensors)


def failure(pb_utils: Any, error: Exception) -> Any:
    """The response that says `error`, with Triton's code for its status.

    An error that nobody foresaw, one that is no `ServingError`, goes to the log; its words stay in the server.
    """
    if not isinstance(error, ServingError):
        logger.error("a request failed", exc_info=error)
        error = EngineError("the request failed; the server's log has the cause")
    code = getattr(pb_utils.TritonError, _TRITON_CODES[error.status])
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), code))


def answer(pb_utils: Any, call: Callable[[], Outputs]) -> Any:
    """The response of one request: what `call` returns, or what it raises, so that no other request sees it."""
    try:
        return success(pb_utils, call())
    except Exception as error:
        return failure(pb_utils, error)


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
