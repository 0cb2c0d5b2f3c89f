"""The Python-based ONNX backend, run without a server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from tests import fake_pb_utils as pb
from tests import onnx_models

BACKEND = Path(__file__).parents[2] / "backends" / "onnxruntime" / "model.py"
backend = pb.load_model(BACKEND)
TASKS = Path("/proc/self/task")  # the threads of this process
CPU_SESSION = ort.InferenceSession  # also where a test puts another in its place
AFFINE_CONFIG: dict[str, Any] = {
    "max_batch_size": 8,
    "input": [{"name": name, "data_type": "TYPE_FP32", "dims": ["-1"]} for name in ("x", "k")],
    "output": [{"name": name, "data_type": "TYPE_FP32", "dims": ["-1"]} for name in ("y", "z")],
}


def with_parameters(**parameters: str) -> dict[str, Any]:
    return {**AFFINE_CONFIG, "parameters": {key: {"string_value": value} for key, value in parameters.items()}}


@pytest.fixture
def version_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pb, "model_dir", tmp_path)
    return tmp_path


def complete(folder: Path, proto: onnx.ModelProto, **config: Any) -> dict[str, Any]:
    """The config that auto-complete makes of `config` for a graph."""
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    partial = {"name": "tiny", "max_batch_size": 0, "input": [], "output": [], **config}
    return backend.TritonPythonModel.auto_complete_config(pb.ModelConfig(json.dumps(partial))).as_dict()


def load(folder: Path, proto: onnx.ModelProto, config: dict[str, Any], kind: str = "CPU") -> Any:
    """An initialised instance of a graph."""
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    model = backend.TritonPythonModel()
    arguments = {"model_config": json.dumps({"name": "tiny", **config})}
    model.initialize({**arguments, "model_instance_kind": kind, "model_instance_device_id": "0"})
    return model


def request(outputs: list[str], **inputs: np.ndarray) -> pb.InferenceRequest:
    return pb.InferenceRequest([pb.Tensor(name, array) for name, array in inputs.items()], outputs)


def outputs_of(response: pb.InferenceResponse) -> dict[str, np.ndarray]:
    assert not response.has_error(), response.error().message()
    return {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}


class CountingSession:
    """Passes calls on and counts them."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.session, self.num_runs = session, 0

    def run(self, *arguments: Any) -> list[np.ndarray]:
        self.num_runs += 1
        return self.session.run(*arguments)


def test_auto_complete_takes_a_batching_model_from_its_graph(version_folder: Path) -> None:
    config = complete(version_folder, onnx_models.affine(("batch", "length", 3)))
    assert config["max_batch_size"] == 4
    assert config["dynamic_batching"] == {}
    assert config["input"] == [{"name": name, "data_type": "TYPE_FP32", "dims": [-1, 3]} for name in ("x", "k")]
    assert config["output"] == [{"name": name, "data_type": "TYPE_FP32", "dims": [-1, 3]} for name in ("y", "z")]


def test_auto_complete_takes_a_model_of_fixed_shape_from_its_graph(version_folder: Path) -> None:
    config = complete(version_folder, onnx_models.identity(TensorProto.INT32, (2, 3)))
    assert config["max_batch_size"] == 0
    assert "dynamic_batching" not in config
    assert config["input"] == [{"name": "x", "data_type": "TYPE_INT32", "dims": [2, 3]}]


def test_auto_complete_keeps_what_the_config_says(version_folder: Path) -> None:
    given_inputs = [{"name": "x", "data_type": "TYPE_FP32", "dims": [7]}]
    config = complete(version_folder, onnx_models.identity(TensorProto.FLOAT), max_batch_size=2, input=given_inputs)
    assert config["max_batch_size"] == 2
    assert config["input"] == given_inputs
    assert config["output"] == [{"name": "y", "data_type": "TYPE_FP32", "dims": [-1]}]


def test_auto_complete_does_not_open_the_model_of_a_complete_config(version_folder: Path) -> None:
    values = {"name": "tiny", **AFFINE_CONFIG}
    config = backend.TritonPythonModel.auto_complete_config(pb.ModelConfig(json.dumps(values)))
    assert config.as_dict() == values


def test_auto_complete_reshapes_one_number_per_row(version_folder: Path) -> None:
    config = complete(version_folder, onnx_models.identity(TensorProto.FLOAT, ("batch",)))
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [1], "reshape": {"shape": []}}]


def test_auto_complete_refuses_batches_of_a_model_of_fixed_shape(version_folder: Path) -> None:
    with pytest.raises(pb.TritonModelException, match=r"max_batch_size is 2, but tensor 'x' has the shape \[2, 3\]"):
        complete(version_folder, onnx_models.identity(TensorProto.FLOAT, (2, 3)), max_batch_size=2)


@settings(max_examples=25, deadline=None)
@given(row_counts=st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_a_batch_is_one_run_and_gives_each_request_what_it_gets_alone(
    row_counts: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("version")
    pb.model_dir = folder
    model = load(folder, onnx_models.affine(), AFFINE_CONFIG)
    model._session = CountingSession(model._session)
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(2, rows, 3)).astype(np.float32) for rows in row_counts]
    responses = model.execute([request(["y", "z"], x=x, k=k) for x, k in inputs])
    assert model._session.num_runs == 1
    for (x, k), response in zip(inputs, responses, strict=True):
        np.testing.assert_array_equal(outputs_of(response)["y"], 2 * x + k)
        np.testing.assert_array_equal(outputs_of(response)["z"], x)


def test_each_request_gets_the_outputs_it_asked_for(version_folder: Path) -> None:
    model = load(version_folder, onnx_models.affine(), AFFINE_CONFIG)
    one = np.ones((1, 2), np.float32)
    responses = model.execute([request(["z"], x=one, k=one), request(["y"], x=one, k=one)])
    assert [list(outputs_of(response)) for response in responses] == [["z"], ["y"]]


def test_a_model_without_batching_runs_request_by_request(version_folder: Path) -> None:
    config = {"max_batch_size": 0, "input": [], "output": []}
    for kind, name in (("input", "x"), ("output", "y")):
        config[kind] = [{"name": name, "data_type": "TYPE_INT64", "dims": ["-1", "-1"]}]
    model = load(version_folder, onnx_models.identity(TensorProto.INT64), config)
    model._session = CountingSession(model._session)
    arrays = [np.arange(6).reshape(2, 3), np.ones((2, 3), np.int64)]
    responses = model.execute([request(["y"], x=array) for array in arrays])
    assert model._session.num_runs == 2
    for array, response in zip(arrays, responses, strict=True):
        np.testing.assert_array_equal(outputs_of(response)["y"], array)


@pytest.mark.parametrize("data_type", sorted(backend.TRITON_TYPES.values()))
def test_every_type_passes_through(data_type: str, version_folder: Path) -> None:
    numpy_type = pb.triton_string_to_numpy(data_type)
    array = np.array([[0, 1], [1, 0]]).astype(numpy_type)
    if data_type == "TYPE_STRING":
        array = np.array([[b"", "你好".encode()], [b"a\0b", b"c"]], dtype=object)
    element_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type))
    proto = onnx_models.identity(element_type)
    model = load(version_folder, proto, complete(version_folder, proto))
    [response] = model.execute([request(["y"], x=array)])
    result = outputs_of(response)["y"]
    expected = np.vectorize(bytes.decode, otypes=[object])(array) if data_type == "TYPE_STRING" else array
    assert result.dtype == array.dtype
    np.testing.assert_array_equal(result, expected)


def test_a_failing_request_does_not_harm_the_others_of_its_batch(version_folder: Path) -> None:
    proto = onnx_models.gather()
    model = load(version_folder, proto, complete(version_folder, proto))
    good, bad, also_good = model.execute([request(["y"], index=np.array([[i]])) for i in (0, 7, 2)])
    assert outputs_of(good)["y"] == [[10]]
    assert outputs_of(also_good)["y"] == [[30]]
    # Words and code of the C++ backend. Python's onnxruntime calls this one INVALID_ARGUMENT and the next one FAIL.
    assert bad.error().message().startswith("onnx runtime error 2: Non-zero status code returned while running Gather")
    assert bad.error().code() == pb.TritonError.INTERNAL


def test_inputs_that_do_not_fit_each_other_are_answered_in_the_other_backends_words(version_folder: Path) -> None:
    model = load(version_folder, onnx_models.affine(), AFFINE_CONFIG)
    [response] = model.execute([request(["y"], x=np.ones((1, 2), np.float32), k=np.ones((1, 3), np.float32))])
    assert (
        response.error().message().startswith("onnx runtime error 1: Non-zero status code returned while running Add")
    )
    assert response.error().code() == pb.TritonError.INTERNAL


def test_bytes_that_are_no_text_are_the_callers_fault(version_folder: Path) -> None:
    proto = onnx_models.identity(TensorProto.STRING)
    model = load(version_folder, proto, complete(version_folder, proto))
    [response] = model.execute([request(["y"], x=np.array([[b"\xff"]], dtype=object))])
    assert response.error().code() == pb.TritonError.INVALID_ARG


def _dims(dim: str, kinds: tuple[str, ...] = ("input", "output")) -> dict[str, Any]:
    return {kind: [{**entry, "dims": [dim]} for entry in AFFINE_CONFIG[kind]] for kind in kinds}


def _changed(kind: str, **change: Any) -> dict[str, Any]:
    """AFFINE_CONFIG with its first input or output changed."""
    first, second = AFFINE_CONFIG[kind]
    return {**AFFINE_CONFIG, kind: [{**first, **change}, second]}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_changed("input", name="w"), "the graph has no input 'w' (it has x, k)"),
        (_changed("output", name="w"), "the graph has no output 'w' (it has y, z)"),
        (_changed("input", data_type="TYPE_INT32"), "input 'x' is TYPE_INT32 in the config, TYPE_FP32 in the graph"),
        (
            _changed("input", dims=["-1", "2"]),
            "input 'x' has the shape [-1, -1, 2] in the config, [-1, -1] in the graph",
        ),
        (_changed("output", dims=["5"]), "output 'y' has the shape [-1, 5] in the config, [-1, -1] in the graph"),
        (_changed("input", allow_ragged_batch=True), "input 'x' has allow_ragged_batch, which needs the C++"),
        (_changed("input", optional=True), "input 'x' has optional, which no model that batches may have"),
        (
            _changed("input", optional=True) | {"max_batch_size": 0},
            "input 'x' has optional, which needs the C++ ONNX Runtime backend",
        ),
        (AFFINE_CONFIG | {"input": AFFINE_CONFIG["input"][:1]}, "the config has 1 inputs, the graph 2 (x, k)"),
        (AFFINE_CONFIG | {"sequence_batching": {"direct": {}}}, "sequence_batching needs the C++ ONNX Runtime backend"),
        (AFFINE_CONFIG | {"default_model_filename": "other.onnx"}, "there is no "),
        (with_parameters(execution_mode="2"), "parameter execution_mode is '2'; allowed is 0"),
        (
            with_parameters(intra_op_thread_count="two"),
            "parameter intra_op_thread_count is 'two'; allowed is an integer",
        ),
        (
            with_parameters(enable_mem_arena="yes"),
            "parameter enable_mem_arena is 'yes'; allowed is 1, 0, true or false",
        ),
    ],
)
def test_a_config_that_does_not_fit_is_refused_at_load(
    config: dict[str, Any], message: str, version_folder: Path
) -> None:
    with pytest.raises(pb.TritonModelException) as raised:
        load(version_folder, onnx_models.affine(), config)
    assert message in str(raised.value)
    assert "unable to load model 'tiny'" in str(raised.value)


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize(
    ("kind", "in_the_graph", "in_the_config", "fits"),
    [
        ("input", 3, 3, True),
        ("input", 3, -1, False),
        ("input", 3, 5, False),
        ("input", "length", -1, True),
        ("input", "length", 5, True),
        ("output", 3, 3, True),
        ("output", 3, -1, False),
        ("output", 3, 5, False),
        ("output", "length", -1, True),
        ("output", "length", 5, False),
    ],
)
def test_dimensions_fit_where_they_do_in_the_other_backend(
    kind: str, in_the_graph: int | str, in_the_config: int, fits: bool, batching: bool, version_folder: Path
) -> None:
    proto = onnx_models.identity(TensorProto.FLOAT, ("batch", in_the_graph))
    config = complete(version_folder, proto, max_batch_size=8)
    if not batching:
        config["max_batch_size"] = 0
        for entry in (*config["input"], *config["output"]):
            entry["dims"].insert(0, -1)
    [entry] = config[kind]
    entry["dims"][-1] = in_the_config
    if fits:
        load(version_folder, proto, config)
        return
    theirs = [-1, in_the_graph if isinstance(in_the_graph, int) else -1]
    with pytest.raises(pb.TritonModelException) as raised:
        load(version_folder, proto, config)
    assert f"{kind} '{entry['name']}' has the shape [-1, {in_the_config}] in the config, {theirs} in the graph" in str(
        raised.value
    )


@pytest.mark.parametrize(("dims", "fits"), [(["1"], True), (["1", "1"], True), (["2"], False), (["-1"], False)])
def test_a_scalar_of_the_graph_is_ones_in_the_config(dims: list[str], fits: bool, version_folder: Path) -> None:
    proto = onnx_models.identity(TensorProto.FLOAT, ())
    config = complete(version_folder, proto)
    config["input"][0]["dims"] = dims
    if fits:
        load(version_folder, proto, config)
        return
    with pytest.raises(pb.TritonModelException, match=r"input 'x' has the shape .* in the config, \[\] in the graph"):
        load(version_folder, proto, config)


def test_a_reshape_is_what_the_graph_is_compared_with(version_folder: Path) -> None:
    proto = onnx_models.identity(TensorProto.FLOAT, ("batch", 3, 1))
    config = complete(version_folder, proto)
    config["input"][0] |= {"dims": ["3"], "reshape": {"shape": ["3", "1"]}}
    load(version_folder, proto, config)
    config["input"][0] |= {"dims": ["3", "1"], "reshape": {"shape": ["3"]}}
    with pytest.raises(pb.TritonModelException, match=r"input 'x' has the shape \[-1, 3\] in the config"):
        load(version_folder, proto, config)


def test_a_config_may_leave_outputs_out(version_folder: Path) -> None:
    load(version_folder, onnx_models.affine(), AFFINE_CONFIG | {"output": AFFINE_CONFIG["output"][1:]})


@pytest.mark.parametrize("dynamic", ["x", "y"])
def test_batching_needs_a_dynamic_first_dimension(dynamic: str, version_folder: Path) -> None:
    fixed = {"x": "output 'y'", "y": "input 'x'"}[dynamic]
    dims = {name: ("batch" if name == dynamic else 2, 3) for name in ("x", "y")}
    proto = onnx_models.identity(TensorProto.FLOAT)
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, dims["x"]))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, dims["y"]))
    config = {"max_batch_size": 8, "input": [], "output": []}
    for kind, name in (("input", "x"), ("output", "y")):
        config[kind] = [{"name": name, "data_type": "TYPE_FP32", "dims": ["3"]}]
    with pytest.raises(pb.TritonModelException) as raised:
        load(version_folder, proto, config)
    assert f"max_batch_size is 8, but {fixed} has the shape [2, 3] in the graph" in str(raised.value)


def test_a_broken_file_is_named(version_folder: Path) -> None:
    (version_folder / "model.onnx").write_bytes(b"no onnx")
    model = backend.TritonPythonModel()
    arguments = {"model_config": json.dumps({"name": "tiny", **AFFINE_CONFIG}), "model_instance_kind": "CPU"}
    with pytest.raises(pb.TritonModelException, match=r"cannot open .*model\.onnx"):
        model.initialize(arguments)


def test_session_options_come_from_the_config() -> None:
    config = with_parameters(
        intra_op_thread_count="2",
        inter_op_thread_count="3",
        execution_mode="1",
        enable_mem_arena="0",
        enable_mem_pattern="false",
        **{"session.use_device_allocator_for_initializers": "1", "session.intra_op.allow_spinning": "false"},
    )
    options = backend._session_options({"name": "tiny", **config})
    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 3
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.use_device_allocator_for_initializers") == "1"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.fixture
def one_cpu() -> Iterator[int]:
    """The first CPU, as the only one that the test may use: ONNX Runtime's own choice would be those after it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield min(before)
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("count", ["0", "3"])
def test_threads_stay_on_the_cpus_of_the_process(count: str, one_cpu: int, version_folder: Path) -> None:
    others = set(TASKS.iterdir())
    model = load(version_folder, onnx_models.affine(), with_parameters(intra_op_thread_count=count))
    threads = set(TASKS.iterdir()) - others
    assert len(threads) == max(0, int(count) - 1)  # the caller is one of them
    assert all(os.sched_getaffinity(int(thread.name)) == {one_cpu} for thread in threads)
    del model  # which held the threads


@pytest.mark.parametrize(
    ("siblings", "num_threads"),
    [(["0-1", "0-1", "2-3", "2-3"], 2), (["0,2", "1,3", "0,2", "1,3"], 2), (["0", "1", "2", "3"], 4), ([], 4)],
    ids=["neighbours", "halves", "none", "hidden"],
)
def test_a_core_with_two_cpus_has_one_thread(
    siblings: list[str], num_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cpu, value in enumerate(siblings):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{value}\n", encoding="ascii")
    monkeypatch.setattr(backend, "TOPOLOGY", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    options = backend._session_options({"name": "tiny", **with_parameters(intra_op_thread_count="0")})
    assert options.intra_op_num_threads == num_threads


@pytest.mark.parametrize(("level", "name"), [(-1, "BASIC"), (0, "ALL"), (1, "EXTENDED"), (2, "DISABLE_ALL")])
def test_optimization_levels_are_those_of_the_other_backend(level: int, name: str) -> None:
    options = backend._session_options({"name": "tiny", "optimization": {"graph": {"level": level}}})
    assert options.graph_optimization_level.name.endswith(name)


def test_a_gpu_instance_needs_a_build_with_cuda(version_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    message = r"has no CUDAExecutionProvider .*: uninstall onnxruntime and install onnxruntime-gpu \(1\.27 or newer for"
    with pytest.raises(pb.TritonModelException, match=message):
        load(version_folder, onnx_models.affine(), AFFINE_CONFIG, kind="GPU")


class FakeGpuSession:
    """A session of a graph with the providers that ONNX Runtime was able to start."""

    started: tuple[str, ...] = ()

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[tuple[str, dict[str, str]]]) -> None:
        assert providers[0] == ("CUDAExecutionProvider", {"device_id": "0"})
        self.session = CPU_SESSION(path, options, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return [*self.started, "CPUExecutionProvider"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


@pytest.fixture
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """ONNX Runtime with CUDA; the order in which the backend uses it."""
    calls: list[str] = []

    def session(*arguments: Any, **named: Any) -> FakeGpuSession:
        calls.append("open")
        return FakeGpuSession(*arguments, **named)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: calls.append("preload"), raising=False)
    monkeypatch.setattr(ort, "InferenceSession", session)
    return calls


def test_a_gpu_instance_loads_the_cuda_libraries_of_pip_first(
    version_folder: Path, gpu_build: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGpuSession, "started", ("CUDAExecutionProvider",))
    load(version_folder, onnx_models.affine(), AFFINE_CONFIG, kind="GPU")
    assert gpu_build == ["preload", "open"]


def test_a_gpu_instance_loads_where_onnxruntime_cannot_preload(
    version_folder: Path, gpu_build: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeGpuSession, "started", ("CUDAExecutionProvider",))
    monkeypatch.delattr(ort, "preload_dlls")
    load(version_folder, onnx_models.affine(), AFFINE_CONFIG, kind="GPU")
    assert gpu_build == ["open"]


@pytest.mark.usefixtures("gpu_build")
def test_a_gpu_instance_that_would_run_on_the_cpu_is_refused(version_folder: Path) -> None:
    with pytest.raises(pb.TritonModelException, match=r"could not start CUDAExecutionProvider \(it has CPUExec"):
        load(version_folder, onnx_models.affine(), AFFINE_CONFIG, kind="GPU")


def test_gpu_providers_come_from_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"])
    accelerators = [
        {
            "name": "tensorrt",
            "parameters": {"precision_mode": "FP16", "max_workspace_size_bytes": "1024", "trt_dla_core": "0"},
        },
        {"name": "cuda", "parameters": {"use_tf32": "0"}},
    ]
    config = {
        "name": "tiny",
        **with_parameters(cudnn_conv_algo_search="1", gpu_mem_limit="4096"),
        "optimization": {"execution_accelerators": {"gpu_execution_accelerator": accelerators}},
    }
    tensorrt, cuda = backend._gpu_providers(config, "3")
    assert tensorrt == (
        "TensorrtExecutionProvider",
        {"trt_fp16_enable": "1", "trt_max_workspace_size": "1024", "trt_dla_core": "0", "device_id": "3"},
    )
    assert cuda == (
        "CUDAExecutionProvider",
        {"cudnn_conv_algo_search": "HEURISTIC", "gpu_mem_limit": "4096", "use_tf32": "0", "device_id": "3"},
    )


@pytest.mark.parametrize(
    ("accelerator", "message"),
    [
        ({"name": "warp"}, "unknown gpu_execution_accelerator 'warp'"),
        ({"name": "tensorrt", "parameters": {"precision_mode": "FP8"}}, "precision_mode is 'FP8'"),
        ({"name": "tensorrt", "parameters": {"workspace": "1"}}, "unknown parameter 'workspace'"),
    ],
)
def test_unknown_accelerators_are_refused(accelerator: dict[str, Any], message: str) -> None:
    config = {"name": "tiny", "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}}}
    with pytest.raises(pb.TritonModelException, match=message):
        backend._gpu_providers(config, "0")


def test_the_backend_stands_alone(version_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This project's package traces its calls where it is there, and is not missed where it is not."""
    for name in ("chattts_serving", "chattts_serving.triton", "chattts_serving.triton.tracing"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys.modules[__name__], "backend", pb.load_model(BACKEND))
    model = load(version_folder, onnx_models.affine(), AFFINE_CONFIG)
    array = np.ones((1, 3), np.float32)
    (response,) = model.execute([request(["z"], x=array, k=array)])
    assert outputs_of(response)["z"].tolist() == array.tolist()
    model.finalize()
