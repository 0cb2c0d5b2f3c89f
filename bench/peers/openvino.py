"""OpenVINO: a graph of Llama as its converter for PyTorch leaves it, whose keys and values are states.

The CPU plugin has nodes for RMSNorm, rotary positions and attention over states, and puts them in place of what is
written here. All sequences of a batch are as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as op
from openvino.op.util import Variable, VariableInfo

from bench.peers.weights import Codes, Floats, Weights
from chattts_serving.engine.gpt_config import rope_tables

PRECISIONS = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"},
    "int8": {"INFERENCE_PRECISION_HINT": "f32"},  # the rest is its default: a cache of 8 bits, rows rounded to 8 bits
}
INPUTS = ("embeddings", "cosines", "sines", "mask", "beams")


class OpenVinoSystem:
    """A `System`."""

    def __init__(self, weights: Weights, precision: str, threads: int) -> None:
        """Compile the model."""
        self._weights = weights
        self._cosines, self._sines = rope_tables(weights.config)
        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **PRECISIONS[precision]}
        self._compiled = ov.Core().compile_model(_Graph(weights, precision == "int8").model, "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._length = 0

    def begin(self, codes: Codes, room: int) -> None:  # noqa: ARG002  # states grow as they must
        """As `System`."""
        self._request = self._compiled.create_infer_request()
        self._length = 0
        tokens = codes.shape[1]
        mask = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
        self._infer(self._weights.embed(codes), mask)

    def step(self, codes: Codes) -> Floats:
        """As `System`."""
        return self._infer(self._weights.embed(codes[:, None]), np.zeros((1, self._length + 1), np.float32))[:, 0]

    def _infer(self, embeddings: Floats, mask: Floats) -> Floats:
        """Embeddings [n, tokens, hidden] and mask [tokens, all tokens] -> logits [n, tokens, outputs]."""
        count = len(embeddings)
        first, self._length = self._length, self._length + embeddings.shape[1]
        shared = (self._cosines[first : self._length], self._sines[first : self._length], mask)
        values = (
            embeddings,
            *(np.broadcast_to(rows, (count, 1, *rows.shape)) for rows in shared),
            np.arange(count, dtype=np.int32),
        )
        self._request.infer(dict(zip(INPUTS, values, strict=True)))
        logits: Floats = self._request.get_output_tensor().data.copy()
        return logits


class _Graph:
    """Builds the model.

    Attributes:
        model: what is compiled.
    """

    def __init__(self, weights: Weights, in_8_bits: bool) -> None:
        self._config, self._in_8_bits = weights.config, in_8_bits
        hidden, head_dim = self._config.hidden_size, self._config.head_dim
        shapes = ([-1, -1, hidden], [-1, 1, -1, head_dim], [-1, 1, -1, head_dim], [-1, 1, -1, -1], [-1])
        inputs = [op.parameter(shape, np.float32) for shape in shapes[:-1]] + [op.parameter(shapes[-1], np.int32)]
        for value, name in zip(inputs, INPUTS, strict=True):
            value.output(0).set_names({name})
        x, self._cosines, self._sines, self._mask, self._beams = inputs
        self._batch = op.gather(op.shape_of(x), _ints(0), op.constant(np.int64(0)))
        self._sinks: list[Any] = []
        for layer in range(self._config.num_layers):
            x = self._layer(x, weights, layer)
        x = self._linear(self._norm(x, weights.tensor("norm")), weights.tensor("head_code"))
        self.model = ov.Model([op.result(x)], self._sinks, inputs, "gpt")

    def _layer(self, x: Any, weights: Weights, layer: int) -> Any:
        def tensor(name: str) -> Floats:
            return weights.tensor(f"layers.{layer}.{name}")

        normed = self._norm(x, tensor("input_norm"))
        query, key, value = (self._heads(self._linear(normed, part)) for part in np.split(tensor("qkv"), 3))
        key, value = self._cached(f"keys{layer}", self._rotate(key)), self._cached(f"values{layer}", value)
        attended = op.scaled_dot_product_attention(self._rotate(query), key, value, self._mask)
        attended = op.reshape(op.transpose(attended, _ints(0, 2, 1, 3)), _ints(0, 0, self._config.hidden_size), True)
        x = op.add(x, self._linear(attended, tensor("o")))
        normed = self._norm(x, tensor("post_norm"))
        gate, up = (self._linear(normed, part) for part in np.split(tensor("gate_up"), 2))
        return op.add(x, self._linear(op.multiply(op.swish(gate), up), tensor("down")))

    def _linear(self, x: Any, weight: Floats) -> Any:
        if not self._in_8_bits:
            return op.matmul(x, op.constant(np.ascontiguousarray(weight)), False, True)
        scales = np.abs(weight).max(1, keepdims=True) / np.float32(127)
        integers = op.constant(np.rint(weight / scales).astype(np.int8))
        return op.matmul(x, op.multiply(op.convert(integers, "f32"), op.constant(scales)), False, True)

    def _norm(self, x: Any, weight: Floats) -> Any:
        mean = op.reduce_mean(op.power(x, _float(2.0, 3)), _ints(-1), keep_dims=True)
        root = op.sqrt(op.add(mean, _float(self._config.rms_norm_eps, 3)))
        return op.multiply(op.multiply(x, op.divide(_float(1.0, 3), root)), op.constant(weight[None, None]))

    def _heads(self, x: Any) -> Any:
        split = op.reshape(x, _ints(0, 0, self._config.num_heads, self._config.head_dim), True)
        return op.transpose(split, _ints(0, 2, 1, 3))

    def _rotate(self, x: Any) -> Any:
        half = self._config.head_dim // 2

        def part(first: int, last: int) -> Any:
            return op.slice(x, _ints(first), _ints(last), _ints(1), _ints(3))

        turned = op.concat([op.multiply(part(half, 2**31 - 1), _float(-1.0, 4)), part(0, half)], -1)
        return op.add(op.multiply(x, self._cosines), op.multiply(turned, self._sines))

    def _cached(self, name: str, new: Any) -> Any:
        """The state `name` [n, heads, tokens, head_dim], longer by `new`."""
        heads, head_dim = self._config.num_heads, self._config.head_dim
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = (
            ov.PartialShape([-1, heads, -1, head_dim]),
            ov.Type.f32,
            name,
        )
        variable = Variable(info)
        empty = op.broadcast(_float(0.0, 0), op.concat([self._batch, _ints(heads, 0, head_dim)], 0))
        past = op.gather(op.read_value(empty, variable), self._beams, op.constant(np.int64(0)))
        whole = op.concat([past, new], 2)
        self._sinks.append(op.assign(whole, variable))
        return whole


def _ints(*values: int) -> Any:
    return op.constant(np.array(values, np.int64))


def _float(value: float, rank: int) -> Any:
    return op.constant(np.full((1,) * rank, value, np.float32))
