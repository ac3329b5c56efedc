"""State of one pass over one graph (the labels of every value so far), and the ties that rules share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from autoprune.structure.labels import Array, Labels, Value
from autoprune.structure.nodes import shape_of


@dataclass
class Analysis:
    """State of one pass over one graph, which every rule reads and extends.

    - `parameters` and `constants`: values of floating-point parameters, and integer buffers, by state-dict name.
    - `values`: the value of every node so far (a list for several outputs).
    - `groups`: the labels of the groups of grouped operators.
    - `heads`: labels of dimensions that two activations and their product share, such as the heads of attention.
    - `head_dims`: labels of the other dimensions of such products.
    - `heads_of`: the labels of the heads of each such product.
    - `unsupported`: names of nodes whose operator has no rule, by operator.

    Labels below `_first_other` belong to parameters.
    """

    labels: Labels
    parameters: Mapping[str, Value]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    groups: dict[fx.Node, Array] = field(default_factory=dict)
    heads: list[Array] = field(default_factory=list)
    head_dims: list[Array] = field(default_factory=list)
    heads_of: dict[fx.Node, list[Array]] = field(default_factory=dict)
    unsupported: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = [c for value in self.parameters.values() for c in value.components]
        self._first_other = 1 + max((int(c.max()) for c in arrays), default=0)

    def value(self, argument: Any) -> Value:
        """Return the value of a tensor argument; a value without labels for anything else."""
        known = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(known, Value):
            return known
        return Value(shape_of(argument) if isinstance(argument, fx.Node) else ())

    def every_value(self, node: fx.Node) -> list[Value]:
        """Return the values of all outputs of a node."""
        known = self.values.get(node)
        return known if isinstance(known, list) else [known] if isinstance(known, Value) else []

    def of_parameters(self, value: Value) -> bool:
        """Return whether a value has a free label of a parameter."""
        roots = [self.labels.roots(c) for c in value.components]
        return any(bool(((r > 0) & (r < self._first_other)).any()) for r in roots)

    def tensors(self, node: fx.Node) -> list[Value]:
        """Return the values of all tensor operands of a node."""
        return [self.value(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


Rule = Callable[[Analysis, fx.Node], Any]
"""A function that ties the labels of a node's operands and returns its output's value (a list for several outputs)."""


def tie(labels: Labels, sides: Sequence[Sequence[Array]], reason: str) -> list[Array]:
    """Tie the operands that meet along one dimension; return the components of the result.

    Each of `sides` is the list of an operand's components along that dimension.
    """
    for side in sides[1:]:
        labels.equate(sides[0], side, reason)
    return list(max(sides, key=len)) if sides and all(sides) else []


def align(labels: Labels, operands: Sequence[Value], shape: tuple[int, ...], name: str) -> Value:
    """Tie the operands of a broadcast along each dimension of the output `shape`; return the output's value.

    An operand of size 1 along a dimension is not tied there. `name` is that of the operator, for reasons.
    """
    result: dict[int, list[Array]] = {}
    for dim in range(len(shape)):
        sides = []
        for operand in operands:
            own = dim - (len(shape) - len(operand.shape))
            if own >= 0 and operand.shape[own] > 1:
                sides.append(operand.along(own))
        if any(sides):
            result[dim] = tie(labels, sides, f"meets a fixed operand in {name}")
    return Value.of_dims(shape, result)


def passing(value: Value, dims: Sequence[int]) -> tuple[Array, ...]:
    """Return the components along `dims`, for an output of the same rank and the same sizes there."""
    return tuple(c for c in value.components if any(c.shape[d] > 1 for d in dims))


def hide(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return a shape with the size 1 in the place of one dimension."""
    return (*shape[:dim], 1, *shape[dim + 1 :])
