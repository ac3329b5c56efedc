"""Recurrent cells taken apart: `nn.LSTMCell`, `GRUCell` and `RNNCell` become linear layers, chunks and activations.

A cell runs one step. Its gates are blocks of rows of two linear layers, which the rules of `linear` and `chunk` tie, so
that its hidden units are cut with all gates and in every step of a loop.

Source: the equations of torch.nn.LSTMCell, GRUCell and RNNCell.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import map_arg

aten = torch.ops.aten
HIDDEN = "hidden weight of a cell"
"""Key in `meta` of the linear layer that reads the hidden state of a cell."""


def take_cells_apart(graph: fx.Graph) -> None:
    """Replace every recurrent cell of a captured graph by the operators that it consists of, in place."""
    for node in list(graph.nodes):
        if node.target not in _CELLS:
            continue
        with graph.inserting_before(node):
            outputs = _CELLS[node.target](_Builder(graph), node)
        if node.target is aten.lstm_cell.default:
            for user in list(node.users):
                user.replace_all_uses_with(outputs[cast(int, user.args[1])])
                graph.erase_node(user)
        else:
            node.replace_all_uses_with(outputs)
        graph.erase_node(node)


def is_cell(target: Any) -> bool:
    """Return whether an operator is one step of a recurrent cell."""
    return target in _CELLS


class _Builder:
    """Adds nodes to a graph, each with the value (sizes and type) that its operator has."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """Add a node."""
        node = self._graph.call_function(target, args)
        node.meta["val"] = target(*map_arg(args, lambda n: n.meta["val"]))
        return node

    def sums(self, node: fx.Node, hidden: Any) -> tuple[fx.Node, fx.Node]:
        """Add the two linear layers of a cell: of its input, and of its hidden state."""
        weights = [*node.args[2:], None, None]
        of_input = self.call(aten.linear.default, node.args[0], weights[0], weights[2])
        of_hidden = self.call(aten.linear.default, hidden, weights[1], weights[3])
        of_hidden.meta[HIDDEN] = True
        return of_input, of_hidden

    def chunks(self, x: fx.Node, count: int) -> list[fx.Node]:
        """Add the split of the last dimension in equal parts."""
        parts = self.call(aten.chunk.default, x, count, -1)
        return [self.call(operator.getitem, parts, k) for k in range(count)]


def _lstm(add: _Builder, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    hidden, cell = cast(Any, node.args[1])
    total = add.call(aten.add.Tensor, *add.sums(node, hidden))
    enter, forget, new, out = add.chunks(total, 4)
    enter, forget, out = (add.call(aten.sigmoid.default, gate) for gate in (enter, forget, out))
    entering = add.call(aten.mul.Tensor, enter, add.call(aten.tanh.default, new))
    state = add.call(aten.add.Tensor, add.call(aten.mul.Tensor, forget, cell), entering)
    return add.call(aten.mul.Tensor, out, add.call(aten.tanh.default, state)), state


def _gru(add: _Builder, node: fx.Node) -> fx.Node:
    of_input, of_hidden = (add.chunks(x, 3) for x in add.sums(node, node.args[1]))
    reset, update = (
        add.call(aten.sigmoid.default, add.call(aten.add.Tensor, *pair))
        for pair in zip(of_input[:2], of_hidden[:2], strict=True)
    )
    gated = add.call(aten.add.Tensor, of_input[2], add.call(aten.mul.Tensor, reset, of_hidden[2]))
    new = add.call(aten.tanh.default, gated)
    kept = add.call(aten.mul.Tensor, update, add.call(aten.sub.Tensor, node.args[1], new))
    return add.call(aten.add.Tensor, new, kept)


def _rnn(activation: Callable[..., Any]) -> Callable[[_Builder, fx.Node], fx.Node]:
    return lambda add, node: add.call(activation, add.call(aten.add.Tensor, *add.sums(node, node.args[1])))


_CELLS: dict[Any, Callable[[_Builder, fx.Node], Any]] = {
    aten.lstm_cell.default: _lstm,
    aten.gru_cell.default: _gru,
    aten.rnn_tanh_cell.default: _rnn(aten.tanh.default),
    aten.rnn_relu_cell.default: _rnn(aten.relu.default),
}
