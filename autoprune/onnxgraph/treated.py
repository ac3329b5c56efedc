"""ONNX files in which layers are treated: int8 with calibrated ranges, or layer by layer (`local_treatments`).

An int8 layer is written as pairs of QuantizeLinear and DequantizeLinear (QDQ) around the fp32 operator, from which
ONNX Runtime makes its int8 kernels. `Placement` says which tensors are int8, and the weights are those of the file:
batch norms have been folded into them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from autoprune.errors import StructureError
from autoprune.onnxgraph.export import plain_name
from autoprune.onnxgraph.layer_steps import CLIPS, OnnxLayer, onnx_layers, recurrent_name, steps_of_onnx, weight_of
from autoprune.onnxgraph.local_treatments import RUNTIME_DOMAIN, LocalNodes, int8_dynamic_lstm, local_nodes
from autoprune.onnxgraph.low_rank import split_layers
from autoprune.quantization.arithmetic import DEFAULT_ARITHMETIC, Arithmetic
from autoprune.quantization.grid import Range, RoundedWeight, nearest, rounded_bias
from autoprune.structure.placement import Placement
from autoprune.treatments import DENSE, INT8, INT8_DYNAMIC, Treatment

_DEQUANTIZED = "_DequantizeLinear_Output"
_QUANTIZED = "_quantized"

_ROUNDED_BY_RUNTIME = frozenset({"Conv", "ConvTranspose", "Gemm"})
"""Operators whose fp32 weights ONNX Runtime rounds to int8 by itself (one scale for the whole weight) where they read a
value that is dequantized with one scale; with a scale for every channel, all of them equal, it leaves them alone."""

_KEEP = "Keep it in fp32"

_STAND_INS = {True: Range(low=0.0, high=1.0), False: Range(low=-1.0, high=1.0)}
"""Ranges for timing, by whether the tensor comes out of a relu, which the runtime only folds into int8 steps from 0."""


def treated(
    model: onnx.ModelProto | Path,
    treatments: Mapping[str, Treatment],
    ranges: Mapping[str, Range] | None = None,
    weights: Mapping[str, RoundedWeight] | None = None,
    arithmetic: Arithmetic = DEFAULT_ARITHMETIC,
) -> onnx.ModelProto:
    """Return a copy of an exported model whose layers are treated.

    Args:
        model: an export of `export_onnx`, or one of `Resizer.resize`, in fp32; or the file of one. Layers with ranks
            have factors already, or get factors that take their time and mean nothing.
        treatments: by the names of layers; layers that the graph does not have were removed and are passed over.
        ranges: of the int8 tensors by their keys (`Placement.keys`). Without them the file is valid and takes its
            time, but its numbers mean nothing.
        weights: rounded weights and their biases by the names of layers; others are rounded to the nearest step.
        arithmetic: of the device, for weights that are rounded here.

    Raises:
        StructureError: a weight is in the file, but no operator that can be treated so multiplies with it; a range is
            missing.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(onnx.load(str(model)) if isinstance(model, Path) else model)
    del copied.graph.value_info[:]  # types of values change
    split = split_layers(copied.graph, treatments)
    _Writer(copied.graph, split, ranges, weights or {}, arithmetic).write()
    if any(node.domain == RUNTIME_DOMAIN for node in copied.graph.node):
        domains = {entry.domain for entry in copied.opset_import}
        copied.opset_import.extend([helper.make_opsetid(RUNTIME_DOMAIN, 1)] if RUNTIME_DOMAIN not in domains else [])
    return copied


class _Writer:
    """Edits one graph: nodes in their order, with conversions of values after the nodes that write them."""

    def __init__(
        self,
        graph: onnx.GraphProto,
        treatments: Mapping[str, Treatment],
        ranges: Mapping[str, Range] | None,
        weights: Mapping[str, RoundedWeight],
        arithmetic: Arithmetic,
    ) -> None:
        self._graph = graph
        self._layers = onnx_layers(graph)
        self._stored = {initializer.name: initializer for initializer in graph.initializer}
        _require_layers(treatments, [*self._layers.values()], graph)
        self._int8 = {name for name, treatment in treatments.items() if treatment == INT8}
        self._local = {name: treatment for name, treatment in treatments.items() if treatment.is_local}
        self._weights, self._arithmetic = dict(weights), arithmetic
        self._placement = Placement(steps_of_onnx(graph))
        self._ranges = _ranges(self._placement, self._int8, ranges, graph)
        self._at = {value: tensor for tensor in self._ranges for value in self._placement.quantized_at(tensor)}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._dequantized: dict[str, str] = {}
        self._pairs: dict[str, tuple[str, list[str]]] = {}
        self._per_channel: set[str] = set()
        self._int8_products: set[str] = set()
        self._new_biases: dict[str, tuple[str, str]] = {}
        self._taken = {*self._stored, *(name for node in graph.node for name in (*node.input, *node.output))}

    def write(self) -> None:
        """Rewrite all nodes, and the constants that they read."""
        for entry in self._graph.input:
            self._convert(entry.name, entry.name)
        outputs = {entry.name for entry in self._graph.output} & self._at.keys()
        for node in list(self._graph.node):
            layer = self._layers.get(node.output[0])
            before, bias = self._new_biases.get(node.output[0], ("", ""))
            node.input[:] = [bias if name == before else self._dequantized.get(name, name) for name in node.input]
            if layer is not None and layer.name in self._int8:
                self._treat(layer, node)
                self._int8_products |= {node.output[0]} if node.op_type == "Gemm" else set()
            elif node.op_type in _ROUNDED_BY_RUNTIME and node.input[0] in self._pairs:
                self._keep_fp32(node)
            if node.op_type in CLIPS and node.input[0] in self._int8_products and node.output[0] not in self._at:
                self._keep_apart(node)
            values = list(node.output)
            node.output[:] = [f"{name}_fp32" if name in outputs else name for name in values]
            if layer is not None and layer.name in self._local:
                self._treat_alone(layer, node)
            elif recurrent_name(node) in self._local:
                self._take(int8_dynamic_lstm(node, self._stored, self._arithmetic.largest_weight))
            else:
                self._nodes.append(node)
            for value, written in zip(values, node.output, strict=True):
                self._convert(value, written)
        read = {name for node in self._nodes for name in node.input} | {entry.name for entry in self._graph.output}
        self._nodes = [node for node in self._nodes if node.op_type != "DequantizeLinear" or node.output[0] in read]
        kept = [initializer for name, initializer in self._stored.items() if name in read]
        made = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        del self._graph.node[:], self._graph.initializer[:]
        self._graph.node.extend(self._nodes)
        self._graph.initializer.extend([*kept, *made])

    def _convert(self, value: str, written: str) -> None:
        """Quantize and dequantize a value that is written under another name where it is an output of the model."""
        if value not in self._at:
            return
        tensor = self._at[value]
        constants = [self._unused(f"{tensor}_scale"), self._unused(f"{tensor}_zero_point")]
        of_tensor = self._ranges[tensor]
        self._constants[constants[0]] = np.array(of_tensor.scale, np.float32)
        self._constants[constants[1]] = np.array(of_tensor.zero_point, np.uint8)
        int8 = self._unused(f"{value}_QuantizeLinear_Output")
        back = self._unused(value + _DEQUANTIZED) if value == written else value
        self._add("QuantizeLinear", [written, *constants], int8)
        self._add("DequantizeLinear", [int8, *constants], back)
        self._dequantized[value] = back
        self._pairs[back] = (int8, constants)

    def _keep_fp32(self, node: onnx.NodeProto) -> None:
        """Let an fp32 layer read its int8 input with a scale for every channel (see `_ROUNDED_BY_RUNTIME`)."""
        if node.input[1] not in self._stored:
            return
        weight, attributes = self._stored[node.input[1]], {a.name: a.i for a in node.attribute}
        inputs_at = attributes.get("transB", 0) if node.op_type == "Gemm" else int(node.op_type == "Conv")
        channels = weight.dims[inputs_at] * (attributes.get("group", 1) if node.op_type == "Conv" else 1)
        int8, constants = self._pairs[node.input[0]]
        each = [f"{name}_each" for name in constants]
        back = self._unused(f"{int8}_each{_DEQUANTIZED}")
        if back not in self._per_channel:
            self._per_channel.add(back)
            self._constants |= {n: np.full(channels, self._constants[o]) for o, n in zip(constants, each, strict=True)}
            self._add("DequantizeLinear", [int8, *each], back, axis=1)
        node.input[0] = back

    def _keep_apart(self, clip: onnx.NodeProto) -> None:
        """Write a relu or a clip as a maximum and a minimum.

        ONNX Runtime takes a Gemm and a relu for one fp32 operator, and a Gemm before a clip for no int8 layer.
        """
        (value, *limits), kept = clip.input, clip.output[0]
        if not limits:
            limits = [self._unused(f"{kept}_lowest")]
            self._constants[limits[0]] = np.array(0, np.float32)
        steps = [(kind, limit) for kind, limit in zip(("Max", "Min"), limits, strict=False) if limit]
        for kind, limit in steps[:-1]:
            within = self._unused(f"{kept}_within")
            self._add(kind, [value, limit], within)
            value = within
        if steps:
            clip.op_type, limit = steps[-1]
            clip.input[:] = [value, limit]

    def _unused(self, name: str) -> str:
        """Return a name that the exported graph does not have, always the same one for the same wish."""
        while name in self._taken:
            name += "_"
        return name

    def _add(self, op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))

    def _treat(self, layer: OnnxLayer, node: onnx.NodeProto) -> None:
        """Let the node of an int8 layer read its weight and its bias out of the grid."""
        read = self._placement.steps[layer.output].inputs[0]
        input_scale = self._ranges[self._placement.tensor_of(read)].scale
        if layer.name not in self._weights:
            bias = numpy_helper.to_array(self._stored[layer.bias]) if layer.bias else None
            weight, largest = weight_of(layer, self._stored), self._arithmetic.largest_weight
            self._weights[layer.name] = nearest(weight, bias, input_scale, largest_weight=largest)
        rounded = self._weights[layer.name]
        steps = rounded.steps if layer.axis == 0 else np.ascontiguousarray(rounded.steps.T)
        node.input[1] = self._dequantize(layer.stored, steps, rounded.scales, axis=layer.axis)
        if rounded.bias is None:
            return
        if layer.addition_bias:
            name = self._unused(f"{layer.addition_bias}_{layer.output}")
            self._constants[name] = rounded.bias
            self._new_biases[layer.addition] = (layer.addition_bias, name)
        elif layer.op_type == "MatMul":
            raise StructureError(f"{layer.name!r} cannot be int8: its ONNX file does not add its bias. {_KEEP}")
        else:
            # The exporter leaves out a bias of zeros, which the correction has changed.
            sums, scales = rounded_bias(rounded.bias, rounded.scales, input_scale)
            name = f"{layer.bias or layer.stored + '_bias'}_{layer.output}"
            node.input[2:] = [self._dequantize(name, sums, scales, axis=0)]

    def _treat_alone(self, layer: OnnxLayer, node: onnx.NodeProto) -> None:
        """Add the nodes that take the place of a layer's, which reads and writes fp32."""
        precision, weight = self._local[layer.name].precision, weight_of(layer, self._stored)
        self._take(
            local_nodes(node, precision, weight, stored=layer.stored, bias=layer.bias, arithmetic=self._arithmetic)
        )

    def _take(self, written: LocalNodes) -> None:
        self._nodes += written.nodes
        self._constants |= written.constants

    def _dequantize(self, name: str, steps: np.ndarray, scales: np.ndarray, *, axis: int) -> str:
        """Return the name of stored steps as numbers; a weight that is read again is dequantized once."""
        stored, back, scale, zero_point = (
            self._unused(name + ending) for ending in (_QUANTIZED, _DEQUANTIZED, "_scale", "_zero_point")
        )
        if stored not in self._constants:
            self._constants |= {stored: steps, scale: scales, zero_point: np.zeros_like(scales, steps.dtype)}
            self._add("DequantizeLinear", [stored, scale, zero_point], back, axis=axis)
        return back


def _ranges(
    placement: Placement, int8: Collection[str], ranges: Mapping[str, Range] | None, graph: onnx.GraphProto
) -> dict[str, Range]:
    """Return the range of every int8 tensor by its name in the graph: the calibrated one, or a stand-in."""
    relus = {node.output[0] for node in graph.node if node.op_type in CLIPS}
    by_tensor, keys = {}, placement.keys(int8)
    for tensor in placement.int8_tensors(int8):
        key = keys[tensor]
        if ranges is None:
            by_tensor[tensor] = _STAND_INS[not relus.isdisjoint(placement.quantized_at(tensor))]
        elif key in ranges:
            by_tensor[tensor] = ranges[key]
        else:
            layer = key.rpartition(".")[0]
            raise StructureError(
                f"{layer!r} cannot be int8: its ONNX file has other steps around it than the model. {_KEEP}"
            )
    return by_tensor


def _require_layers(treatments: Mapping[str, Treatment], layers: Collection[OnnxLayer], graph: onnx.GraphProto) -> None:
    """Raise `StructureError` for a treatment that a layer cannot have, and for a weight that none multiplies with."""
    recurrent = {recurrent_name(node) for node in graph.node} - {""}
    linear = {layer.name for layer in layers if layer.is_linear}
    known = recurrent | {layer.name for layer in layers}
    in_file = {plain_name(initializer.name) for initializer in graph.initializer}
    for name, treatment in treatments.items():
        if name in in_file - known:
            raise StructureError(
                f"no convolution, matrix product or LSTM of the ONNX file multiplies with {name!r} alone"
            )
        if name in recurrent and treatment not in (DENSE, INT8_DYNAMIC):
            raise StructureError(f"an LSTM can be {INT8_DYNAMIC}; {name!r} is {treatment}")
        if treatment.is_local and name in known - recurrent - linear:
            raise StructureError(f"{treatment} is for linear layers; {name!r} is a convolution")
