"""Tiny ONNX models and model repositories of them, for tests of the server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper

Dims = Sequence[int | str | None]


def affine(dims: Dims = ("batch", "length"), element_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """y = 2 x + k and z = x, all of one shape: two inputs, two outputs."""
    two = helper.make_tensor("two", element_type, [], [2])
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["doubled"]),
        helper.make_node("Add", ["doubled", "k"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    return model(
        nodes,
        {"x": (element_type, dims), "k": (element_type, dims)},
        {"y": (element_type, dims), "z": (element_type, dims)},
        [two],
    )


def identity(element_type: int, dims: Dims = ("batch", "length")) -> onnx.ModelProto:
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return model([node], {"x": (element_type, dims)}, {"y": (element_type, dims)})


def gather() -> onnx.ModelProto:
    """y = table[index] for a table of 3 numbers: an index out of range fails while the graph runs."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10, 20, 30])
    node = helper.make_node("Gather", ["table", "index"], ["y"])
    dims = ("batch", 1)
    return model([node], {"index": (TensorProto.INT64, dims)}, {"y": (TensorProto.FLOAT, dims)}, [table])


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[int, Dims]],
    outputs: dict[str, tuple[int, Dims]],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A checked model of `nodes`; tensors are given as element type and dimensions."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        list(initializers),
    )
    result = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(result)
    return result


def add_model(repository: Path, name: str, proto: onnx.ModelProto, config: str = "") -> Path:
    """Put an ONNX model into a model repository; the path of its folder."""
    folder = repository / name
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(proto.SerializeToString())
    (folder / "config.pbtxt").write_text(f'platform: "onnxruntime_onnx"\n{config}', encoding="utf-8")
    return folder
