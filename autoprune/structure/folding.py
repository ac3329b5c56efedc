"""Simpler captured graphs: blocks in other modes are inlined, and shuffles of one dimension become one lookup."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

from autoprune.structure.autocast import cast_inputs
from autoprune.structure.nodes import FREE, concrete, shape_of
from autoprune.structure.orders import Lookups

aten = torch.ops.aten
_MODE_BLOCKS = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Higher-order operators that run a block in another mode, and the position of the block among the arguments."""
_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints}
_CHAIN = _VIEWS | {
    aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.unflatten.int,
}  # fmt: skip
_SHUFFLES = {aten.channel_shuffle.default, aten.native_channel_shuffle.default}


def is_mode_block(node: fx.Node) -> bool:
    """Return whether a node runs a part of the graph with gradients off, or with another setting of autocast."""
    return node.op == "call_function" and getattr(node.target, "__name__", "") in _MODE_BLOCKS


def inline_blocks(graph: fx.Graph, root: torch.nn.Module) -> None:
    """Replace blocks of `torch.no_grad()` and `autocast` by their own nodes, in place; `root` holds the blocks."""
    for node in list(graph.nodes):
        if not is_mode_block(node):
            continue
        place = _MODE_BLOCKS[node.target.__name__]  # type: ignore[union-attr]
        block = cast(fx.Node, node.args[place])
        inner = cast(fx.GraphModule, root.get_submodule(str(block.target)))
        inline_blocks(inner.graph, inner)  # innermost first: the region of a node is the innermost one
        inputs = node.args[place + 1 :]
        before = node.prev
        if node.args[0] is False:  # gradients are off inside
            with graph.inserting_before(node):
                inputs = tuple(_detached(graph, x) if isinstance(x, fx.Node) else x for x in inputs)
        outputs = _copied(inner.graph, node, inputs)
        if node.target.__name__ == "wrap_with_autocast":  # type: ignore[union-attr]
            device, dtype, enabled = node.args[:3]
            cast_inputs(_between(before, node), str(device), cast("torch.dtype | None", dtype), enabled=bool(enabled))
        for user in list(node.users):
            user.replace_all_uses_with(cast(fx.Node, outputs[user.args[1]]))  # type: ignore[index]
            graph.erase_node(user)
        graph.erase_node(node)
        if not block.users:
            graph.erase_node(block)


def _between(before: fx.Node, after: fx.Node) -> list[fx.Node]:
    """Return the nodes that follow one node and precede another, in order."""
    nodes = []
    while before.next is not after:
        before = before.next
        nodes.append(before)
    return nodes


def _detached(graph: fx.Graph, value: fx.Node) -> fx.Node:
    node = graph.call_function(aten.detach.default, (value,))
    node.meta = dict(value.meta)
    return node


def _copied(block: fx.Graph, place: fx.Node, inputs: Sequence[Any]) -> Any:
    """Copy the nodes of a block to before `place`; return the block's outputs."""
    new: dict[fx.Node, Any] = dict(zip((n for n in block.nodes if n.op == "placeholder"), inputs, strict=True))
    for node in block.nodes:
        if node.op == "output":
            return map_arg(node.args[0], lambda n: new[n])
        if node.op != "placeholder":
            with place.graph.inserting_before(place):
                new[node] = place.graph.node_copy(node, lambda n: new[n])
            new[node].meta = dict(node.meta)
    raise AssertionError("a graph ends with its output")


def fold_shuffles(graph: fx.Graph, lookups: Lookups) -> None:
    """Replace view-transpose-view chains that only permute one dimension by `index_select` with a constant.

    Such a chain splits its dimension into factors, which would tie all channels of a factor; a lookup ties nothing.
    """
    for node in list(graph.nodes):
        source = _source_of_chain(node)
        moved = _moved(source, node) if source is not None else None
        if source is not None and moved is not None:
            lookups.replace(node, source, *moved)


def _source_of_chain(node: fx.Node) -> fx.Node | None:
    """Return the start of the chain of moves that `node` ends, if both have one shape and the chain transposes."""
    if node.target in _SHUFFLES:
        return cast(fx.Node, node.args[0])
    if node.op != "call_function" or node.target not in _VIEWS:
        return None
    source = cast(fx.Node, node.args[0])
    moves = set[Any]()
    while source.target in _CHAIN and len(source.users) == 1:
        moves.add(source.target)
        source = cast(fx.Node, source.args[0])
        if shape_of(source) == shape_of(node):
            return source if moves & {aten.permute.default, aten.transpose.int} else None
    return None


def _moved(source: fx.Node, node: fx.Node) -> tuple[int, torch.Tensor] | None:
    """Return the one dimension that a chain permutes, and the source index of each index `[size]`."""
    shape = shape_of(source)
    before = torch.arange(math.prod(shape)).reshape(shape)
    after = _run(source, node, before)
    for dim in range(len(shape)):
        first = after[tuple(slice(None) if d == dim else 0 for d in range(len(shape)))]
        index = first // math.prod(shape[dim + 1 :])
        if dim in source.meta.get(FREE, {}):
            continue  # at another size, the lookup would be another
        if shape[dim] > 1 and int(index.max()) < shape[dim] and torch.equal(before.index_select(dim, index), after):
            return None if torch.equal(index, torch.arange(shape[dim])) else (dim, index.contiguous())
    return None


def _run(source: fx.Node, node: fx.Node, x: torch.Tensor) -> torch.Tensor:
    """Run the chain from `source` to `node` on other elements."""
    if node is not source:
        x = _run(source, cast(fx.Node, node.args[0]), x)
        args, kwargs = map_arg((node.args[1:], node.kwargs), lambda n: concrete(n.meta["val"]))
        is_view = node.target in _VIEWS and node.target is not aten.flatten.using_ints
        target = aten.reshape.default if is_view else node.target  # a view would refuse transposed memory
        x = cast(Any, target)(x, *args, **kwargs)
    return x
