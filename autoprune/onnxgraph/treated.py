"""ONNX files in which layers are treated: int8 with calibrated or dynamic ranges, weights of 8 or 4 bits.

An int8 layer is written as pairs of QuantizeLinear and DequantizeLinear (QDQ) around the fp32 operator, from which
ONNX Runtime makes its int8 kernels. `Placement` says which tensors are int8, and the weights are those of the file:
batch norms have been folded into them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from autoprune.errors import StructureError
from autoprune.onnxgraph.export import plain_name
from autoprune.onnxgraph.layer_steps import OnnxLayer, onnx_layers, steps_of_onnx, weight_of
from autoprune.quantization.grid import Range, RoundedWeight, nearest, rounded_bias
from autoprune.structure.placement import Placement
from autoprune.treatments import Treatment

_DEQUANTIZED = "_DequantizeLinear_Output"


def treated(
    model: onnx.ModelProto,
    treatments: Mapping[str, Treatment],
    ranges: Mapping[str, Range] | None = None,
    weights: Mapping[str, RoundedWeight] | None = None,
) -> onnx.ModelProto:
    """Return a copy of an exported model whose layers are treated.

    Args:
        model: an export of `export_onnx`, or one of `Resizer.resize`, in fp32.
        treatments: by the names of layers; layers that the graph does not have were removed and are passed over.
        ranges: of the int8 tensors by their keys (`Placement.keys`). Without them the file is valid and takes its
            time, but its numbers mean nothing.
        weights: rounded weights and their biases by the names of layers; others are rounded to the nearest step.

    Raises:
        StructureError: a weight is in the file, but no operator that can be treated so multiplies with it.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    del copied.graph.value_info[:]  # types of values change
    _Writer(copied.graph, treatments, ranges, weights or {}).write()
    return copied


def placement_of(model: onnx.ModelProto) -> Placement:
    """Return how the treatments of layers decide which values of an exported model are int8."""
    return Placement(steps_of_onnx(model.graph))


class _Writer:
    """Edits one graph: nodes in their order, with conversions of values after the nodes that write them."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        treatments: Mapping[str, Treatment],
        ranges: Mapping[str, Range] | None,
        weights: Mapping[str, RoundedWeight],
    ) -> None:
        self._graph = graph
        self._layers = onnx_layers(graph)
        self._stored = {initializer.name: initializer for initializer in graph.initializer}
        _require_layers(treatments, self._layers.values(), self._stored)
        self._treatments = treatments
        self._weights = weights
        self._placement = Placement(steps_of_onnx(graph))
        int8 = {name for name, treatment in treatments.items() if treatment.precision == "int8"}
        self._ranges = {
            tensor: self._stand_in(tensor) if ranges is None else ranges[self._placement.keys[tensor]]
            for tensor in self._placement.int8_tensors(int8)
        }
        self._at = {value: tensor for tensor in self._ranges for value in self._placement.quantized_at(tensor)}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._dequantized: dict[str, str] = {}

    def write(self) -> None:
        outputs = {entry.name for entry in self._graph.output}
        for entry in self._graph.input:
            self._convert(entry.name, entry.name)
        for node in list(self._graph.node):
            layer = self._layers.get(node.output[0])
            node.input[:] = [self._dequantized.get(name, name) for name in node.input]
            if layer is not None:
                self._treat(layer, node)
            written = list(node.output)
            for place, name in enumerate(written):
                if name in self._at and name in outputs:
                    node.output[place] = f"{name}_fp32"
            self._nodes.append(node)
            for name, new in zip(written, node.output, strict=True):
                self._convert(name, new, name if name != new else "")
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input}
        kept = [i for i in self._graph.initializer if i.name in read]
        del self._graph.initializer[:]
        self._graph.initializer.extend(kept)
        self._graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in self._constants.items())

    def _convert(self, name: str, written: str, output: str = "") -> None:
        """Quantize and dequantize a value; readers take the second. `output` names the result if it is given."""
        if name not in self._at:
            return
        tensor = self._at[name]
        scale, zero_point = f"{tensor}_scale", f"{tensor}_zero_point"
        of_tensor = self._ranges[tensor]
        self._constants[scale] = np.array(of_tensor.scale, np.float32)
        self._constants[zero_point] = np.array(of_tensor.zero_point, np.uint8)
        int8, back = f"{name}_QuantizeLinear_Output", output or name + _DEQUANTIZED
        self._add("QuantizeLinear", [written, scale, zero_point], int8)
        self._add("DequantizeLinear", [int8, scale, zero_point], back)
        self._dequantized[name] = back

    def _add(self, op_type: str, inputs: list[str], output: str, **attributes: int) -> None:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=f"{output}_{op_type}", **attributes))

    def _treat(self, layer: OnnxLayer, node: onnx.NodeProto) -> str:
        """Rewrite the node of a layer as its treatment says; return the name under which it writes its output."""
        precision = self._treatments[layer.name].precision if layer.name in self._treatments else "fp32"
        if precision == "int8":
            self._treat_int8(layer, node)
        return node.output[0]

    def _treat_int8(self, layer: OnnxLayer, node: onnx.NodeProto) -> None:
        read = self._placement.steps[layer.output].inputs[0]
        scale = self._ranges[self._placement.tensor_of(read)].scale
        rounded = self._rounded(layer, scale)
        stored, dequantized = f"{layer.stored}_quantized", layer.stored + _DEQUANTIZED
        if stored not in self._constants:  # else the layer is called again
            self._constants[stored] = self._as_stored(layer, rounded.steps)
            self._dequantize(stored, layer.stored, rounded.scales, axis=layer.axis)
        node.input[1] = dequantized
        if rounded.bias is None:
            return
        if node.op_type == "MatMul":
            self._set_addition(layer, rounded.bias)
            return
        bias = f"{layer.bias or layer.stored + '_bias'}"
        bias = bias if f"{bias}_quantized" not in self._constants else f"{bias}_{layer.output}"
        steps, scales = rounded_bias(rounded.bias, rounded.scales, scale)
        self._constants[f"{bias}_quantized"] = steps
        self._dequantize(f"{bias}_quantized", bias, scales, axis=0)
        node.input[2:] = [bias + _DEQUANTIZED]
