"""Sizes that an exporter wrote into a graph as numbers, and how they follow the widths of units.

Reshapes, expansions and splits hold sizes as integer inputs; their names and places are the exporter's business. So
they are learned from it: one more export for each unit, in which it alone is narrower, shows which numbers change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from autoprune.errors import LatencyError
from autoprune.records import Policy
from autoprune.structure import Structure

Array = np.ndarray
Place = tuple[int, int]
"""A node, by its position in the graph, and one of its inputs."""


@dataclass(frozen=True, kw_only=True)
class LearnedSizes:
    """Integer inputs that depend on widths: their dense values, and those where unit `u` alone has width `narrow[u]`.

    A number that falls in proportion to the width of a unit is a product of widths, any other a sum of them.
    """

    full: Array
    narrow: Array
    dense: Mapping[Place, Array]
    alone: Mapping[Place, Mapping[int, Array]]

    def at(self, place: Place, widths: Array) -> Array:
        """The numbers of a place for one row of widths `[U]`."""
        dense, factor, change = self.dense[place], 1.0, 0.0
        for unit, value in self.alone[place].items():
            full, narrow, now = int(self.full[unit]), int(self.narrow[unit]), int(widths[unit])
            products = value * full == dense * narrow
            factor = factor * np.where(products & (value != dense), now / full, 1.0)
            change = change + np.where(products, 0, (dense - value) * (now - full) / (full - narrow))
        return np.rint(dense * factor + change).astype(np.int64)


def learn_sizes(
    dense: onnx.ModelProto, structure: Structure, export: Callable[[Policy], onnx.ModelProto]
) -> LearnedSizes:
    """Find the sizes of a dense export that follow widths; `export` makes the graph of a policy.

    Raises `LatencyError` when a narrower model is exported as another graph.
    """
    full = np.array([unit.width for unit in structure.units])
    narrow, names = np.maximum(full // 2, 1), [unit.name for unit in structure.units]
    before, alone = _integers(dense), {}
    for unit in np.flatnonzero(narrow < full):
        widths = np.where(np.arange(len(full)) == unit, narrow, full).tolist()
        exported = export(Policy(space_id="", widths=dict(zip(names, widths, strict=True))))
        if [node.op_type for node in exported.graph.node] != [node.op_type for node in dense.graph.node]:
            raise LatencyError(f"the exporter makes another graph where {names[unit]!r} is narrower")
        for place, value in _integers(exported).items():
            if place not in before or value.shape != before[place].shape:
                raise LatencyError(f"the exporter writes other sizes where {names[unit]!r} is narrower")
            if (value != before[place]).any():
                alone.setdefault(place, {})[int(unit)] = value
    return LearnedSizes(full=full, narrow=narrow, dense={place: before[place] for place in alone}, alone=alone)


def _integers(model: onnx.ModelProto) -> dict[Place, Array]:
    """Every constant integer input of a node."""
    found = {i.name: i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT64}
    return {
        (number, place): numpy_helper.to_array(found[name])
        for number, node in enumerate(model.graph.node)
        for place, name in enumerate(node.input)
        if name in found
    }
