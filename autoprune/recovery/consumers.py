"""Consumers of prunable channels: convolutions and linear layers whose weights can compensate for removed channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input}
MATRIX: dict[Any, int] = {aten.linear.default: 1, aten.addmm.default: 2, aten.mm.default: 1, aten.matmul.default: 1}
"""Layers that multiply rows with a matrix, and its position: `[O, C]` of a linear layer, else `[C, O]`."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A weight that reads prunable channels along its dimension `dim`, with `per_index` columns for each index there.

    `dim` is 1 for convolutions and linear layers `[O, C, ...]`, and 0 for transposed convolutions and matrices `[C, O]`
    that rows are multiplied with. `node` is the node of the evaluation graph that uses the weight. `units` maps each
    unit whose channels the weight reads to the channel of every index (-1: none). With `centred` the output has an
    intercept that can be adapted.
    """

    weight: str
    bias: str | None
    node: str
    dim: int
    centred: bool
    per_index: int
    units: Mapping[int, np.ndarray]

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as the matrix `[O, D]` that windows are multiplied with."""
        if self.dim:
            return weight.flatten(1)
        return weight.transpose(0, 1).flip(tuple(range(2, weight.dim()))).flatten(1)

    def add(self, weight: Tensor, change: Tensor) -> None:
        """Add a change of `matrix` `[O, D]` to a weight, in place."""
        if self.dim:
            weight.add_(change.reshape(weight.shape))
        else:
            swapped = change.reshape(len(change), len(weight), *weight.shape[2:])
            weight.add_(swapped.flip(tuple(range(2, weight.dim()))).transpose(0, 1))

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Return the columns of `matrix` for some indices of dimension `dim`."""
        return (indices[:, None] * self.per_index + np.arange(self.per_index)).ravel()

    def blocks(self, unit: int) -> Tensor:
        """Return the columns of every channel of a unit: int64 `[width, columns per channel]`."""
        channel = self.units[unit]
        order = np.argsort(channel, kind="stable")
        inside = order[channel[order] >= 0]
        width = int(channel.max()) + 1
        return torch.from_numpy(self.columns(inside).reshape(width, -1))


def find_consumers(structure: Structure) -> tuple[Consumer, ...]:
    """Return the layers that read prunable channels with a weight of their own, and sum over all of them.

    These are convolutions and transposed convolutions in one group, linear layers, and products with a matrix. Left out
    are layers wider than `memory_limits.RECONSTRUCTION_COLUMNS`, and layers that have prunable channels in the batch
    dimension: which examples are kept would then depend on the batch.
    """
    consumers: list[Consumer] = []
    users = _users(structure)
    adapted = adapted_norms(structure)
    for name, nodes in users.items():
        weight = structure.tensors[name] if name else None
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2 or len(nodes) != 1:
            continue
        dim = _read_dim(structure, nodes[0], name)
        channels = None if dim is None else structure.channels.get(("parameter", name, dim))
        if dim is None or channels is None or not channels.of_unit:
            continue
        if weight.numel() // weight.shape[1 - dim] > memory_limits.RECONSTRUCTION_COLUMNS:
            continue
        if not _batch_is_pruned(structure, nodes[0]):
            consumers.append(_consumer(structure, name, dim, nodes[0], users, adapted))
    return tuple(consumers)


def _users(structure: Structure) -> dict[str, list[fx.Node]]:
    """Nodes of the evaluation graph that use a parameter or constant, by its first name."""
    users: dict[str, list[fx.Node]] = {}
    for node in structure.captures[False].graph.nodes:
        if node.op == "get_attr":
            users.setdefault(structure.canonical.get(str(node.target), ""), []).extend(node.users)
    return users


def _read_dim(structure: Structure, node: fx.Node, weight: str) -> int | None:
    """Return the dimension of `weight` along which a node reads its input; `None` if the node is no such layer."""
    kinds = _CONVOLUTIONS | TRANSPOSED
    if node.target in kinds and len(node.args) > 6 and node.args[6] != 1:
        return None
    position = 1 if node.target in kinds else MATRIX.get(node.target)
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
    """Whether the output positions of a layer mix batch and prunable channels, such as heads folded into the batch.

    Channels in dimensions of their own are fine as long as the batch is dimension 0 alone.
    """
    shape = node.meta["val"].shape
    own = len(shape) - 1 if node.target in MATRIX else 1
    sites = {dim: structure.channels.get(("eval", node.name, dim)) for dim in range(len(shape)) if dim != own}
    pruned = {dim for dim, channels in sites.items() if channels and channels.of_unit}
    return 0 in pruned or (bool(pruned) and any(isinstance(size, torch.SymInt) for size in shape[1:]))


def _consumer(
    structure: Structure, name: str, dim: int, node: fx.Node, users: Mapping[str, list[fx.Node]], adapted: set[str]
) -> Consumer:
    source = bias_of(node, node.args)
    bias = structure.canonical.get(str(source.target)) if isinstance(source, fx.Node) else None
    if bias and not (isinstance(structure.tensors[bias], nn.Parameter) and users[bias] == [node]):
        bias = None  # a constant, or one that other layers add as well
    normalised = bool(node.users) and all(user.name in adapted for user in node.users)
    weight = structure.tensors[name]
    return Consumer(
        weight=name,
        bias=bias,
        node=node.name,
        dim=dim,
        centred=bias is not None or normalised,
        per_index=weight[0, 0].numel(),
        units=structure.channels["parameter", name, dim].of_unit,
    )


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
    known = {c.node for c in consumers} | {direction.node for direction in recurrent}
    return frozenset(unit for unit, nodes in readers_of(structure).items() if nodes <= known)
