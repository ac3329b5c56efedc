"""Consumers of prunable channels: convolutions and linear layers whose weights can compensate for removed channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from autoprune import memory_limits
from autoprune.recovery.readers import readers_of
from autoprune.recovery.recurrent import Direction
from autoprune.structure import Structure

aten = torch.ops.aten

_CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
MATRIX: dict[Any, int] = {aten.linear.default: 1, aten.addmm.default: 2, aten.mm.default: 1, aten.matmul.default: 1}
"""Layers that multiply rows with a matrix, and its position: `[O, C]` of a linear layer, else `[C, O]`."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A weight that reads prunable channels along its dimension `dim`, with `per_index` columns for each index there.

    `dim` is 1 for convolutions and linear layers `[O, C, ...]`, and 0 for transposed convolutions and matrices `[C, O]`
    that rows are multiplied with. `nodes` are the nodes of the evaluation graph that use the weight: several where a
    layer runs several times. `units` maps each unit whose channels the weight reads to the channel of every index (-1:
    none); of a convolution with several `groups`, to that of every place in a group. With `centred` the output has an
    intercept that can be adapted.
    """

    weight: str
    bias: str | None
    nodes: tuple[str, ...]
    dim: int
    groups: int
    centred: bool
    per_index: int
    units: Mapping[int, np.ndarray]

    @property
    def is_shared(self) -> bool:
        """Whether several nodes use the weight."""
        return len(self.nodes) > 1

    def matrix(self, weight: Tensor, groups: int = 1) -> Tensor:
        """Return a weight as the matrix `[O, D]` that windows are multiplied with; `[G, O / G, D]` for several groups.

        `groups` are those of the weight, which has fewer of them in a pruned model.
        """
        if not self.dim:
            weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [O, C / G, ...]
            weight = weight.flip(tuple(range(2, weight.dim())))
        matrix = weight.flatten(1)
        return matrix.unflatten(0, (groups, -1)) if self.groups > 1 else matrix

    def add(self, weight: Tensor, change: Tensor, groups: int = 1) -> None:
        """Add a change of `matrix` to a weight, in place."""
        change = change.flatten(0, -2)
        if self.dim:
            weight.add_(change.reshape(weight.shape))
        else:
            swapped = change.reshape(len(change), len(weight) // groups, *weight.shape[2:])
            swapped = swapped.flip(tuple(range(2, weight.dim())))
            weight.add_(swapped.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1))

    def split(self, columns: Tensor, groups: int) -> Tensor:
        """Return rows `[R, G * D]` of windows or outputs by group, `[G, R, D]`; unchanged for one group."""
        return columns.unflatten(1, (groups, -1)).transpose(0, 1) if self.groups > 1 else columns

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Return the columns of `matrix` for some indices of dimension `dim`."""
        return (indices[:, None] * self.per_index + np.arange(self.per_index)).ravel()

    def blocks(self, unit: int) -> Tensor:
        """Return the columns of every channel of a unit: int64 `[width, columns per channel]`, equal in all groups."""
        channel = self.units[unit]
        order = np.argsort(channel, kind="stable")
        inside = order[channel[order] >= 0]
        width = int(channel.max()) + 1
        return torch.from_numpy(self.columns(inside).reshape(width, -1))


def find_consumers(structure: Structure) -> tuple[Consumer, ...]:
    """Return the layers that read prunable channels with a weight of their own, and sum over all of them.

    These are convolutions and transposed convolutions, linear layers, and products with a matrix. Convolutions in
    several groups sum over the places in a group. Left out are layers wider than
    `memory_limits.RECONSTRUCTION_COLUMNS`, and layers that have prunable channels in the batch dimension: which
    examples are kept would then depend on the batch.
    """
    consumers: list[Consumer] = []
    tensors, users, adapted = structure.tensors, _users(structure), adapted_norms(structure)
    for name, nodes in users.items():
        weight = tensors[name] if name else None
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        dims = {_read_dim(structure, node, name) for node in nodes}
        dim = dims.pop() if len(dims) == 1 else None
        units = {} if dim is None else _read_units(structure, nodes[0], name, dim)
        if dim is None or not units or any(_batch_is_pruned(structure, node) for node in nodes):
            continue
        if len(nodes) > 1 and not _are_alike(structure, nodes):
            continue
        bias = _own_bias(structure, nodes, users, tensors)
        groups = groups_of(nodes[0], nodes[0].args)
        consumer = Consumer(
            weight=name,
            bias=bias,
            nodes=tuple(node.name for node in nodes),
            dim=dim,
            groups=groups,
            centred=bias is not None
            or all(node.users and all(user.name in adapted for user in node.users) for node in nodes),
            per_index=weight[0, 0].numel(),
            units=units,
        )
        columns = weight.numel() // weight.shape[1 - dim] if dim or groups == 1 else weight[:, 0].numel()
        if columns * (groups if dim else 1) <= memory_limits.RECONSTRUCTION_COLUMNS:
            consumers.append(consumer)
    return tuple(consumers)


def _read_units(structure: Structure, node: fx.Node, weight: str, dim: int) -> dict[int, np.ndarray]:
    """Return the units whose channels a weight reads along `dim`, as in `Consumer.units`; units of groups are left out.

    A channel that is kept does not depend on groups that are removed.
    """
    channels = structure.channels.get(("parameter", weight, dim))
    of_groups = structure.channels.get(("eval", node.name, -1))
    if channels is None:
        return {}
    places = channels.size if dim else channels.size // groups_of(node, node.args)
    left_out = of_groups.of_unit.keys() if of_groups else set[int]()
    return {unit: channel[:places] for unit, channel in channels.of_unit.items() if unit not in left_out}


def groups_of(node: fx.Node, args: tuple[Any, ...]) -> int:
    """Return the number of groups of a consumer among the arguments of its node."""
    position = 6 if node.target in _CONVOLUTIONS | TRANSPOSED else len(args)
    return args[position] if len(args) > position else 1


def _users(structure: Structure) -> dict[str, list[fx.Node]]:
    """Return the nodes of the evaluation graph that use a parameter or constant, in order, by its first name."""
    users: dict[str, list[fx.Node]] = {}
    for node in structure.captures[False].graph.nodes:
        if node.op == "get_attr":
            users.setdefault(structure.canonical.get(str(node.target), ""), [])
        for source in node.all_input_nodes:
            if source.op == "get_attr":
                users[structure.canonical.get(str(source.target), "")].append(node)
    return users


def _read_dim(structure: Structure, node: fx.Node, weight: str) -> int | None:
    """Return the dimension of `weight` along which a node reads its input; `None` if the node is no such layer."""
    is_convolution = node.target in _CONVOLUTIONS | TRANSPOSED
    if is_convolution and not isinstance(groups_of(node, node.args), int):
        return None  # one group for each example
    position = 1 if is_convolution else MATRIX.get(node.target)
    source = None if position is None else node.args[position]
    if not isinstance(source, fx.Node) or structure.canonical.get(str(source.target)) != weight:
        return None
    if node.target in MATRIX and source.meta["val"].dim() != 2:
        return None
    if node.target is aten.addmm.default and (node.kwargs or cast(Any, node.args)[0].op != "get_attr"):
        return None  # factors of both summands, or a sum with activations
    return 1 if node.target is aten.linear.default or node.target in _CONVOLUTIONS else 0


def weight_of(node: fx.Node, args: tuple[Any, ...]) -> Tensor:
    """Return the weight of a consumer among the arguments of its node."""
    return args[MATRIX.get(node.target, 1)]


def bias_of(node: fx.Node, args: tuple[Any, ...]) -> Any:
    """Return what a consumer adds to its product: a tensor, a node, or `None`."""
    if node.target is aten.addmm.default:
        return args[0]
    return args[2] if node.target not in (aten.mm.default, aten.matmul.default) and len(args) > 2 else None


def input_of(node: fx.Node, args: tuple[Any, ...]) -> Any:
    """Return the input of a consumer among the arguments of its node."""
    return args[1 if node.target is aten.addmm.default else 0]


def _batch_is_pruned(structure: Structure, node: fx.Node) -> bool:
    """Return whether a layer's output positions mix batch and prunable channels, as heads folded into the batch do.

    Channels in dimensions of their own are fine as long as the batch is dimension 0 alone.
    """
    pruned = _pruned_positions(structure, node)
    return 0 in pruned or (bool(pruned) and any(isinstance(size, torch.SymInt) for size in node.meta["val"].shape[1:]))


def _pruned_positions(structure: Structure, node: fx.Node) -> set[int]:
    """Return the dimensions of a layer's output, besides its channels, that have prunable channels."""
    rank = node.meta["val"].dim()
    own = rank - 1 if node.target in MATRIX else 1
    sites = {dim: structure.channels.get(("eval", node.name, dim)) for dim in range(rank) if dim != own}
    return {dim for dim, channels in sites.items() if channels and channels.of_unit}


def _are_alike(structure: Structure, nodes: Sequence[fx.Node]) -> bool:
    """Return whether nodes that share a weight are one layer: equal options, and positions that no policy removes."""
    options = {(node.target, str(node.args[3:]) if node.target not in MATRIX else "") for node in nodes}
    return len(options) == 1 and not any(_pruned_positions(structure, node) for node in nodes)


def _own_bias(
    structure: Structure,
    nodes: Sequence[fx.Node],
    users: Mapping[str, list[fx.Node]],
    tensors: Mapping[str, Tensor],
) -> str | None:
    """Return the name of the bias of a layer; `None` without one, or for a constant or one that other layers add."""
    sources = {bias_of(node, node.args) for node in nodes}
    source = sources.pop() if len(sources) == 1 else None
    name = structure.canonical.get(str(source.target)) if isinstance(source, fx.Node) else None
    is_own = name is not None and isinstance(tensors[name], nn.Parameter) and set(users[name]) == set(nodes)
    return name if is_own else None


def adapted_norms(structure: Structure) -> set[str]:
    """Return the batch norms of the evaluation graph that take batch statistics in training: all but frozen ones."""
    live = {
        str(node.args[3].target)
        for node in structure.captures[True].graph.nodes
        if node.target is aten.batch_norm.default and isinstance(node.args[3], fx.Node) and node.args[5]
    }
    return {
        node.name
        for node in structure.captures[False].graph.nodes
        if node.target is aten.batch_norm.default and getattr(node.args[3], "target", None) in live
    }


def covered_units(
    structure: Structure, consumers: Iterable[Consumer], recurrent: Iterable[Direction] = ()
) -> frozenset[int]:
    """Return the units whose readers all are among the given consumers and recurrent layers, or need no repair.

    Depthwise layers need none: a channel that is kept does not depend on the removed ones.
    """
    known = {node for c in consumers for node in c.nodes} | {direction.node for direction in recurrent}
    return frozenset(unit for unit, nodes in readers_of(structure).items() if nodes <= known)
