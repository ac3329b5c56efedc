"""The twin of a model in PyTorch that computes what its deployed file computes, int8 layers included.

Every int8 tensor is rounded to its grid where `Placement` quantizes it, and so are the weights of int8 layers, into
which batch norms are folded as the exporter does. All else runs in fp32, as in the file. Gradients pass straight
through the rounding, so that the twin can be trained.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoprune.errors import StructureError
from autoprune.quantization.arithmetic import level_of
from autoprune.quantization.grid import Array
from autoprune.quantization.local_layers import int8_dynamic_lstm, local_linear
from autoprune.quantization.numbers import Quantization
from autoprune.quantization.rounding import in_grid, weight_in_grid
from autoprune.structure import GraphModel, module_tensors
from autoprune.structure.placement import Placement

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A layer whose batch norm, where it has one, is part of it: weight `[O, ...]` and bias `[O]`.

    `nodes` are the layer's, `ends` the nodes that write its outputs: the batch norm's where there is one.
    """

    weight: Tensor
    bias: Tensor | None
    nodes: tuple[str, ...]
    ends: tuple[str, ...]


def folded_layers(model: GraphModel, placement: Placement, names: Collection[str]) -> dict[str, Folded]:
    """Return the layers with some names, in the order of the model's evaluation graph.

    Raises:
        StructureError: a layer runs several times with a batch norm behind it.
    """
    tensors = module_tensors(model)
    layers: dict[str, Folded] = {}
    for node in model.captures[False].graph.nodes:
        step = placement.steps.get(node.name)
        if step is None or step.kind != "layer" or step.layer not in names:
            continue
        norm = _folded_norm(node, placement)
        before = layers.get(step.layer)
        if before is not None:
            if norm is not None or before.nodes != before.ends:
                raise StructureError(f"{step.layer!r} runs several times and feeds a batch norm: keep it in fp32")
            nodes = (*before.nodes, node.name)
            layers[step.layer] = replace(before, nodes=nodes, ends=nodes)
            continue
        weight, bias = (_tensor(tensors, argument) for argument in (*node.args, None)[1:3])
        assert weight is not None
        if norm is not None:
            weight, bias = _fold(weight, bias, norm, tensors)
        end = norm or node
        layers[step.layer] = Folded(weight=weight, bias=bias, nodes=(node.name,), ends=(end.name,))
    return layers


def _folded_norm(node: fx.Node, placement: Placement) -> fx.Node | None:
    """Return the batch norm that is folded into a layer, `None` without one."""
    reader = next(iter(node.users), None)
    if reader is None or reader.target is not aten.batch_norm.default or placement.steps[reader.name].kind != "moves":
        return None
    return reader


def _tensor(tensors: Mapping[str, Tensor], argument: Any) -> Tensor | None:
    return tensors[str(argument.target)].detach() if isinstance(argument, fx.Node) else None


def _fold(weight: Tensor, bias: Tensor | None, norm: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    scale, shift, mean, variance = (_tensor(tensors, argument) for argument in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    factor = (variance + float(norm.args[7])).rsqrt()  # type: ignore[arg-type]
    factor = factor if scale is None else factor * scale
    offset = (-mean if bias is None else bias - mean) * factor
    return weight * factor.reshape(-1, *[1] * (weight.dim() - 1)), offset if shift is None else offset + shift


def make_twin(model: GraphModel, placement: Placement, numbers: Quantization) -> GraphModel:
    """Return the twin of a model, in evaluation mode.

    Its training mode computes the same: batch norms that stay are frozen.

    Args:
        model: in fp32; it is not changed.
        placement: of its evaluation graph.
        numbers: of its treated layers.

    Raises:
        StructureError: a layer cannot be treated so.
    """
    builder = _Builder(model, placement, numbers)
    capture = replace(model.captures[False], graph=builder.graph, constants={})
    read = {str(node.target) for node in builder.graph.nodes if node.op == "get_attr"}
    tensors = {name: tensor for name, tensor in builder.tensors.items() if name in read}
    twin = GraphModel({False: capture, True: replace(capture, training=True)}, tensors, set(tensors))
    twin.pruned_to = model.pruned_to
    return twin.eval()


class _Builder:
    """Copies an evaluation graph with the rounding of its int8 layers and tensors."""

    def __init__(self, model: GraphModel, placement: Placement, numbers: Quantization) -> None:
        self._numbers = numbers
        self._at = {
            step: tensor
            for tensor in placement.int8_tensors(numbers.weights.keys())
            for step in placement.quantized_at(tensor)
        }
        self.graph = fx.Graph()
        self.tensors = {
            name: nn.Parameter(t.detach().clone(), t.requires_grad) if isinstance(t, nn.Parameter) else t.clone()
            for name, t in module_tensors(model).items()
        }
        self._of_model = frozenset(self.tensors)
        self._new: dict[fx.Node, fx.Node] = {}
        self._keys = placement.keys(numbers.weights.keys())
        self._local = folded_layers(model, placement, numbers.local)
        folded = set[str]()
        for node in model.captures[False].graph.nodes:
            step = placement.steps.get(node.name)
            if step is not None and (step.layer in numbers.weights or step.layer in numbers.local):
                treat = self._layer if step.layer in numbers.weights else self._treated_alone
                self._new[node] = treat(node, step.layer)
                norm = _folded_norm(node, placement)
                folded |= {norm.name} if norm is not None else set()
            elif node.name in folded:
                self._new[node] = self._new[node.args[0]]
            else:
                self._new[node] = self.graph.node_copy(node, lambda n: self._new[n])
            if node.name in self._at:
                self._new[node] = self._in_grid(self._new[node], self._at[node.name])
        for node in list(self.graph.nodes):
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)

    def _layer(self, node: fx.Node, layer: str) -> fx.Node:
        rounded = self._numbers.weights[layer]
        bias = None if rounded.bias is None else nn.Parameter(torch.from_numpy(rounded.bias.copy()))
        weight = self._attribute(f"{layer}_folded", nn.Parameter(torch.from_numpy(rounded.values)))
        scales = self._attribute(f"{layer}_scale", torch.from_numpy(rounded.scales.copy()))
        weight = self.graph.call_function(weight_in_grid, (weight, scales))
        read, *rest = fx.map_arg((node.args[0], *node.args[3:]), lambda n: self._new[n])  # type: ignore[misc]
        arguments = (read, weight, self._attribute(f"{layer}_bias", bias), *rest)
        new = self.graph.create_node("call_function", node.target, arguments, name=node.name)
        new.meta = dict(node.meta)
        return new

    def _treated_alone(self, node: fx.Node, layer: str) -> fx.Node:
        if node.target is aten.lstm.input:
            new = self.graph.node_copy(node, lambda n: self._new[n])
            new.target = int8_dynamic_lstm
            new.kwargs = {"largest_weight": self._numbers.arithmetic.largest_weight}
            return new
        folded, treatment = self._local[layer], self._numbers.local[layer]
        weight, bias = (None if t is None else nn.Parameter(t.clone()) for t in (folded.weight, folded.bias))
        arguments = (
            self._new[node.args[0]],  # type: ignore[index]
            self._attribute(f"{layer}_folded", weight),
            self._attribute(f"{layer}_bias", bias),
            treatment.precision,
            level_of(treatment.precision, self._numbers.arithmetic.accuracy_levels),
            self._numbers.arithmetic.largest_weight,
        )
        new = self.graph.create_node("call_function", local_linear, arguments, name=node.name)
        new.meta = dict(node.meta)
        return new

    def _attribute(self, name: str, tensor: Tensor | None) -> fx.Node | None:
        """Return the node of a tensor that is added to the model's; where a layer runs again, of the first one."""
        if tensor is None:
            return None
        while name in self._of_model:
            name += "_"
        self.tensors.setdefault(name, tensor)
        return self.graph.get_attr(name)

    def _in_grid(self, node: fx.Node, tensor: str) -> fx.Node:
        of_tensor = self._numbers.ranges[self._keys[tensor]]
        new = self.graph.call_function(in_grid, (node, of_tensor.scale, of_tensor.zero_point))
        new.meta = dict(node.meta)
        return new


def biases_of(twin: GraphModel, nodes: Mapping[str, str]) -> dict[str, Array]:
    """Return the biases of a twin's int8 layers by the names of the layers, for a node of each layer."""
    tensors, by_name = module_tensors(twin), {node.name: node for node in twin.captures[False].graph.nodes}
    biases = {layer: _tensor(tensors, by_name[node].args[2]) for layer, node in nodes.items()}
    return {layer: bias.numpy().copy() for layer, bias in biases.items() if bias is not None}
