"""ONNX models of one operator each, with what the runtime fuses into it: what isolated timing measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from autoprune.latencies import Geometry


@dataclass(frozen=True, kw_only=True)
class Operator:
    """Nodes that compute `y` from an input `x` of a shape, and their weights by name."""

    shape: list[int]
    nodes: list[NodeProto]
    weights: dict[str, np.ndarray] = field(default_factory=dict)


@cache
def single_operator(geometry: Geometry, batch: int) -> tuple[bytes, np.ndarray]:
    """Return an ONNX model of one operator with what is fused into it, and an input for it."""
    rng = np.random.default_rng(0)
    operator = _OPERATORS.get(geometry.op, _relu)(geometry, batch, rng)
    fused, output = _fused(geometry.fused)
    graph = helper.make_graph(
        [*operator.nodes, *fused],
        "operator",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, operator.shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, name) for name, weight in operator.weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString(), rng.standard_normal(operator.shape, dtype=np.float32)


def _fused(steps: str) -> tuple[list[NodeProto], str]:
    """Nodes of fused `steps` such as `relu+add`, from `y` on, and the name of their output."""
    nodes, value = [], "y"
    for step in filter(None, steps.split("+")):
        kind, inputs, suffix = ("Add", [value, value], "a") if step == "add" else ("Relu", [value], "r")
        value += suffix
        nodes.append(helper.make_node(kind, inputs, [value]))
    return nodes, value


def _image(g: Geometry, batch: int) -> list[int]:
    """Shape of the input of a strided operator."""
    stride = _stride(g)
    return [batch, g.c_in, g.out_rows * stride[0], g.out_columns * stride[-1]]


def _stride(g: Geometry) -> tuple[int, ...]:
    return g.stride or (1, 1)


def _conv(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    weight = rng.standard_normal((g.c_out, g.c_in // g.groups, *g.kernel)).astype(np.float32)
    pads = [size // 2 for size in g.kernel] * 2
    options: dict[str, Any] = {"kernel_shape": g.kernel, "strides": _stride(g), "pads": pads, "group": g.groups}
    node = helper.make_node("Conv", ["x", "w"], ["y"], **options)
    return Operator(shape=_image(g, batch), nodes=[node], weights={"w": weight})


def _linear(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    if g.out_columns > 1:  # of every token
        weight = rng.standard_normal((g.c_in, g.c_out)).astype(np.float32)
        node, shape = helper.make_node("MatMul", ["x", "w"], ["y"]), [batch, g.out_columns, g.c_in]
    else:
        weight = rng.standard_normal((g.c_out, g.c_in)).astype(np.float32)
        node, shape = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1), [batch, g.c_in]
    return Operator(shape=shape, nodes=[node], weights={"w": weight})


def _attention(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["products"]),
        helper.make_node("Softmax", ["products"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "x"], ["y"]),
    ]
    return Operator(shape=[batch, g.groups, g.out_columns, g.c_in], nodes=nodes)


def _layer_norm(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    node = helper.make_node("LayerNormalization", ["x", "w"], ["y"])
    weights = {"w": np.ones(g.c_in, dtype=np.float32)}
    return Operator(shape=[batch, max(g.out_columns, 1), g.c_in], nodes=[node], weights=weights)


def _transpose(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    node = helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1, 3])
    return Operator(shape=[batch, max(g.c_in, 1), max(g.out_rows, 1), max(g.out_columns, 1)], nodes=[node])


def _lstm(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    hidden, direction = g.c_out // g.groups, "forward" if g.groups == 1 else "bidirectional"
    weights = {
        name: rng.standard_normal((g.groups, 4 * hidden, size)).astype(np.float32)
        for name, size in (("w", g.c_in), ("r", hidden))
    }
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=hidden, direction=direction)
    return Operator(shape=[g.out_columns, batch, g.c_in], nodes=[node], weights=weights)


def _pool(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    kind = "MaxPool" if g.op == "max_pool2d" else "AveragePool"
    node = helper.make_node(kind, ["x"], ["y"], kernel_shape=g.kernel, strides=_stride(g))
    return Operator(shape=_image(g, batch), nodes=[node])


def _global_pool(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    return Operator(shape=[batch, g.c_in, 7, 7], nodes=[helper.make_node("GlobalAveragePool", ["x"], ["y"])])


def _relu(g: Geometry, batch: int, rng: np.random.Generator) -> Operator:
    shape = [batch, g.c_in, max(g.out_rows, 1), max(g.out_columns, 1)]
    return Operator(shape=shape, nodes=[helper.make_node("Relu", ["x"], ["y"])])


_OPERATORS: dict[str, Callable[[Geometry, int, np.random.Generator], Operator]] = {
    "conv2d": _conv,
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "layer_norm": _layer_norm,
    "transpose": _transpose,
    "permute": _transpose,
    "unbind": _transpose,
    "lstm": _lstm,
    "max_pool2d": _pool,
    "avg_pool2d": _pool,
    "mean": _global_pool,
    "adaptive_avg_pool2d": _global_pool,
}
"""Every other operator is an activation."""
