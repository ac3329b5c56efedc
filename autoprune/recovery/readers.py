"""Readers of units: layers, and products with weights, that sum over prunable channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from autoprune.structure import Structure
from autoprune.structure.families import is_grouped_product
from autoprune.structure.products import einsum_names
from autoprune.structure.recurrent_layers import GATES

aten = torch.ops.aten

_CHANNELS: dict[Any, int] = {aten.linear.default: -1} | dict.fromkeys(
    (
        aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
        aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
        aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input,
    ),
    1,
)  # fmt: skip
"""Layers, and the dimension of their input that they sum over."""

_PRODUCTS: dict[Any, int] = {
    aten.matmul.default: 0, aten.mm.default: 0, aten.bmm.default: 0, aten.addmm.default: 1, aten.baddbmm.default: 1,
}  # fmt: skip
"""Matrix products, and where their two factors begin among the arguments."""


def readers_of(structure: Structure) -> dict[int, set[str]]:
    """Return the names of the nodes that sum over channels of each unit in the evaluation graph, by the unit's index.

    The operator decides, not the dimension of the weight: transposed convolutions read along dimension 0 of theirs,
    embeddings read nothing. Grouped layers do not read units whose channels are whole groups. Products of activations
    alone have no weights that could compensate for anything.
    """
    readers: dict[int, set[str]] = {}
    variable: set[fx.Node] = set()
    for node in structure.captures[False].graph.nodes:
        if node.op == "placeholder" or variable.intersection(node.all_input_nodes):
            variable.add(node)
        for operand, dim in _summed(node, variable):
            for unit in _units(structure, operand, dim) - _units_at(structure, ("eval", node.name, -1)):
                readers.setdefault(unit, set()).add(node.name)
    return readers


def _summed(node: fx.Node, variable: set[fx.Node]) -> Iterator[tuple[Any, int]]:
    """Yield the operands of a layer, or of a product with weights, with the dimension of each that is summed over."""
    if node.target in _CHANNELS:
        yield node.args[0], _CHANNELS[node.target]
    elif node.target in GATES:
        yield node.args[0], -1
        yield from ((weight, 1) for weight in node.args[2] if _rank(weight) > 1)  # type: ignore[union-attr]
    elif variable.issuperset(node.all_input_nodes):
        return
    elif node.target in _PRODUCTS or is_grouped_product(node.target):
        first = _PRODUCTS.get(node.target, 0)
        x, y = node.args[first : first + 2]
        yield x, -1
        yield y, max(_rank(y) - 2, 0)
    elif node.target is aten.einsum.default:
        operands: Any = node.args[1]
        terms, output = einsum_names(str(node.args[0]), [_rank(operand) for operand in operands], _rank(node))
        for operand, names in zip(operands, terms, strict=True):
            yield from ((operand, dim) for dim, name in enumerate(names) if name not in output)


def _units(structure: Structure, operand: fx.Node, dim: int) -> set[int]:
    dim %= max(_rank(operand), 1)
    if operand.op == "get_attr":
        return _units_at(structure, ("parameter", structure.canonical.get(str(operand.target), ""), dim))
    return _units_at(structure, ("eval", operand.name, dim))


def _units_at(structure: Structure, site: tuple[str, str, int]) -> set[int]:
    channels = structure.channels.get(site)
    return set(channels.of_unit) if channels else set()


def _rank(node: Any) -> int:
    return node.meta["val"].dim()
