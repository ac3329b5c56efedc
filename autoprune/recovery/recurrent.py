"""Recurrent layers as readers of prunable channels: pre-activations of gates are linear in input and hidden state.

The weights of a layer can therefore be fitted to the dense model's pre-activations like those of a linear layer, with
`[x_t, h_(t-1)]` as the input. The new gate of a GRU multiplies its hidden-state part by the reset gate before it adds
the input part, so the two parts are fitted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autoprune.structure import Structure
from autoprune.structure.recurrent_layers import GATES, is_projected

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Part:
    """Gates `first` to `last` (not included) as far as they read the input, the hidden state, or the sum of both."""

    first: int
    last: int
    reads_input: bool = True
    reads_hidden: bool = True


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction of a recurrent layer.

    `weights` are the names of the input weight, the hidden-state weight and, where the layer has them, the two biases.
    `units` maps each unit that the direction reads to the channel of every column of `[input, hidden]` (-1: none).
    """

    node: str
    weights: tuple[str, ...]
    reverse: bool
    batch_first: bool
    parts: tuple[Part, ...]
    units: Mapping[int, np.ndarray] = field(default_factory=dict)

    @property
    def centred(self) -> bool:
        """Whether the direction has biases, and with them an intercept."""
        return len(self.weights) > 2

    def blocks(self, unit: int) -> Tensor:
        """Return the columns of every channel of a unit: int64 `[width, columns per channel]`."""
        channel = self.units[unit]
        order = np.argsort(channel, kind="stable")
        inside = order[channel[order] >= 0]
        return torch.from_numpy(inside.reshape(int(channel.max()) + 1, -1))

    def matrix(self, tensors: Sequence[Tensor]) -> Tensor:
        """Weights for input and hidden state side by side `[gates * H, C + H]`."""
        return torch.cat([tensors[0].detach(), tensors[1].detach()], dim=1)

    def columns(self, x: Tensor, state: Tensor, outputs: Tensor) -> Tensor:
        """Return the input and last hidden state of every step `[N, T, 1, C + H]`, from inputs, state and outputs."""
        x, outputs = self.inputs(x), self.inputs(outputs)
        hidden = state.shape[-1]
        start = state[int(self.reverse)][:, None]
        own = outputs[..., hidden:] if self.reverse else outputs[..., :hidden]
        before = torch.cat([own[:, 1:], start] if self.reverse else [start, own[:, :-1]], dim=1)
        return torch.cat([x, before], dim=2)[:, :, None]

    def inputs(self, x: Tensor) -> Tensor:
        """Put the batch of a sequence first: `[N, T, C]`."""
        return x if self.batch_first else x.transpose(0, 1)

    def sums(self, part: Part, columns: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return the pre-activations `[R, rows]` of the gates of a part for `columns` `[R, C + H]`."""
        rows = self.rows(part, tensors)
        inputs = tensors[0].shape[1]
        total = torch.zeros(1)
        if part.reads_input:
            total = total + columns[:, :inputs] @ tensors[0][rows].T + (tensors[2][rows] if self.centred else 0)
        if part.reads_hidden:
            total = total + columns[:, inputs:] @ tensors[1][rows].T + (tensors[3][rows] if self.centred else 0)
        return total

    def read(self, part: Part, columns: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """Return the columns that a part reads."""
        inputs = tensors[0].shape[1]
        return columns[:, 0 if part.reads_input else inputs : None if part.reads_hidden else inputs]

    def assign(self, part: Part, weight: Tensor, intercept: Tensor, tensors: Sequence[Tensor]) -> None:
        """Write fitted weights of a part into the layer's own."""
        rows, inputs = self.rows(part, tensors), tensors[0].shape[1] if part.reads_input else 0
        if part.reads_input:
            tensors[0][rows] = weight[:, :inputs]
        if part.reads_hidden:
            tensors[1][rows] = weight[:, inputs:]
        if self.centred:
            biases = [tensors[i] for i, reads in ((2, part.reads_input), (3, part.reads_hidden)) if reads]
            biases[0][rows] = intercept - sum(other[rows] for other in biases[1:])

    def rows(self, part: Part, tensors: Sequence[Tensor]) -> slice:
        """Return the rows of the weights that belong to the gates of a part."""
        hidden = tensors[1].shape[1]
        return slice(part.first * hidden, part.last * hidden)


def find_directions(structure: Structure) -> dict[str, tuple[Direction, ...]]:
    """Return the directions of all recurrent layers that read prunable channels with weights of their own, by node."""
    canonical, tensors = structure.canonical, structure.tensors
    found = directions_in(structure.captures[False].graph, lambda name: canonical.get(name, ""))
    directions_of = {}
    for node, directions in found.items():
        own = all(isinstance(tensors[name], nn.Parameter) for each in directions for name in each.weights)
        read = tuple(replace(each, units=_units(structure, each)) for each in directions)
        if own and any(each.units for each in read):
            directions_of[node] = read
    return directions_of


def directions_in(graph: fx.Graph, name_of: Callable[[str], str] = str) -> dict[str, tuple[Direction, ...]]:
    """Return the directions of the recurrent layers of a graph whose weights no other node reads, by node.

    Their `units` are not known. `name_of` a node's target is the name of its tensor, "" where it has none.
    """
    readers: dict[str, set[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            readers.setdefault(name_of(str(node.target)), set()).update(node.users)
    directions_of = {}
    for node in graph.nodes:
        if node.target not in GATES or is_projected(node):
            continue
        names = [name_of(str(weight.target)) if weight.op == "get_attr" else "" for weight in node.args[2]]
        if all(names) and len(set(names)) == len(names) and all(readers[name] == {node} for name in names):
            each = len(names) // (2 if node.args[7] else 1)
            directions_of[node.name] = tuple(
                _direction(node, names[first : first + each], first > 0) for first in range(0, len(names), each)
            )
    return directions_of


def _direction(node: fx.Node, names: Sequence[str], reverse: bool) -> Direction:
    gates = GATES[node.target]
    parts = (Part(first=0, last=gates),)
    if node.target is aten.gru.input:
        new = Part(first=2, last=3)  # the reset gate multiplies the hidden-state part alone
        parts = (Part(first=0, last=2), replace(new, reads_hidden=False), replace(new, reads_input=False))
    return Direction(
        node=node.name,
        weights=tuple(names),
        reverse=reverse,
        batch_first=bool(node.args[8]),
        parts=parts,
    )


def _units(structure: Structure, direction: Direction) -> dict[int, np.ndarray]:
    """Return the channel of every column of `[input, hidden]` by unit."""
    sizes = [structure.tensors[name].shape[1] for name in direction.weights[:2]]
    units: dict[int, np.ndarray] = {}
    for name, start in zip(direction.weights[:2], (0, sizes[0]), strict=True):
        sites = structure.channels.get(("parameter", name, 1))
        for unit, channel in (sites.of_unit if sites else {}).items():
            columns = units.setdefault(unit, np.full(sum(sizes), -1, dtype=np.int64))
            columns[start : start + len(channel)] = channel
    return units


def hidden_state(args: Sequence[Any]) -> Tensor:
    """Return the initial hidden state `[directions, N, H]` from the arguments of a recurrent operator."""
    return args[1][0] if isinstance(args[1], (list, tuple)) else args[1]


def weights_of(direction: Direction, args: Sequence[Any]) -> list[Tensor]:
    """Return the weights of one direction from the arguments of a recurrent operator."""
    each = len(direction.weights)
    return list(args[2][each:] if direction.reverse else args[2][:each])
