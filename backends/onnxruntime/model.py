"""ONNX models in a tritonserver without the C++ ONNX Runtime backend: a Python-based backend in its place.

Triton takes this file for every model with `platform: "onnxruntime_onnx"` (or `backend: "onnxruntime"`) when its
backend folder holds it and no `libtriton_onnxruntime.so`. It reads the same keys of config.pbtxt, completes a partial
config by the same rules, and refuses what it does not know, so that one model repository loads under either.
Keys and rules: https://github.com/triton-inference-server/onnxruntime_backend (README.md, src/onnxruntime.cc).

One dynamic batch is one `session.run`; each instance is a process with a session of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # where no launcher of this project has set it; read at the import
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

try:
    from chattts_serving.triton.tracing import Tracer
except ImportError:  # this file serves any ONNX model; without that package its calls are not traced
    Tracer = None

DEFAULT_FILE = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4  # the C++ backend's, for a model that can batch and a config that does not say
DYNAMIC = -1  # a dimension of any length
TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
OPTIMIZATION_LEVELS = {  # of `optimization { graph { level } }`; any other number means all
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
EXECUTION_MODES = {0: ort.ExecutionMode.ORT_SEQUENTIAL, 1: ort.ExecutionMode.ORT_PARALLEL}
DEVICE_ALLOCATOR = "session.use_device_allocator_for_initializers"
# Not among the C++ backend's keys, which leaves it unread and its threads spinning; ONNX Runtime's own name.
ALLOW_SPINNING = "session.intra_op.allow_spinning"
ARENA_SHRINKAGE = "memory.enable_memory_arena_shrinkage"
TOPOLOGY = Path("/sys/devices/system/cpu")
RUN_ERROR = re.compile(r"^\[ONNXRuntimeError\] : (\d+) : \w+ : ")  # how ONNX Runtime's errors begin in Python
YIELDING = 10  # niceness of a process that computes, so that those that only talk get a core at once
# `parameters` of the config that the C++ backend still takes for CUDA, numbers standing for names
CUDA_PARAMETERS: dict[str, tuple[str, ...]] = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "gpu_mem_limit": (),
    "do_copy_in_default_stream": (),
}
TENSORRT_NAMES = {  # where the config's key is not ONNX Runtime's
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
TENSORRT_PRECISIONS = {"FP32": None, "FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable"}
# Versions of onnxruntime-gpu, by what they require.
GPU_PACKAGES = "1.27 or newer for CUDA 13, 1.20 to 1.26 for CUDA 12"
UNSUPPORTED = ("sequence_batching", "batch_input", "batch_output")

Array = np.ndarray[Any, Any]
Provider = tuple[str, dict[str, str]]  # name and options


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of an ONNX graph; `dims` has the batch dimension where the graph has one."""

    name: str
    data_type: str
    dims: tuple[int, ...]


class TritonPythonModel:
    """One instance of an ONNX model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Fill in inputs, outputs and `max_batch_size` that the config leaves out, from the graph's signature."""
        values = config.as_dict()
        if values["input"] and values["output"]:
            return config
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the signature is all we want
        session = _open(_model_path(values), options, [("CPUExecutionProvider", {})], values["name"])
        inputs, outputs = _specs(session.get_inputs()), _specs(session.get_outputs())
        _complete_batching(config, [*inputs, *outputs])
        for key, specs in (("input", inputs), ("output", outputs)):
            if not values[key]:
                values[key] = [_config_entry(spec, batching=values["max_batch_size"] > 0) for spec in specs]
        return config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the session on this instance's device and check the config against the graph.

        Raises:
            TritonModelException: the file, a key of the config or the device does not fit.
        """
        config = json.loads(args["model_config"])
        self._name = name = config["name"]
        self._tracer = Tracer() if Tracer else None
        for key in UNSUPPORTED:
            if config.get(key):
                raise _error(name, f"{key} needs the C++ ONNX Runtime backend")
        providers: list[Provider] = [("CPUExecutionProvider", {})]
        if args["model_instance_kind"] == "GPU":
            providers = [*_gpu_providers(config, args["model_instance_device_id"]), *providers]
            if hasattr(ort, "preload_dlls"):  # from 1.21 on: finds the CUDA libraries that pip installed
                ort.preload_dlls()
        elif _accelerators(config, "cpu_execution_accelerator"):
            raise _error(name, "cpu_execution_accelerator needs the C++ ONNX Runtime backend")
        if args["model_instance_kind"] == "CPU":
            os.nice(YIELDING)
        self._session = _open(_model_path(config), _session_options(config), providers, name)
        _check_providers(self._session, providers, name)
        self._run_options = _run_options(config)
        self._batching = config["max_batch_size"] > 0
        _check_config(config, _specs(self._session.get_inputs()), _specs(self._session.get_outputs()))
        self._input_names = [entry["name"] for entry in config["input"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in their order."""
        with ExitStack() as spans:
            for request in requests if self._tracer else ():
                spans.enter_context(self._tracer.of(request).span(self._name))
            return self._answers(requests)

    def finalize(self) -> None:
        """Send what was traced."""
        if self._tracer:
            self._tracer.close()

    def _answers(self, requests: Sequence[Any]) -> list[Any]:
        if not self._batching:
            return [self._answer([request])[0] for request in requests]
        return self._answer(requests)

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        """The responses of `requests`, run as one batch.

        A batch that fails is run again request by request: only the one at fault gets the error, in the C++ backend's
        words and with its code. That is INTERNAL whatever ONNX Runtime says: its codes do not tell whose fault it is.
        """
        try:
            return self._run(requests)
        except Exception as error:  # whatever failed, every request must be answered
            if len(requests) > 1:
                return [self._answer([request])[0] for request in requests]
            message = RUN_ERROR.sub(r"onnx runtime error \1: ", str(error))
            errors = pb_utils.TritonError
            code = errors.INVALID_ARG if isinstance(error, UnicodeDecodeError) else errors.INTERNAL
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))]

    def _run(self, requests: Sequence[Any]) -> list[Any]:
        feeds, row_counts = self._feeds(requests)
        wanted = [set(request.requested_output_names()) for request in requests]
        names = sorted(set().union(*wanted))
        outputs = dict(zip(names, self._session.run(names, feeds, self._run_options), strict=True))
        if len(requests) == 1:
            parts = {name: [array] for name, array in outputs.items()}
        else:
            parts = {name: _split(name, array, row_counts) for name, array in outputs.items()}
        return [
            pb_utils.InferenceResponse(
                output_tensors=[pb_utils.Tensor(name, parts[name][index]) for name in names if name in wanted[index]]
            )
            for index in range(len(requests))
        ]

    def _feeds(self, requests: Sequence[Any]) -> tuple[dict[str, Array], list[int]]:
        """Each input's arrays joined along the first axis, and how many rows each request has of them."""
        feeds = {}
        row_counts: list[int] = []
        for name in self._input_names:
            tensors = [pb_utils.get_input_tensor_by_name(request, name) for request in requests]
            arrays = [_decoded(tensor.as_numpy()) for tensor in tensors]
            row_counts = [len(array) if array.ndim else 1 for array in arrays]
            feeds[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return feeds, row_counts


def _decoded(array: Array) -> Array:
    """`array`, its strings (Triton has them as bytes) as ONNX Runtime takes them."""
    if array.dtype != np.object_:
        return array
    texts = [value.decode("utf-8") for value in array.reshape(-1)]
    return np.array(texts, dtype=np.object_).reshape(array.shape)


def _split(name: str, array: Array, row_counts: Sequence[int]) -> list[Array]:
    if not array.ndim or len(array) != sum(row_counts):
        raise ValueError(f"output '{name}' has shape {list(array.shape)} for a batch of {sum(row_counts)}")
    return np.split(array, np.cumsum(row_counts)[:-1])


def _error(model: str, message: str) -> Exception:
    error: Exception = pb_utils.TritonModelException(f"unable to load model '{model}': {message}")
    return error


def _model_path(config: Mapping[str, Any]) -> Path:
    """The ONNX file: `default_model_filename` in the version's folder, or model.onnx inside a folder of that name."""
    path = Path(pb_utils.get_model_dir(), config.get("default_model_filename") or DEFAULT_FILE)
    return path / DEFAULT_FILE if path.is_dir() else path


def _open(path: Path, options: ort.SessionOptions, providers: Sequence[Provider], model: str) -> ort.InferenceSession:
    if not path.is_file():
        raise _error(model, f"there is no {path}")
    try:
        return ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        raise _error(model, f"ONNX Runtime cannot open {path}: {error}") from error


def _check_providers(session: ort.InferenceSession, wanted: Sequence[Provider], model: str) -> None:
    """ONNX Runtime leaves out a provider whose libraries or device it cannot use, and goes on with the CPU.

    Raises:
        TritonModelException: names the first such provider.
    """
    used = session.get_providers()
    for provider, _ in wanted:
        if provider not in used:
            raise _error(
                model,
                f"onnxruntime {ort.__version__} could not start {provider} (it has {', '.join(used)}): see its log; "
                f"mostly CUDA or cuDNN is missing, or not of the version that it was built for ({GPU_PACKAGES})",
            )


def _specs(nodes: Sequence[Any]) -> list[TensorSpec]:
    """The specs of a session's inputs or outputs.

    Raises:
        TritonModelException: one is no tensor, or of a type that Triton's Python backend has not.
    """
    specs = []
    for node in nodes:
        if node.type not in TRITON_TYPES:
            raise pb_utils.TritonModelException(f"tensor '{node.name}' has the unsupported type {node.type}")
        dims = tuple(dim if isinstance(dim, int) and dim >= 0 else DYNAMIC for dim in node.shape)
        specs.append(TensorSpec(node.name, TRITON_TYPES[node.type], dims))
    return specs


def _complete_batching(config: Any, specs: Sequence[TensorSpec]) -> None:
    """A graph whose every tensor has a dynamic first dimension can batch; batches above 1 get a dynamic batcher."""
    values = config.as_dict()
    if not all(spec.dims[:1] == (DYNAMIC,) for spec in specs):
        if values["max_batch_size"] > 0:
            fixed = next(spec for spec in specs if spec.dims[:1] != (DYNAMIC,))
            raise _error(
                values["name"],
                f"max_batch_size is {values['max_batch_size']}, but tensor '{fixed.name}' has the shape "
                f"{list(fixed.dims)}, whose first dimension is not dynamic",
            )
        return
    if values["max_batch_size"] == 0:
        config.set_max_batch_size(DEFAULT_MAX_BATCH_SIZE)
    if values["max_batch_size"] > 1 and "sequence_batching" not in values:
        config.set_dynamic_batching()


def _config_entry(spec: TensorSpec, *, batching: bool) -> dict[str, Any]:
    """`spec` as an entry of `input` or `output`; Triton has no empty `dims`, so a scalar is a reshaped [1]."""
    dims = list(spec.dims[1:] if batching else spec.dims)
    entry: dict[str, Any] = {"name": spec.name, "data_type": spec.data_type, "dims": dims or [1]}
    if batching and not dims:
        entry["reshape"] = {"shape": []}
    return entry


def _parameter(config: Mapping[str, Any], key: str, default: str) -> str:
    return str(config.get("parameters", {}).get(key, {}).get("string_value", default))


def _integer(config: Mapping[str, Any], key: str, default: int) -> int:
    text = _parameter(config, key, str(default))
    try:
        return int(text)
    except ValueError:
        raise _error(config["name"], f"parameter {key} is '{text}'; allowed is an integer") from None


def _boolean(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    text = _parameter(config, key, str(default)).lower()
    if text not in ("true", "false", "1", "0"):
        raise _error(config["name"], f"parameter {key} is '{text}'; allowed is 1, 0, true or false")
    return text in ("true", "1")


def _session_options(config: Mapping[str, Any]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = OPTIMIZATION_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    mode = _integer(config, "execution_mode", 0)
    if mode not in EXECUTION_MODES:
        raise _error(config["name"], f"parameter execution_mode is '{mode}'; allowed is 0 (sequential) or 1 (parallel)")
    options.execution_mode = EXECUTION_MODES[mode]
    options.intra_op_num_threads = max(0, _integer(config, "intra_op_thread_count", 0)) or _num_cores()
    options.inter_op_num_threads = max(0, _integer(config, "inter_op_thread_count", 0))
    options.enable_cpu_mem_arena = _boolean(config, "enable_mem_arena", default=True)
    options.enable_mem_pattern = _boolean(config, "enable_mem_pattern", default=True)
    if _boolean(config, DEVICE_ALLOCATOR, default=False):
        options.add_session_config_entry(DEVICE_ALLOCATOR, "1")
    if not _boolean(config, ALLOW_SPINNING, default=True):
        options.add_session_config_entry(ALLOW_SPINNING, "0")
    return options


def _num_cores() -> int:
    """How many physical cores this process may use.

    ONNX Runtime's own default counts those of the machine and binds a thread to each, also to cores that a host policy
    keeps this process from (1.32, measured).
    """
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    """The CPUs that share a core with `cpu`."""
    try:
        return (TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text(encoding="ascii")
    except OSError:  # sandboxes hide it
        return str(cpu)


def _run_options(config: Mapping[str, Any]) -> ort.RunOptions:
    options = ort.RunOptions()
    shrinkage = _parameter(config, ARENA_SHRINKAGE, "")  # for example "cpu:0;gpu:0"
    if shrinkage:
        options.add_run_config_entry(ARENA_SHRINKAGE, shrinkage)
    return options


def _accelerators(config: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return list(config.get("optimization", {}).get("execution_accelerators", {}).get(kind, []))


def _gpu_providers(config: Mapping[str, Any], device_id: str) -> list[Provider]:
    """CUDA, behind TensorRT where the config asks for it.

    Raises:
        TritonModelException: an unknown accelerator, or this build of ONNX Runtime lacks one.
    """
    cuda = _cuda_parameters(config)
    providers: list[Provider] = []
    for accelerator in _accelerators(config, "gpu_execution_accelerator"):
        parameters = accelerator.get("parameters", {})
        if accelerator["name"] == "tensorrt":
            options = _tensorrt_options(config["name"], parameters)
            providers.append(("TensorrtExecutionProvider", {**options, "device_id": device_id}))
        elif accelerator["name"] == "cuda":
            cuda |= parameters
        else:
            raise _error(config["name"], f"unknown gpu_execution_accelerator '{accelerator['name']}'")
    providers.append(("CUDAExecutionProvider", {**cuda, "device_id": device_id}))
    available = ort.get_available_providers()
    for provider, _ in providers:
        if provider not in available:
            raise _error(
                config["name"],
                f"its instance is on GPU {device_id}, but onnxruntime {ort.__version__} here has no {provider} (it has "
                f"{', '.join(available)}): uninstall onnxruntime and install onnxruntime-gpu ({GPU_PACKAGES}), or have "
                "the model run on the CPU, which is slower: `instance_group [ { kind: KIND_CPU } ]`",
            )
    return providers


def _cuda_parameters(config: Mapping[str, Any]) -> dict[str, str]:
    options = {}
    for key, names in CUDA_PARAMETERS.items():
        text = _parameter(config, key, "")
        if text and names:
            number = _integer(config, key, 0)
            if not 0 <= number < len(names):
                raise _error(config["name"], f"parameter {key} is '{text}'; allowed is 0 to {len(names) - 1}")
            text = names[number]
        if text:
            options[key] = text
    return options


def _tensorrt_options(model: str, parameters: Mapping[str, str]) -> dict[str, str]:
    options = {}
    for key, value in parameters.items():
        if key == "precision_mode":
            if value not in TENSORRT_PRECISIONS:
                raise _error(model, f"precision_mode is '{value}'; allowed is {', '.join(TENSORRT_PRECISIONS)}")
            flag = TENSORRT_PRECISIONS[value]
            if flag:
                options[flag] = "1"
        elif key in TENSORRT_NAMES:
            options[TENSORRT_NAMES[key]] = value
        elif key.startswith("trt_"):
            options[key] = value
        else:
            raise _error(model, f"unknown parameter '{key}' of the accelerator tensorrt")
    return options


def _check_config(config: Mapping[str, Any], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Compare the config's tensors with the graph's.

    Raises:
        TritonModelException: names the tensor, what the config says and what the graph has.
    """
    if len(config["input"]) != len(inputs):
        names = ", ".join(spec.name for spec in inputs)
        raise _error(config["name"], f"the config has {len(config['input'])} inputs, the graph {len(inputs)} ({names})")
    for kind, specs in (("input", inputs), ("output", outputs)):
        by_name = {spec.name: spec for spec in specs}
        for entry in config[kind]:
            if entry["name"] not in by_name:
                raise _error(config["name"], f"the graph has no {kind} '{entry['name']}' (it has {', '.join(by_name)})")
            _check_tensor(config, kind, entry, by_name[entry["name"]])


def _check_tensor(config: Mapping[str, Any], kind: str, entry: Mapping[str, Any], spec: TensorSpec) -> None:
    """The rules of ValidateInputs, ValidateOutputs and CompareDimsSupported in the C++ backend."""
    model, batching = config["name"], config["max_batch_size"] > 0
    if entry.get("optional") and batching:
        raise _error(model, f"{kind} '{spec.name}' has optional, which no model that batches may have")
    for key in ("optional", "allow_ragged_batch"):
        if entry.get(key):
            raise _error(model, f"{kind} '{spec.name}' has {key}, which needs the C++ ONNX Runtime backend")
    if entry["data_type"] != spec.data_type:
        raise _error(
            model, f"{kind} '{spec.name}' is {entry['data_type']} in the config, {spec.data_type} in the graph"
        )
    dims = [int(dim) for dim in entry.get("reshape", {}).get("shape", entry["dims"])]
    if not spec.dims and all(dim == 1 for dim in dims):
        return  # a scalar
    if batching:
        dims = [DYNAMIC, *dims]
        if spec.dims[:1] != (DYNAMIC,):
            raise _error(
                model,
                f"max_batch_size is {config['max_batch_size']}, but {kind} '{spec.name}' has the shape "
                f"{list(spec.dims)} in the graph, whose first dimension is not dynamic",
            )
    # What the graph fixes, the config fixes too. What it leaves open an input may fix, an output may not.
    loose = (DYNAMIC,) if kind == "input" else ()
    fits = len(dims) == len(spec.dims) and all(
        ours == theirs or theirs in loose for ours, theirs in zip(dims, spec.dims, strict=True)
    )
    if not fits:
        raise _error(model, f"{kind} '{spec.name}' has the shape {dims} in the config, {list(spec.dims)} in the graph")
