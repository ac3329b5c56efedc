"""Sizes that an exporter wrote into a graph as numbers, and how they follow the widths of units.

Reshapes, expansions and splits hold sizes as integer inputs; their names and places are the exporter's business. So
they are learned from it: further exports, in which units are narrower, show which numbers change. Units that no size
has in common are narrower in one export, each by a ratio of its own that tells it; else each takes an export alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from fractions import Fraction

import numpy as np
import onnx
from onnx import numpy_helper

from autoprune.errors import LatencyError
from autoprune.records import Policy
from autoprune.structure import Structure

Array = np.ndarray
Place = tuple[int, int]
"""A node, by its position in the graph, and one of its inputs."""

_END = 2**53
"""Larger numbers are no sizes: a slice that ends there goes to the end."""


@dataclass(frozen=True, kw_only=True)
class LearnedSizes:
    """Integer inputs that depend on widths: their dense values, and those where unit `u` alone has width `narrow[u]`.

    A number that falls in proportion to the width of a unit is a product with it, any other a sum; one of both is a
    product with a sum, as that of the heads of attention with the dimensions of queries, keys and values.
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
        follows = (factor != 1) | (change != 0)  # "to the end" does not, which no float holds
        return np.where(follows, np.rint(np.where(follows, dense + change, 0) * factor).astype(np.int64), dense)


def learn_sizes(
    dense: onnx.ModelProto,
    structure: Structure,
    export: Callable[[Policy], onnx.ModelProto],
    *,
    together: bool = False,
) -> LearnedSizes:
    """Find the sizes of a dense export that follow widths; `export` makes the graph of a policy.

    `together` takes an export for each group of units that no operator joins, not for each unit; it is only right where
    every size is a product of widths. Raises `LatencyError` when a narrower model is exported with other sizes, or when
    one that changed is no product.
    """
    names, full = [unit.name for unit in structure.units], np.array([unit.width for unit in structure.units])
    narrow, before = full.copy(), _integers(dense)
    alone: dict[Place, dict[int, Array]] = {}
    for group in _groups(structure) if together else _each(structure):
        narrow[[*group]] = [*group.values()]
        widths = [group.get(unit, int(width)) for unit, width in enumerate(full)]
        exported = export(Policy(space_id="", widths=dict(zip(names, widths, strict=True))))
        told = ", ".join(names[unit] for unit in group)
        same = _same_nodes(exported, dense)
        for (number, position), value in _integers(exported).items():
            if number not in same:
                continue
            place = (same[number], position)
            if place not in before or value.shape != before[place].shape or _ends_differ(before[place], value):
                raise LatencyError(f"the exporter writes other sizes where {told!r} is narrower")
            if (value != before[place]).any():
                unit = next(iter(group)) if len(group) == 1 else _told_by_ratio(before[place], value, full, group)
                alone.setdefault(place, {})[unit] = value
    return LearnedSizes(full=full, narrow=narrow, dense={place: before[place] for place in alone}, alone=alone)


def _each(structure: Structure) -> list[dict[int, int]]:
    """Every unit alone, with half of its width."""
    return [{number: unit.width // 2} for number, unit in enumerate(structure.units) if unit.width > 1]


def _groups(structure: Structure) -> list[dict[int, int]]:
    """Units (indices) that no operator joins, with narrow widths whose ratios to the full ones are all different."""
    joined = [set(operator.units) for operator in structure.operators]
    groups: list[dict[int, int]] = []
    for unit, width in enumerate(u.width for u in structure.units):
        conflicts = set().union(*(units for units in joined if unit in units)) - {unit}
        for group in groups:
            taken = {Fraction(narrow, structure.units[other].width) for other, narrow in group.items()}
            free = [narrow for narrow in range(1, width) if Fraction(narrow, width) not in taken]
            if free and not conflicts & set(group):
                group[unit] = min(free, key=lambda narrow: abs(2 * narrow - width))
                break
        else:
            if width > 1:
                groups.append({unit: width // 2})
    return groups


def _told_by_ratio(dense: Array, value: Array, full: Array, group: Mapping[int, int]) -> int:
    """The unit of a group that sizes follow: all that changed did by its ratio."""
    changed = value != dense
    for unit, narrow in group.items():
        if (value * full[unit] == dense * narrow)[changed].all():
            return unit
    raise LatencyError(f"sizes {dense.tolist()} that became {value.tolist()} follow no width of their own")


def _same_nodes(exported: onnx.ModelProto, dense: onnx.ModelProto) -> dict[int, int]:
    """Positions of nodes in one export and of the same nodes in another.

    The exporter computes what is constant and small, so that a narrower model may have fewer nodes.
    """
    kinds = []
    for model in (exported, dense):
        ranks = {initializer.name: tuple(initializer.dims) for initializer in _integer_initializers(model)}
        kinds.append([(node.op_type, *(ranks.get(name) for name in node.input)) for node in model.graph.node])
    blocks = SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks()
    return {block.a + i: block.b + i for block in blocks for i in range(block.size)}


def _ends_differ(dense: Array, value: Array) -> bool:
    """Whether a number became or was "to the end"."""
    return bool(((dense != value) & ((dense >= _END) | (value >= _END))).any())


def _integers(model: onnx.ModelProto) -> dict[Place, Array]:
    """Every constant integer input of a node."""
    found = {initializer.name: initializer for initializer in _integer_initializers(model)}
    return {
        (number, place): numpy_helper.to_array(found[name])
        for number, node in enumerate(model.graph.node)
        for place, name in enumerate(node.input)
        if name in found
    }


def _integer_initializers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT64]
