"""Layers with weights in an ONNX graph, and the graph's steps, which `Placement` decides about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from autoprune.onnxgraph.export import plain_name
from autoprune.structure.placement import Kind, Step

CLIPS = frozenset({"Relu", "Clip"})
"""Moves that are computed on the way out of the node before them."""

_MOVES = CLIPS | {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_JOINS = frozenset({"Add", "Concat"})

_PRODUCT_OF_LAYER = re.compile(r"val_\d+")
"""Name that the exporter gives to the product of a layer that it writes as product and addition of the bias.

The sum has the name of the layer's node. Where another parameter is added to a layer without a bias, the product has
that name.
"""


@dataclass(frozen=True, kw_only=True)
class OnnxLayer:
    """A node that multiplies with a stored weight.

    - `name`: of the weight in the state dict; `stored`: in the file; `output`: of what the node writes.
    - `op_type`: of the node.
    - `axis`: dimension of the stored weight that has the output channels.
    - `bias`: stored bias that the node adds itself, "" without one.
    - `addition`, `addition_bias`: output of the node that adds a bias to a product, and that bias; "" where none does.
    """

    name: str
    stored: str
    output: str
    op_type: str
    axis: int
    bias: str = ""
    addition: str = ""
    addition_bias: str = ""

    @property
    def is_linear(self) -> bool:
        """Whether the layer is a matrix product: its sums can become fp32 without a conversion."""
        return self.op_type != "Conv"


def onnx_layers(graph: onnx.GraphProto) -> dict[str, OnnxLayer]:
    """Return the layers of a graph by the names of their outputs, in order."""
    stored = {initializer.name: initializer for initializer in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    layers = {}
    for node in graph.node:
        weight = node.input[1] if node.op_type in ("Conv", "Gemm", "MatMul") else ""
        if weight not in stored or len(stored[weight].dims) < 2 or node.input[0] in stored:
            continue
        if node.op_type == "MatMul" and len(stored[weight].dims) != 2:
            continue
        addition, addition_bias = _addition(node, weight, readers, stored.keys())
        layers[node.output[0]] = OnnxLayer(
            name=plain_name(weight),
            stored=weight,
            output=node.output[0],
            op_type=node.op_type,
            axis=_output_axis(node),
            bias=node.input[2] if len(node.input) > 2 else "",
            addition=addition,
            addition_bias=addition_bias,
        )
    return layers


def recurrent_name(node: onnx.NodeProto) -> str:
    """Return the name of the layer that an LSTM is, that of its first weight; "" for any other node."""
    return plain_name(node.input[1]) if node.op_type == "LSTM" else ""


def weight_of(layer: OnnxLayer, weights: Mapping[str, onnx.TensorProto]) -> np.ndarray:
    """Return the weight of a layer with its output channels first, as the state dict has it."""
    weight = numpy_helper.to_array(weights[layer.stored])
    return weight if layer.axis == 0 else weight.T


def steps_of_onnx(graph: onnx.GraphProto) -> list[Step]:
    """Return the steps of a graph, each named after the value that it writes."""
    layers = onnx_layers(graph)
    constants = {i.name for i in graph.initializer} | {n.output[0] for n in graph.node if n.op_type == "Constant"}
    additions = {layer.addition for layer in layers.values()} - {""}
    readers = Counter(name for node in graph.node for name in node.input)
    steps = [Step(name=entry.name, kind="input") for entry in graph.input if entry.name not in constants]
    for node in graph.node:
        read = tuple(name for name in node.input if name and name not in constants)
        kind, is_bias = _kind(node, read), node.output[0] in additions and readers[read[0]] == 1
        layer = layers.get(node.output[0])
        if layer is not None:
            steps.append(
                Step(name=node.output[0], kind="layer", inputs=read[:1], layer=layer.name, writes_fp32=layer.is_linear)
            )
            continue
        if is_bias:
            kind = "moves"
        inputs = read[:1] if kind == "moves" else read
        fused = is_bias or node.op_type in CLIPS
        steps += [
            Step(name=name, kind=kind, inputs=inputs, fused=fused and kind == "moves") for name in node.output if name
        ]
    return [*steps, *(Step(name=f"output {o.name}", kind="output", inputs=(o.name,)) for o in graph.output)]


def _kind(node: onnx.NodeProto, read: Collection[str]) -> Kind:
    if node.op_type in _MOVES and read and len([name for name in node.output if name]) == 1:
        return "moves"
    return "join" if node.op_type in _JOINS and len({*read}) > 1 and len(read) == len(node.input) else "other"


def _output_axis(node: onnx.NodeProto) -> int:
    """Return the dimension of a stored weight that has an index for each output channel."""
    if node.op_type == "Gemm":
        return 0 if any(helper.get_attribute_value(a) for a in node.attribute if a.name == "transB") else 1
    return 1 if node.op_type == "MatMul" else 0


def _addition(
    node: onnx.NodeProto, weight: str, readers: Mapping[str, list[onnx.NodeProto]], stored: Collection[str]
) -> tuple[str, str]:
    """Return the output of the node that adds the layer's own bias to a product, and the bias; "" where none does."""
    following = readers.get(node.output[0], [])
    if node.op_type != "MatMul" or len(following) != 1 or following[0].op_type != "Add":
        return "", ""
    owner, _, leaf = plain_name(weight).rpartition(".")
    own = f"{owner}.{leaf.replace('weight', 'bias')}".lstrip(".")
    alone = _PRODUCT_OF_LAYER.fullmatch(node.output[0]) is not None
    biases = [name for name in following[0].input if name in stored and (alone or plain_name(name) == own)]
    return (following[0].output[0], biases[0]) if biases else ("", "")
