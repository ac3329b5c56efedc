"""Numbers that an exporter computed and wrote into a graph, and how they follow the widths of units.

Reshapes, expansions and splits hold sizes as integer inputs, products with sines and cosines of positions hold tables;
their names and places are the exporter's business. So they are learned from it: further exports, in which units are
narrower, show which numbers change and which entries are left out. Units that no operator joins are narrower in one
export, each by a number and a share of its own that tell it; where they do not, the group is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from fractions import Fraction

import numpy as np
import onnx
from onnx import numpy_helper

from autoprune.errors import LatencyError
from autoprune.onnxgraph.export import plain_name
from autoprune.records import Policy
from autoprune.structure import Structure

Array = np.ndarray
Place = tuple[int, int]
"""A node, by its position in the graph, and one of its inputs."""

_END = 2**53
"""Larger numbers are no sizes: a slice that ends there goes to the end."""


@dataclass(frozen=True, kw_only=True)
class Follower:
    """A dimension of a table that has the entries whose `channels` a unit keeps, the first ones.

    It may follow several units, as a dimension of heads with that of each head does.
    """

    dim: int
    unit: int
    channels: Array


@dataclass(frozen=True, kw_only=True)
class LearnedSizes:
    """Integer inputs that depend on widths: their dense values, and those where unit `u` alone has width `narrow[u]`.

    A number that falls in proportion to the width of a unit is a product with it, any other a sum; one of both is a
    product with a sum, as that of the heads of attention with the dimensions of queries, keys and values. `tables` are
    weights, by name, that no parameter has, and their dimensions that follow a unit.
    """

    full: Array
    narrow: Array
    dense: Mapping[Place, Array]
    alone: Mapping[Place, Mapping[int, Array]]
    tables: Mapping[str, tuple[Follower, ...]] = field(default_factory=dict)

    def table(self, name: str, values: Array, widths: Array) -> Array:
        """The entries of a table that one row of widths `[U]` keeps."""
        if not np.ptp(values):  # equal entries do not say which is whose, and need not
            counts = list(values.shape)
            for dim, unit in {(follower.dim, follower.unit) for follower in self.tables[name]}:
                counts[dim] = counts[dim] * int(widths[unit]) // int(self.full[unit])
            return values[tuple(map(slice, counts))]
        kept = [np.ones(size, dtype=bool) for size in values.shape]
        for follower in self.tables[name]:
            kept[follower.dim] &= follower.channels < widths[follower.unit]
        return values[np.ix_(*kept)]

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
    """Find the sizes and tables of a dense export that follow widths; `export` makes the graph of a policy.

    `together` takes an export for each group of units that no operator joins, not for each unit; a group whose units
    cannot be told apart is halved. It is only right where a size that changed is a product with one of a group's
    widths, or a sum with one. Raises `LatencyError` when a narrower model is exported with other sizes.
    """
    names, full = [unit.name for unit in structure.units], np.array([unit.width for unit in structure.units])
    narrow, before = full.copy(), _integers(dense)
    alone: dict[Place, dict[int, Array]] = {}
    tables: dict[str, list[Follower]] = {}
    groups = _groups(structure) if together else _each(structure)
    while groups:
        group = groups.pop()
        narrow[[*group]] = [*group.values()]
        widths = [group.get(unit, int(width)) for unit, width in enumerate(full)]
        exported = export(Policy(space_id="", widths=dict(zip(names, widths, strict=True))))
        same = _same_nodes(exported, dense)
        changes = _changes(before, _integers(exported), same, full, group)
        if changes is None:
            units = list(group)
            halves = units[: len(units) // 2], units[len(units) // 2 :]
            groups += [{unit: group[unit] for unit in half} for half in halves]
            continue
        for place, values in changes.items():
            alone.setdefault(place, {}).update(values)
        for name, values, shorter in _pairs_of_tables(dense, exported, same, structure):
            tables.setdefault(name, []).extend(_followers(values, shorter, full, group))
    return LearnedSizes(
        full=full,
        narrow=narrow,
        dense={place: before[place] for place in alone},
        alone=alone,
        tables={name: tuple(followers) for name, followers in tables.items()},
    )


def _changes(
    before: Mapping[Place, Array],
    after: Mapping[Place, Array],
    same: Mapping[int, int],
    full: Array,
    group: Mapping[int, int],
) -> dict[Place, dict[int, Array]] | None:
    """Return the numbers that changed where a group is narrower, by place and unit; `None` if units look alike."""
    changes = {}
    for (number, position), value in after.items():
        place = (same.get(number, -1), position)
        if number not in same or (place in before and value.ndim > 1 and value.shape != before[place].shape):
            continue  # it is nowhere in the dense model, or a table
        if place not in before or value.shape != before[place].shape:
            raise LatencyError("the exporter writes other sizes where a unit is narrower")
        to_the_end = before[place] >= _END
        value = np.where(to_the_end, before[place], value)  # which the exporter may write as a number
        if ((value >= _END) & ~to_the_end).any():
            raise LatencyError("the exporter writes no size where a unit is narrower")
        if (value != before[place]).any():
            told = _told_apart(before[place], value, full, group)
            if told is None:
                return None
            changes[place] = told
    return changes


def with_own_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, in place, where every node has the shape that it takes for itself.

    The exporter makes equal shapes once; in a narrower model they may differ.
    """
    sizes = {initializer.name for initializer in _integer_initializers(model)}
    shapes = {n.output[0]: n for n in model.graph.node if n.op_type == "Concat" and sizes & {*n.input}}
    taken, nodes = set(), []
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name in taken:
                own = onnx.NodeProto()
                own.CopyFrom(shapes[name])
                own.output[0] = node.input[place] = f"{name}_of_{node.output[0]}"
                own.name = f"node_{own.output[0]}"
                nodes.append(own)
            elif name in shapes:
                taken.add(name)
        nodes.append(node)
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def is_lookup(node: onnx.NodeProto, place: int) -> bool:
    """Whether an input holds positions, which follow from the channels that are kept and are no sizes."""
    return node.op_type == "Gather" and place == 1


def _each(structure: Structure) -> list[dict[int, int]]:
    """Every unit alone, with half of its width."""
    return [{number: unit.width // 2} for number, unit in enumerate(structure.units) if unit.width > 1]


def _groups(structure: Structure) -> list[dict[int, int]]:
    """Units (indices) that no operator joins, with narrow widths: no two have lost the same number or share of it."""
    joined = [set(operator.units) for operator in structure.operators]
    groups: list[dict[int, int]] = []
    for unit, width in enumerate(u.width for u in structure.units):
        conflicts = set().union(*(units for units in joined if unit in units)) - {unit}
        for group in groups:
            taken = {Fraction(narrow, structure.units[other].width) for other, narrow in group.items()}
            lost = {structure.units[other].width - narrow for other, narrow in group.items()}
            free = [n for n in range(1, width) if Fraction(n, width) not in taken and width - n not in lost]
            if free and not conflicts & set(group):
                group[unit] = min(free, key=lambda narrow: abs(2 * narrow - width))
                break
        else:
            if width > 1:
                groups.append({unit: width // 2})
    return groups


def _told_apart(dense: Array, value: Array, full: Array, group: Mapping[int, int]) -> dict[int, Array] | None:
    """Sizes as they are where each unit of a group alone is narrower; `None` when that cannot be told.

    A size that changed did so by the ratio of its unit's widths or by the channels that this unit lost; both differ
    between the units of a group.
    """
    if len(group) == 1:
        return dict.fromkeys(group, value)
    changed, by_unit = value != dense, dict[int, Array]()
    by_ratio = {unit: value * full[unit] == dense * narrow for unit, narrow in group.items()}
    by_loss = {unit: dense - value == full[unit] - narrow for unit, narrow in group.items()}
    for unit, mine in [*by_ratio.items(), *by_loss.items()]:
        if (changed & mine).any():
            by_unit[unit] = np.where(changed & mine, value, by_unit.get(unit, dense))
            changed &= ~mine
    return None if changed.any() else by_unit


def _same_nodes(exported: onnx.ModelProto, dense: onnx.ModelProto) -> dict[int, int]:
    """Positions of nodes in one export and of the same nodes in another.

    The exporter computes what is constant and small, so that a narrower model may have fewer nodes.
    """
    kinds = []
    for model in (exported, dense):
        sizes = {i.name: tuple(i.dims) for i in _integer_initializers(model)}
        shapes = {name: dims if len(dims) < 2 else len(dims) for name, dims in sizes.items()}
        kinds.append([(node.op_type, *(shapes.get(name) for name in node.input)) for node in model.graph.node])
    blocks = SequenceMatcher(None, *kinds, autojunk=False).get_matching_blocks()
    return {block.a + i: block.b + i for block in blocks for i in range(block.size)}


def _pairs_of_tables(
    dense: onnx.ModelProto, exported: onnx.ModelProto, same: Mapping[int, int], structure: Structure
) -> Iterator[tuple[str, Array, Array]]:
    """Weights without a name of the state dict that are shorter in another export: name, dense and shorter values."""
    tables, shorter = ({i.name: i for i in model.graph.initializer} for model in (dense, exported))
    names = structure.tensors.keys()
    for number, node in enumerate(exported.graph.node):
        inputs = zip(dense.graph.node[same[number]].input, node.input, strict=False) if number in same else ()
        for name, other in inputs:
            known = name in tables and other in shorter and plain_name(name) not in names
            if (
                known
                and len(tables[name].dims) == len(shorter[other].dims)
                and tables[name].dims != shorter[other].dims
            ):
                yield name, numpy_helper.to_array(tables[name]), numpy_helper.to_array(shorter[other])


def _followers(dense: Array, shorter: Array, full: Array, group: Mapping[int, int]) -> list[Follower]:
    """The units of a group that dimensions of a table follow, and the channel of each entry.

    Channels may be repeated, as they are for the two halves of rotary embeddings, or be next to their copies.
    """
    followers = []
    for dim, (size, kept) in enumerate(zip(dense.shape, shorter.shape, strict=True)):
        units = [u for u, narrow in group.items() if size % full[u] == 0 and kept * int(full[u]) == size * narrow]
        for unit in units if kept < size else ():
            copies = size // int(full[unit])
            for run in (n for n in range(1, copies + 1) if copies % n == 0):
                channels = np.arange(size) // run % full[unit]
                taken = dense.take(np.flatnonzero(channels < group[unit]), axis=dim)
                if taken.shape == shorter.shape and np.allclose(taken, shorter, rtol=1e-5, atol=1e-6):
                    followers.append(Follower(dim=dim, unit=unit, channels=channels))
                    break
    return followers


def _integers(model: onnx.ModelProto) -> dict[Place, Array]:
    """Every constant integer input of a node."""
    integers = {initializer.name: initializer for initializer in _integer_initializers(model)}
    return {
        (number, place): numpy_helper.to_array(integers[name])
        for number, node in enumerate(model.graph.node)
        for place, name in enumerate(node.input)
        if name in integers and not is_lookup(node, place)
    }


def _integer_initializers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.INT64]
