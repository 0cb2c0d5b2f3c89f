"""A stand-in for `triton_python_backend_utils`, to run a model.py without a server.

Functions and `ModelConfig` come from the real file in the wheel nvidia-pytriton; the classes here are those that its
stub adds in C++. `load_model` imports a model.py that sees this module under the real name.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


_package = importlib.util.find_spec("pytriton")
assert _package is not None
assert _package.origin is not None
_real = _load(
    "real_pb_utils",
    Path(_package.origin).parent / "tritonserver" / "backends" / "python" / "triton_python_backend_utils.py",
)
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("_")})

model_dir = Path()  # what get_model_dir() says; tests set it
_counter = itertools.count()


def get_model_dir() -> str:
    return str(model_dir)


def load_model(path: Path) -> ModuleType:
    """Import the model.py at `path`, with this module as its `triton_python_backend_utils`."""
    name = "triton_python_backend_utils"
    before = sys.modules.get(name)
    sys.modules[name] = sys.modules[__name__]
    try:
        return _load(f"model_under_test_{next(_counter)}", path)
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before


class TritonModelException(Exception):  # noqa: N818
    pass


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


TRITONSERVER_MEMORY_GPU, TRITONSERVER_MEMORY_CPU = range(2)


@dataclass(frozen=True)
class PreferredMemory:
    preferred_memory_type: int
    preferred_device_id: int = 0


class Tensor:
    def __init__(self, name: str, array: np.ndarray, *, on_gpu: bool = False) -> None:
        self._name, self._array = name, np.ascontiguousarray(array).reshape(array.shape)
        self._on_gpu = on_gpu

    def name(self) -> str:
        return self._name

    def is_cpu(self) -> bool:
        return not self._on_gpu

    def as_numpy(self) -> np.ndarray:
        if self._on_gpu:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors or []), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Keeps what is sent; a second FINAL, or anything after it, is an error as it is in Triton.

    So is an output that the request did not ask for: Triton drops it, and from Python 3.12 on its process dies of it.
    """

    def __init__(self, wanted: list[str] | None = None) -> None:
        self._wanted = wanted
        self.responses: list[InferenceResponse] = []
        self.final = False
        self.cancelled = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self.final:
            raise TritonModelException("a response was sent after the final one")
        if response is not None:
            names = {tensor.name() for tensor in response.output_tensors()}
            if self._wanted is not None and not names <= set(self._wanted):
                raise TritonModelException(f"nobody asked for {sorted(names - set(self._wanted))}")
            self.responses.append(response)
        self.final = flags == _real.TRITONSERVER_RESPONSE_COMPLETE_FINAL

    def is_cancelled(self) -> bool:
        return self.cancelled


class InferenceRequest:
    """A request that came, or one to another model: `called_models` has what answers it.

    Those models are on a GPU, as Triton's C++ ONNX Runtime backend is: their numbers stay there unless the caller wants
    them elsewhere.
    """

    def __init__(
        self,
        inputs: list[Tensor],
        requested_output_names: list[str],
        request_id: str = "",
        model_name: str = "",
        preferred_memory: PreferredMemory | None = None,
        parameters: dict[str, str] | None = None,
    ) -> None:
        self._parameters = parameters or {}
        self._inputs, self._outputs, self._id = inputs, requested_output_names, request_id
        self._model, self._preferred_memory = model_name, preferred_memory
        self._sender = ResponseSender(requested_output_names)

    def exec(self) -> InferenceResponse:
        response = called_models[self._model](self)
        if self._preferred_memory == PreferredMemory(TRITONSERVER_MEMORY_CPU):
            return response
        tensors = [
            Tensor(tensor.name(), array, on_gpu=array.dtype != np.object_)
            for tensor in response.output_tensors()
            for array in [tensor.as_numpy()]
        ]
        return InferenceResponse(tensors, response.error())

    async def async_exec(self) -> InferenceResponse:
        return self.exec()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def requested_output_names(self) -> set[str]:
        return set(self._outputs)

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def request_id(self) -> str:
        return self._id

    def get_response_sender(self) -> ResponseSender:
        return self._sender

    def is_cancelled(self) -> bool:
        return self._sender.cancelled


called_models: dict[str, Callable[[InferenceRequest], InferenceResponse]] = {}  # by name


class MetricFamily:
    COUNTER, GAUGE = range(2)

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.description, self.kind = name, description, kind

    def Metric(self, labels: dict[str, str]) -> Metric:  # noqa: N802
        metrics.append(Metric(self, labels))
        return metrics[-1]


class Metric:
    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        self.family, self.labels, self.value = family, labels, 0.0

    def set(self, value: float) -> None:
        assert self.family.kind == MetricFamily.GAUGE
        self.value = value

    def increment(self, value: float) -> None:
        assert self.family.kind == MetricFamily.COUNTER
        assert value >= 0
        self.value += value


metrics: list[Metric] = []  # all that were made


class Logger:
    @staticmethod
    def log_info(message: str) -> None:
        sys.stderr.write(f"INFO {message}\n")

    @staticmethod
    def log_warn(message: str) -> None:
        sys.stderr.write(f"WARNING {message}\n")

    @staticmethod
    def log_error(message: str) -> None:
        sys.stderr.write(f"ERROR {message}\n")
