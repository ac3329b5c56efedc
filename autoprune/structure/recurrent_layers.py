"""Stacked recurrent operators taken apart: one node for each layer, so that every layer has its own width.

`aten.lstm`, `gru` and `rnn` run all layers with one tensor of initial states, and so with one width. One node for each
layer computes the same, with the dropout between layers as a further node. Initial states that the graph creates are
created for each layer; other initial states are sliced. Final states are joined only for nodes that read several.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

GATES: dict[Any, int] = {
    aten.lstm.input: 4,
    aten.gru.input: 3,
    aten.rnn_tanh.input: 1,
    aten.rnn_relu.input: 1,
}
"""Recurrent operators `(x, states, weights, ...)`, and the number of blocks of rows (gates) in their weights."""

CREATORS: dict[Any, int] = {
    aten.zeros.default: 0, aten.ones.default: 0, aten.full.default: 0,
    aten.new_zeros.default: 1, aten.new_ones.default: 1, aten.new_full.default: 1,
}  # fmt: skip
"""Operators that fill a new tensor with one number, and the position of the argument that has its sizes."""

_CONVERSIONS = {
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.contiguous.default, aten.alias.default,
    aten.detach.default, aten.zeros_like.default, aten.ones_like.default,
}  # fmt: skip
"""Operators whose output has the sizes of their first argument."""


def is_projected(node: fx.Node) -> bool:
    """Return whether a recurrent layer has projected outputs (`proj_size`): a further weight for each direction."""
    biased, bidirectional = bool(node.args[3]), bool(node.args[7])
    weights: Sequence[fx.Node] = node.args[2]  # type: ignore[assignment]
    return len(weights) > (4 if biased else 2) * (2 if bidirectional else 1)


def states_of(node: fx.Node) -> list[fx.Node]:
    """Return the initial states of a recurrent operator: the hidden state, and the cells of an LSTM."""
    given: Any = node.args[1]
    return list(given) if isinstance(given, (list, tuple)) else [given]


def unstack(graph: fx.Graph) -> None:
    """Take every stacked recurrent operator of a captured graph apart, in place."""
    for node in list(graph.nodes):
        if node.target in GATES:
            states = states_of(node)
            _unstack(graph, node)
            for state in states:
                _erase_unused(state)


def _unstack(graph: fx.Graph, node: fx.Node) -> None:
    """Replace one stacked operator by one node for each layer."""
    x, given, weights, biased, layers, dropout, training, bidirectional, batch_first = node.args
    directions, each = 2 if bidirectional else 1, len(weights) // layers  # type: ignore[arg-type,operator]
    states, values = states_of(node), node.meta["val"]
    finals: list[list[fx.Node]] = [[] for _ in states]
    with graph.inserting_before(node):
        for layer in range(layers):  # type: ignore[arg-type]
            own = [_part(graph, state, layer * directions, directions) for state in states]
            mine = weights[layer * each : (layer + 1) * each]  # type: ignore[index]
            state = own if isinstance(given, (list, tuple)) else own[0]
            args = (x, state, mine, biased, 1, 0.0, training, bidirectional, batch_first)
            single = graph.call_function(node.target, args)  # type: ignore[arg-type]
            single.meta["val"] = (values[0], *(value[:directions] for value in values[1:]))
            x, *last = [_item(graph, single, number) for number in range(1 + len(states))]
            for of_layers, of_layer in zip(finals, last, strict=True):
                of_layers.append(of_layer)
            if training and dropout and layer < layers - 1:  # type: ignore[operator]
                x = _new(graph, aten.dropout.default, (x, dropout, True), values[0])
    for user in list(node.users):
        number = user.args[1]
        if number == 0:
            user.replace_all_uses_with(x)  # type: ignore[arg-type]
        else:
            _replace_final(graph, user, finals[number - 1], directions)  # type: ignore[operator]
        graph.erase_node(user)
    graph.erase_node(node)
    for output in [n for final in finals for n in final] + ([x] if isinstance(x, fx.Node) else []):
        _erase_unused(output)


def _part(graph: fx.Graph, state: fx.Node, start: int, count: int) -> fx.Node:
    """Return the initial states of one layer: created where the graph creates the stacked ones, else sliced."""
    value = state.meta["val"]
    if not _is_created(state):
        part = value[start : start + count]
        return state if len(value) == count else _new(graph, aten.slice.Tensor, (state, 0, start, start + count), part)
    source = _part(graph, state.all_input_nodes[0], start, count) if state.target in _CONVERSIONS else None
    copy = graph.node_copy(state, lambda n: n)
    copy.meta = {**state.meta, "val": value[:count]}
    if source is not None:
        copy.update_arg(0, source)
    else:
        position = CREATORS[state.target]
        copy.update_arg(position, [count, *state.args[position][1:]])  # type: ignore[index,misc]
    return copy


def _is_created(state: fx.Node) -> bool:
    """Return whether the graph itself creates a state, possibly with conversions after it."""
    while state.target in _CONVERSIONS:
        state = state.all_input_nodes[0]
    return state.target in CREATORS


def _replace_final(graph: fx.Graph, joined: fx.Node, finals: Sequence[fx.Node], directions: int) -> None:
    """Let each reader of a tensor of final states read the state of its layer, or all states joined."""
    for reader in list(joined.users):
        if reader.target is aten.select.int and reader.args[1] == 0:
            index = int(reader.args[2]) % (len(finals) * directions)  # type: ignore[arg-type]
            reader.args = (finals[index // directions], 0, index % directions)
    if joined.users:
        with graph.inserting_before(joined):
            whole = finals[0] if len(finals) == 1 else _new(graph, aten.cat.default, (finals,), joined.meta["val"])
        joined.replace_all_uses_with(whole)


def _item(graph: fx.Graph, node: fx.Node, number: int) -> fx.Node:
    return _new(graph, operator.getitem, (node, number), node.meta["val"][number])


def _new(graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...], value: torch.Tensor) -> fx.Node:
    node = graph.call_function(target, args)
    node.meta["val"] = value
    return node


def _erase_unused(node: fx.Node) -> None:
    """Erase a node that nothing reads, and the nodes that only served it."""
    if node.op == "call_function" and not node.users:
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        for source in sources:
            if source.target in CREATORS or source.target in _CONVERSIONS:
                _erase_unused(source)
