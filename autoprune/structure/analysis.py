"""State of one pass over one graph: the labels of every value so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from autoprune.structure.capture import shape_of
from autoprune.structure.labels import Array, Labels, Value


@dataclass
class Analysis:
    """State of one pass over one graph: values by node, group labels by convolution, operators without a rule."""

    labels: Labels
    parameters: dict[str, Value]
    values: dict[fx.Node, Any] = field(default_factory=dict)
    groups: dict[fx.Node, Array] = field(default_factory=dict)
    unsupported: dict[str, list[str]] = field(default_factory=dict)

    def value(self, argument: Any) -> Value:
        """Value of a tensor argument; one without labels for anything that has none."""
        found = self.values.get(argument) if isinstance(argument, fx.Node) else None
        if isinstance(found, Value):
            return found
        return Value(shape_of(argument) if isinstance(argument, fx.Node) else ())


Rule = Callable[[Analysis, fx.Node], Any]
"""Ties the labels of a node's operands and returns the value of its output (a list for several outputs)."""
