"""State of one pass over one graph: the labels of every value so far."""

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
    """State of one pass over one graph: values by node, group labels by grouped operator, operators without a rule.

    `constants` are the integer buffers, by name. `heads` and `head_dims` are the labels along which activations are
    multiplied with activations, as in attention. Labels below `_first_other` are those of parameters.
    """

    labels: Labels
    parameters: Mapping[str, Value]
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    groups: dict[fx.Node, Array] = field(default_factory=dict)
    heads: list[Array] = field(default_factory=list)
    head_dims: list[Array] = field(default_factory=list)
    unsupported: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        arrays = [c for value in self.parameters.values() for c in value.components]
        self._first_other = 1 + max((int(c.max()) for c in arrays), default=0)

    def value(self, argument: Any) -> Value:
        """Value of a tensor argument; one without labels for anything that has none."""
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(found, Value):
            return found
        return Value(shape_of(argument) if isinstance(argument, fx.Node) else ())

    def every_value(self, node: fx.Node) -> list[Value]:
        """All values of a node: of its tensor, or of each of several."""
        found = self.values.get(node)
        return found if isinstance(found, list) else [found] if isinstance(found, Value) else []

    def of_parameters(self, value: Value) -> bool:
        """Whether anything that could be removed from a parameter occurs in a value."""
        roots = [self.labels.roots(c) for c in value.components]
        return any(bool(((r > 0) & (r < self._first_other)).any()) for r in roots)

    def tensors(self, node: fx.Node) -> list[Value]:
        """Values of all tensor operands."""
        return [self.value(n) for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]


Rule = Callable[[Analysis, fx.Node], Any]
"""Ties the labels of a node's operands and returns the value of its output (a list for several outputs)."""


def tie(labels: Labels, sides: Sequence[Sequence[Array]], reason: str) -> list[Array]:
    """Tie what meets along one dimension (a list of components each); returns the components of the result."""
    for side in sides[1:]:
        labels.equate(sides[0], side, reason)
    return list(max(sides, key=len)) if sides and all(sides) else []


def align(labels: Labels, operands: Sequence[Value], shape: tuple[int, ...], name: str) -> Value:
    """Tie operands of one broadcast along each output dimension; an operand of size 1 there is not involved."""
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
    """Components of the dimensions `dims`, for an output of the same rank and the same sizes there."""
    return tuple(c for c in value.components if any(c.shape[d] > 1 for d in dims))
