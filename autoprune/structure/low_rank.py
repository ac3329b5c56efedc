"""Layers whose weight is the product of two factors: their names, and graphs with two layers in the place of one.

A weight `[O, ...]` is a matrix `[O, D]`, and a product of `[O, R]` and `[R, D]`. The first layer has R outputs and the
kernel, stride and padding of the whole one; the second, a linear layer or a 1x1 convolution, has the O outputs and the
bias. They have the names that `nn.Sequential` of two layers gives them in the place of the module: `fc.0.weight`,
`fc.1.weight`, `fc.1.bias`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoprune.errors import PolicyError
from autoprune.structure.capture import Capture, module_tensors
from autoprune.structure.module import GraphModel
from autoprune.treatments import Layer, Treatment, replaces

aten = torch.ops.aten

_SECOND: Mapping[Any, Any] = {
    aten.linear.default: aten.linear.default,
    aten.conv1d.default: aten.conv1d.default,
    aten.conv1d.padding: aten.conv1d.default,
    aten.conv2d.default: aten.conv2d.default,
    aten.conv2d.padding: aten.conv2d.default,
}
"""Operators of layers that can be two, and the operator of the second layer."""

_GROUPS = 6
"""Position of the number of groups among the arguments of a convolution."""


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The factors of a weight: `first` `[R, ...]`, `second` `[O, R]` (`[O, R, 1, ...]`), and the layer's bias `[O]`."""

    first: Tensor
    second: Tensor
    bias: Tensor | None = None

    @classmethod
    def empty(cls, weight: Tensor, bias: Tensor | None, rank: int) -> Factors:
        """Return factors of zeros, in the shapes that those of a weight have."""
        return cls(
            first=weight.new_zeros((rank, *weight.shape[1:])),
            second=weight.new_zeros((len(weight), rank, *[1] * (weight.dim() - 2))),
            bias=None if bias is None else torch.zeros_like(bias),
        )

    @property
    def product(self) -> Tensor:
        """The weight whose factors they are, `[O, ...]`."""
        return (self.second.flatten(1) @ self.first.flatten(1)).reshape(len(self.second), *self.first.shape[1:])


def factor_names(weight: str) -> tuple[str, str]:
    """Return the names of the two weights that replace one.

    Example:
        >>> factor_names("blocks.0.fc.weight")
        ('blocks.0.fc.0.weight', 'blocks.0.fc.1.weight')
    """
    place = _place(weight)
    return f"{place}0.weight", f"{place}1.weight"


def own_bias(weight: str) -> tuple[str, str]:
    """Return the name of the bias that belongs to a weight, and its name beside the second factor."""
    return f"{weight.rpartition('.')[0]}.bias".lstrip("."), f"{_place(weight)}1.bias"


def _place(weight: str) -> str:
    owner, _, leaf = weight.rpartition(".")
    return f"{owner if leaf == 'weight' else weight}.".lstrip(".")


def splittable(captures: Iterable[Capture], canonical: Mapping[str, str]) -> frozenset[str]:
    """Return the weights that two factors can replace: in every graph one node alone reads them, as such a layer."""
    per_graph = []
    for capture in captures:
        readers: dict[str, list[fx.Node]] = {}
        for node in capture.graph.nodes:
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    readers.setdefault(canonical.get(str(source.target), ""), []).append(node)
        per_graph.append({name for name, nodes in readers.items() if len(nodes) == 1 and _splits(nodes[0], name)})
    names = list(canonical.values())
    return frozenset(name for name in set.intersection(*per_graph) if names.count(name) == 1)


def _splits(node: fx.Node, weight: str) -> bool:
    groups = node.args[_GROUPS] if len(node.args) > _GROUPS else 1
    return weight_name(node) == weight and isinstance(groups, int) and groups == 1


def weight_name(node: fx.Node) -> str:
    """Return the name of the weight of a layer's node; "" for other nodes."""
    weight = node.args[1] if node.target in _SECOND else None
    return str(weight.target) if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""


def ranks_of(
    treatments: Mapping[str, Treatment], layers: Iterable[Layer], tensors: Mapping[str, Tensor]
) -> dict[str, int]:
    """Return the ranks that layers of a pruned model have, by the names of the layers.

    Left out are layers that the model does not have, and those that are so narrow that they stay whole (`replaces`).

    Args:
        treatments: of a policy.
        layers: of the dense model.
        tensors: of the pruned model.

    Raises:
        PolicyError: a rank is above the full one, or its layer cannot be two.
    """
    matrices, ranks = {layer.name: layer.matrix for layer in layers}, {}
    for name, rank in ((name, treatment.rank) for name, treatment in treatments.items() if treatment.rank):
        require_rank(name, rank, matrices.get(name, (0, 0)))
        if name in tensors and replaces(rank, *tensors[name].flatten(1).shape):
            ranks[name] = rank
    return ranks


def require_rank(layer: str, rank: int, matrix: tuple[int, int]) -> None:
    """Raise `PolicyError` for a rank above the full one, and for a layer that cannot be two."""
    full = min(matrix)
    if not full:
        raise PolicyError(
            f"a rank is of a linear layer or convolution in one group that runs once and shares no weight; "
            f"{layer!r} is none: leave out its rank ({rank})"
        )
    if rank > full:
        raise PolicyError(f"the rank of {layer!r} is below its full rank, {full}; got {rank}")


def treatments_of_factors(treatments: Mapping[str, Treatment], ranks: Mapping[str, int]) -> dict[str, Treatment]:
    """Return the treatments of the layers that are left in a model whose layers have `ranks`: none has a rank."""
    split: dict[str, Treatment] = {}
    for name, treatment in treatments.items():
        names = factor_names(name) if name in ranks else (name,)
        split |= dict.fromkeys(names, treatment.of_factors)
    return split


def with_factors(model: GraphModel, factors: Mapping[str, Factors]) -> GraphModel:
    """Return a model with two layers in the place of each of some, by name; all other tensors are shared with `model`.

    `pruned_to.ranks` of the result holds the ranks.
    """
    tensors, persistent, renamed = module_tensors(model), set(model.state_dict()), dict[str, str]()
    for name, of_layer in factors.items():
        needs_gradient = tensors.pop(name).requires_grad
        for new, value in zip(factor_names(name), (of_layer.first, of_layer.second), strict=True):
            tensors[new] = nn.Parameter(value, needs_gradient)
        old, new = own_bias(name)
        if of_layer.bias is not None:
            tensors[new], renamed[old] = nn.Parameter(of_layer.bias, tensors.pop(old).requires_grad), new
    names = {*factors, *renamed}
    persistent = (persistent - names) | {n for name in factors for n in factor_names(name)} | {*renamed.values()}
    captures = {
        mode: replace(capture, graph=_split(capture.graph, factors.keys(), renamed), constants={})
        for mode, capture in model.captures.items()
    }
    split = GraphModel(captures, tensors, persistent).train(model.training)
    if model.pruned_to is not None:
        ranks = {name: len(of_layer.first) for name, of_layer in factors.items()}
        split.pruned_to = replace(model.pruned_to, ranks=ranks)
    return split


def with_ranks(model: GraphModel, ranks: Mapping[str, int]) -> GraphModel:
    """Return a model with factors of zeros in the place of some weights, to which weights are loaded.

    Raises:
        PolicyError: the model has no such weight.
    """
    if not ranks:
        return model
    tensors, biases = module_tensors(model), bias_names(model, ranks)
    unknown = sorted(ranks.keys() - {weight_name(node) for node in model.captures[False].graph.nodes})
    if unknown:
        raise PolicyError(f"no linear layer or convolution of the model multiplies with {unknown[0]!r}")
    return with_factors(model, {n: Factors.empty(tensors[n], tensors.get(biases[n]), r) for n, r in ranks.items()})


def bias_names(model: GraphModel, layers: Iterable[str]) -> dict[str, str]:
    """Return the name of the bias that goes to the second factor, by layer: the layer's own; "" without one."""
    tensors, graph = module_tensors(model), model.captures[False].graph
    added: dict[str, str] = {}
    for node in graph.nodes:
        bias = node.args[2] if weight_name(node) and len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) == 1:
            added[weight_name(node)] = str(bias.target)
    own = {name: own_bias(name)[0] for name in layers}
    return {name: bias if added.get(name) == bias and bias in tensors else "" for name, bias in own.items()}


def _split(graph: fx.Graph, layers: Iterable[str], renamed: Mapping[str, str]) -> fx.Graph:
    """Copy a graph with two nodes in the place of each layer; the second has the name of the whole one."""
    copied, new, split = fx.Graph(), dict[fx.Node, fx.Node](), set(layers)
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target) in split:
            continue
        if node.op == "get_attr" and str(node.target) in renamed:
            new[node] = copied.get_attr(renamed[str(node.target)])
            new[node].meta = dict(node.meta)
        elif weight_name(node) in split:
            new[node] = _two(copied, node, new)
        else:
            new[node] = copied.node_copy(node, lambda n: new[n])
    return copied


def _two(graph: fx.Graph, whole: fx.Node, new: Mapping[fx.Node, fx.Node]) -> fx.Node:
    first, second = factor_names(weight_name(whole))
    bias = whole.args[2] if len(whole.args) > 2 else None
    read, bias, rest = fx.map_arg((whole.args[0], bias, whole.args[3:]), lambda n: new[n])  # type: ignore[misc]
    reduced = graph.create_node(
        "call_function", whole.target, (read, graph.get_attr(first), None, *rest), name=f"{whole.name}_first_factor"
    )
    expanded = graph.create_node(
        "call_function", _SECOND[whole.target], (reduced, graph.get_attr(second), bias), name=whole.name
    )
    expanded.meta = dict(whole.meta)
    return expanded
