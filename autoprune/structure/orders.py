"""Constant orders of channels, `x[:, order]` and `x[:, ::2]`, as lookups whose positions are renumbered after a cut.

A lookup is an `index_select` with a tensor that the model holds, or with a constant of the graph. Labels follow it as
they follow the data, and `shrink` writes the positions of the living channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx
from torch._ops import OpOverload
from torch.fx.node import map_arg

from autoprune.structure.nodes import FREE, argument, shape_of, symbolic_dims

aten = torch.ops.aten
_COPIES = {
    aten.lift_fresh_copy.default, aten.lift_fresh.default, aten.clone.default, aten.alias.default, aten.detach.default,
    aten.contiguous.default, aten.detach_.default,
}  # fmt: skip


@dataclass
class Lookups:
    """Lookups in one graph: the node and the dimension that each looks up, and new constants, by name."""

    mode: str
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def replace(self, node: fx.Node, source: fx.Node, dim: int, order: torch.Tensor | fx.Node) -> None:
        """Replace a node by a lookup of `source` along `dim`; the order is a node, or a tensor for a new constant."""
        graph = node.graph
        with graph.inserting_before(node):
            if isinstance(order, torch.Tensor):
                name = f"constant_{self.mode}_order_{len(self.places)}"
                self.constants[name] = order
                order = graph.create_node("get_attr", name)
                order.meta["val"] = self.constants[name]
            new = graph.call_function(aten.index_select.default, (source, dim, order))
        new.meta = dict(node.meta)
        self.places[str(order.target)] = source.name, dim
        read = node.all_input_nodes
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        for index in read:
            _erase_unused(index)


def constant_lookups(graph: fx.Graph, mode: str, integers: Mapping[str, torch.Tensor]) -> Lookups:
    """Turn `x[:, order]` with a constant order of channels into `index_select`, in place.

    The order may be computed from numbers and tensors, in any way that does not depend on the inputs. One that a single
    node reads stays where the model holds it; a further reader gets a constant of its own, since the two may keep other
    channels. Only values of inputs may be read at one position twice: positions in weights that repeat are tables, such
    as those of relative positions.

    Args:
        graph: one mode of a model.
        mode: "train" or "eval", for the names of new constants.
        integers: buffers and constants by name.
    """
    lookups = Lookups(mode)
    variable = _variable(graph)
    for node in list(graph.nodes):
        place = _looked_up(node)
        order = None if place is None else _computed(place[2], integers)
        if place is None or order is None:
            continue
        source, dim, index = place
        size = shape_of(source)[dim]
        if not _are_positions(order, size) or (source not in variable and len(order.unique()) < len(order)):
            continue
        held = _held_behind(index)
        if held is None or str(held.target) in lookups.places or bool((order < 0).any()):
            lookups.replace(node, source, dim, order.to(torch.int64) % size)
        else:
            lookups.replace(node, source, dim, held)
    return lookups


def stepped_lookups(graph: fx.Graph, lookups: Lookups, is_cut: Callable[[str, int], bool]) -> None:
    """Turn `x[:, ::2]` along channels that can be cut into lookups, in place; `is_cut` takes a node and a dimension.

    Slices of other dimensions (pixels, tokens) stay slices, which are faster and follow the size of an input.
    """
    for node in list(graph.nodes):
        if node.target is aten.slice.Tensor and argument(node, "step") != 1:
            source = cast(fx.Node, node.args[0])
            dim = argument(node, "dim") % len(shape_of(source))
            if is_cut(source.name, dim):
                bounds = slice(*(argument(node, name) for name in ("start", "end", "step")))
                lookups.replace(node, source, dim, torch.arange(shape_of(source)[dim])[bounds].clone())


def _variable(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values depend on an input."""
    variable: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not variable.isdisjoint(node.all_input_nodes):
            variable.add(node)
    return variable


def _looked_up(node: fx.Node) -> tuple[fx.Node, int, fx.Node] | None:
    """Return source, dimension and index of a node that looks up one dimension, of one size; else `None`."""
    if node.target is aten.index_select.default:
        source, dim, index = cast(tuple[fx.Node, int, fx.Node], node.args)
        dim %= max(len(shape_of(source)), 1)
    elif node.target is aten.index.Tensor:
        source, given = cast(tuple[fx.Node, list[fx.Node | None]], node.args)
        dims = [d for d, each in enumerate(given) if each is not None]
        if len(dims) != 1:
            return None
        dim, index = dims[0], cast(fx.Node, given[dims[0]])
    else:
        return None
    is_plain = dim not in symbolic_dims(source) and dim not in source.meta.get(FREE, {}) and len(shape_of(index)) == 1
    return (source, dim, index) if is_plain else None


def _computed(node: fx.Node, integers: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """Return the tensor that a node computes from tensors of the model and numbers; `None` where it needs an input."""
    values: dict[fx.Node, Any] = {}

    def value_of(each: fx.Node) -> Any:
        if each not in values:
            values[each] = run(each)
        return values[each]

    def run(each: fx.Node) -> Any:
        if each.op == "get_attr":
            return integers.get(str(each.target))
        if each.op != "call_function" or not isinstance(each.target, OpOverload) or not _is_plain(each.target):
            return None
        if any(value_of(source) is None for source in each.all_input_nodes):
            return None
        args, kwargs = map_arg((each.args, each.kwargs), value_of)
        return each.target(*args, **kwargs)

    value = value_of(node)
    return value if isinstance(value, torch.Tensor) else None


def _is_plain(target: OpOverload) -> bool:
    """Return whether an operator gives the same result at each call, and writes into none of its operands."""
    return torch.Tag.nondeterministic_seeded not in target.tags and not target._schema.is_mutable


def _held_behind(index: fx.Node) -> fx.Node | None:
    """Return the tensor of the model that a node copies; `None` if it is none, or something else reads it."""
    while index.target in _COPIES and len(index.users) == 1:
        index = cast(fx.Node, index.args[0])
    if index.op != "get_attr" or len(index.users) != 1:
        return None
    same = [n for n in index.graph.nodes if n.op == "get_attr" and n.target == index.target]
    return index if len(same) == 1 else None


def _are_positions(order: torch.Tensor, size: int) -> bool:
    """Return whether a tensor holds positions in a dimension of a size."""
    if order.dtype not in (torch.int64, torch.int32) or order.dim() != 1 or not len(order) or size < 2:
        return False
    return bool((order >= -size).all() and (order < size).all())


def _erase_unused(node: fx.Node) -> None:
    """Erase a node that nothing reads, and what served that node alone; tensors of the model and inputs stay."""
    unread = [node]
    while unread:
        each = unread.pop()
        if each.op == "call_function" and not each.users and not each._erased:
            unread += each.all_input_nodes
            each.graph.erase_node(each)
