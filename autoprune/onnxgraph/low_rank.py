"""ONNX layers of two factors in the place of one with a whole weight, for timing: the factors may be any numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from autoprune.onnxgraph.export import plain_name
from autoprune.onnxgraph.layer_steps import OnnxLayer, onnx_layers, weight_of
from autoprune.structure.low_rank import factor_names, own_bias, treatments_of_factors
from autoprune.treatments import Treatment, replaces

_FIRST = "/first_factor"
"""Ends the names of what comes before the node of the whole layer, whose time both share (see `node_times`)."""


def split_layers(graph: onnx.GraphProto, treatments: Mapping[str, Treatment]) -> dict[str, Treatment]:
    """Replace the weights of layers with ranks by factors, in place, and return the treatments of what is then there.

    A file of a model that has factors already is left alone, and so are layers that are too narrow for their rank.
    """
    layers, ranks = {layer.name: layer for layer in onnx_layers(graph).values()}, {}
    for name, treatment in treatments.items():
        if treatment.rank and factor_names(name)[0] in layers:
            ranks[name] = treatment.rank
        elif treatment.rank and name in layers:
            weight = weight_of(layers[name], {i.name: i for i in graph.initializer})
            if replaces(treatment.rank, len(weight), weight[0].size):
                _split(graph, layers[name], weight, treatment.rank)
                ranks[name] = treatment.rank
    return treatments_of_factors(treatments, ranks)


def _split(graph: onnx.GraphProto, layer: OnnxLayer, weight: np.ndarray, rank: int) -> None:
    """Put two nodes in the place of one; their names are those that an export of such a model has."""
    position = next(i for i, node in enumerate(graph.node) if layer.output in node.output)
    whole = graph.node[position]
    suffix = layer.stored.removeprefix(plain_name(layer.stored))
    names = [name + suffix for name in factor_names(layer.name)]
    # Any numbers do, as long as activations stay in range.
    second = np.full((len(weight), rank, *[1] * (weight.ndim - 2)), 1 / rank, weight.dtype)
    for name, factor in zip(names, (weight[:rank], second), strict=True):
        stored = factor if layer.axis == 0 else factor.T
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(stored), name))
    first = onnx.NodeProto()
    first.CopyFrom(whole)
    first.name, first.output[0] = whole.name + _FIRST, layer.output + _FIRST
    first.input[:] = [whole.input[0], names[0]]
    whole.input[0], whole.input[1] = first.output[0], names[1]
    if whole.op_type == "Conv":
        del whole.attribute[:]
    nodes = [*graph.node[:position], first, *graph.node[position:]]
    del graph.node[:]
    graph.node.extend(nodes)
    _rename_bias(graph, layer)
    _drop(graph, layer.stored)


def _rename_bias(graph: onnx.GraphProto, layer: OnnxLayer) -> None:
    """Let the layer's own bias have the name that it has beside the second factor."""
    old, new = own_bias(layer.name)
    for initializer in graph.initializer:
        initializer.name = new if initializer.name == old else initializer.name
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


def _drop(graph: onnx.GraphProto, name: str) -> None:
    read = any(name in node.input for node in graph.node)
    kept = [initializer for initializer in graph.initializer if read or initializer.name != name]
    del graph.initializer[:]
    graph.initializer.extend(kept)
