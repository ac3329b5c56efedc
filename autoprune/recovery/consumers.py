"""Consumers of prunable channels: convolutions and linear layers whose weights can compensate for removed channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from autoprune import memory_limits
from autoprune.recovery.readers import readers_of
from autoprune.recovery.recurrent import Direction
from autoprune.structure import Structure

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input}
_MATRIX: dict[Any, int] = {aten.linear.default: 1, aten.addmm.default: 2, aten.mm.default: 1, aten.matmul.default: 1}
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
    kinds = _CONVOLUTIONS | _TRANSPOSED
    if node.target in kinds and len(node.args) > 6 and node.args[6] != 1:
        return None
    position = 1 if node.target in kinds else _MATRIX.get(node.target)
    source = None if position is None else node.args[position]
    if not isinstance(source, fx.Node) or structure.canonical.get(str(source.target)) != weight:
        return None
    if node.target in _MATRIX and source.meta["val"].dim() != 2:
        return None
    if node.target is aten.addmm.default and (node.kwargs or cast(fx.Node, node.args[0]).op != "get_attr"):
        return None  # factors of both summands, or a sum with activations
    return 1 if node.target is aten.linear.default or node.target in _CONVOLUTIONS else 0


def weight_of(node: fx.Node, args: tuple[Any, ...]) -> Tensor:
    """Return the weight of a consumer among the arguments of its node."""
    return args[_MATRIX.get(node.target, 1)]


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
    own = len(shape) - 1 if node.target in _MATRIX else 1
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


def input_windows(node: fx.Node, args: tuple[Any, ...]) -> Tensor:
    """Return the input windows of a consumer, one for each output position: `[N, H, W, ...]`, a view."""
    if node.target in _MATRIX:
        return _rows(input_of(node, args))
    return _transposed_windows(args) if node.target in _TRANSPOSED else _windows(args)


def output_positions(node: fx.Node, output: Tensor) -> Tensor:
    """Return the output of a consumer by position, as `input_windows` orders them: `[N, H, W, O]`, a view."""
    if node.target in _MATRIX:
        return _rows(output)
    return output.permute(0, 2, 3, 1) if output.dim() == 4 else output.permute(0, 2, 1).unsqueeze(1)


def kept_positions(node: fx.Node, masks: Mapping[tuple[str, str, int], np.ndarray]) -> Tensor | None:
    """Return which output positions of the dense model are left in the pruned one: bool `[H * W]`, `None` for all.

    A linear layer has a position for every index of the dimensions between the first and the last one of its input.
    These may be channels, as in layers that mix tokens, or that all heads share.
    """
    shape = node.meta["val"].shape
    between = {dim: masks.get(("eval", node.name, dim)) for dim in range(1, len(shape) - 1)}
    if node.target not in _MATRIX or all(mask is None or mask.all() for mask in between.values()):
        return None
    kept = np.ones(1, dtype=bool)
    for dim, mask in between.items():
        kept = np.logical_and.outer(kept, np.ones(int(shape[dim]), dtype=bool) if mask is None else mask).ravel()
    return torch.from_numpy(kept)


def sample_windows(windows: Tensor, count: int, generator: torch.Generator, kept: Tensor | None = None) -> Tensor:
    """Draw up to `count` random positions of every example, each example its own, and return their windows `[rows, D]`.

    Args:
        windows: `[N, H, W, ...]`, which are flattened to `D` numbers each.
        count: positions of each example.
        generator: the same state draws the same positions.
        kept: bool `[H * W]` over the positions of the dense model, when `windows` hold only the kept ones. The draw is
            then the same as among all positions, without those that were removed.
    """
    total = windows.shape[1] * windows.shape[2] if kept is None else len(kept)
    positions = torch.rand((len(windows), total), generator=generator).argsort(1)[:, :count]
    examples = torch.arange(len(windows))[:, None].expand_as(positions)
    if kept is not None:
        drawn = kept[positions]
        examples, positions = examples[drawn], (kept.cumsum(0) - 1)[positions[drawn]]
    columns = windows.shape[2]
    return (
        windows[examples, positions // columns, positions % columns]
        .reshape(examples.numel(), *windows.shape[3:])
        .flatten(1)
    )


def _rows(x: Tensor) -> Tensor:
    """View the inputs of a linear layer as windows `[N, rows, 1, D]`."""
    return x.reshape(len(x), -1, 1, x.shape[-1])


def by_example(windows: Tensor, examples: int) -> Tensor:
    """Return windows `[N, H, W, ...]` with all positions of an example together, where `forward` made them examples."""
    if len(windows) > examples > 0 and len(windows) % examples == 0 and windows.shape[1:3] == (1, 1):
        return windows.reshape(examples, -1, *windows.shape[2:])
    return windows


def _windows(args: tuple[Any, ...]) -> Tensor:
    """View the padded input of a convolution as windows `[N, H, W, C, kernel height, kernel width]`."""
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel, padding = given[0], tuple(given[1].shape[2:]), given[4]
    stride, dilation = _spread(given[3], len(kernel)), _spread(given[5], len(kernel))
    if isinstance(padding, str):
        reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        total = reach if padding == "same" else [0] * len(kernel)
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _spread(padding, len(kernel))]
    return _unfolded(x, kernel, stride, sides, dilation)


def _transposed_windows(args: tuple[Any, ...]) -> Tensor:
    """Return the windows of a transposed convolution: those of a convolution of its input with zeros between entries.

    The kernel of that convolution is flipped (see `Consumer.matrix`). A negative padding crops.
    """
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 0, 1, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel = given[0], tuple(given[1].shape[2:])
    stride, padding, extra, dilation = (_spread(given[k], len(kernel)) for k in (3, 4, 5, 7))
    spread = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    apart = x.new_zeros((*x.shape[:2], *spread))
    apart[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    before = [d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    sides = [(b, b + e) for b, e in zip(before, extra, strict=True)]
    return _unfolded(apart, kernel, (1,) * len(kernel), sides, dilation)


def _unfolded(
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    sides: Sequence[tuple[int, int]],
    dilation: tuple[int, ...],
) -> Tensor:
    """Pad `x` by `sides` and view it as windows `[N, H, W, C, kernel height, kernel width]`."""
    x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis in range(len(kernel)):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: dilation[axis]]
    if len(kernel) == 1:
        x = x.unsqueeze(2).unsqueeze(4)
    return x.permute(0, 2, 3, 1, 4, 5)


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else (tuple(value) * rank)[:rank]
