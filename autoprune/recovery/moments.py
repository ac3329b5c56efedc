"""Second moments of what every consumer of prunable channels reads, on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from autoprune.errors import TaskError
from autoprune.structure import Structure

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
_MOST_COLUMNS = 6_000
"""A consumer with more input columns than this is left as it is: its moments alone would take 300 MB."""

_POSITIONS = (64, 256)
"""Least and most positions of one example that are looked at, drawn anew for each; neighbours say much the same."""

_ENTRIES = 200_000
"""Numbers of one example that are looked at, within these bounds: a product of moments takes their square."""


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A weight that reads prunable channels along its dimension 1, with `per_index` columns for each index there.

    `nodes` are the places in the evaluation graph that use it. `units` are those whose channels it reads, with the
    channel of every index (-1: none). `centred`: its output has an intercept that can be adapted.
    """

    weight: str
    bias: str | None
    nodes: tuple[str, ...]
    centred: bool
    per_index: int
    units: Mapping[int, np.ndarray]

    def columns(self, indices: np.ndarray) -> np.ndarray:
        """Columns of the flattened weight for some indices of dimension 1."""
        return (indices[:, None] * self.per_index + np.arange(self.per_index)).ravel()

    def blocks(self, unit: int) -> Tensor:
        """Columns of every channel of a unit: int64 `[width, columns per channel]`."""
        channel = self.units[unit]
        order = np.argsort(channel, kind="stable")
        inside = order[channel[order] >= 0]
        width = int(channel.max()) + 1
        return torch.from_numpy(self.columns(inside).reshape(width, -1))


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Mean `[D]` and raw second moment `[D, D]` of the columns of a consumer, float64."""

    mean: Tensor
    raw: Tensor

    def second(self, *, centred: bool) -> Tensor:
        """Covariance, or the raw second moment."""
        return self.raw - torch.outer(self.mean, self.mean) if centred else self.raw


def find_consumers(structure: Structure) -> tuple[Consumer, ...]:
    """Convolutions in one group and linear layers whose weight is a parameter and whose input can be pruned."""
    found: dict[str, list[fx.Node]] = {}
    users = _users(structure)
    for name, nodes in users.items():
        channels = structure.channels.get(("parameter", name, 1))
        if channels is None or not channels.of_unit:
            continue
        weight = structure.tensors[name]
        small = isinstance(weight, nn.Parameter) and weight[0].numel() <= _MOST_COLUMNS
        if small and all(_reads_plainly(structure, node, name) for node in nodes):
            found[name] = nodes
    return tuple(_consumer(structure, name, nodes, users) for name, nodes in found.items())


def _users(structure: Structure) -> dict[str, list[fx.Node]]:
    """Nodes of the evaluation graph that use a parameter or constant, by its first name."""
    users: dict[str, list[fx.Node]] = {}
    for node in structure.captures[False].graph.nodes:
        if node.op == "get_attr":
            users.setdefault(structure.canonical.get(str(node.target), ""), []).extend(node.users)
    return users


def _reads_plainly(structure: Structure, node: fx.Node, weight: str) -> bool:
    """Whether a node is a linear layer or a convolution in one group, with this as its weight."""
    if node.target is not aten.linear.default and not _is_plain_convolution(node):
        return False
    source = node.args[1]
    return isinstance(source, fx.Node) and structure.canonical.get(str(source.target)) == weight


def _is_plain_convolution(node: fx.Node) -> bool:
    return node.target in _CONVOLUTIONS and bool(len(node.args) < 7 or node.args[6] == 1)


def _consumer(structure: Structure, name: str, nodes: list[fx.Node], users: Mapping[str, list[fx.Node]]) -> Consumer:
    biases = {n.args[2].target if len(n.args) > 2 and isinstance(n.args[2], fx.Node) else None for n in nodes}
    bias = structure.canonical[str(biases.pop())] if biases != {None} and len(biases) == 1 else None
    if bias and not (isinstance(structure.tensors[bias], nn.Parameter) and set(users[bias]) == set(nodes)):
        bias = None  # a constant, or one that other layers add as well
    normalised = all(_feeds_batch_norm(node) for node in nodes)
    weight = structure.tensors[name]
    return Consumer(
        weight=name,
        bias=bias,
        nodes=tuple(node.name for node in nodes),
        centred=bias is not None or normalised,
        per_index=weight[0, 0].numel(),
        units=structure.channels["parameter", name, 1].of_unit,
    )


def _feeds_batch_norm(node: fx.Node) -> bool:
    return bool(node.users) and all(user.target is aten.batch_norm.default for user in node.users)


def collect_moments(structure: Structure, batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Moments]:
    """Moments of every consumer over batches of inputs, by the name of its weight.

    Raises `TaskError` when activations are not finite.
    """
    consumers = find_consumers(structure)
    reader = _MomentReader(structure.evaluation_graph(), {node: c for c in consumers for node in c.nodes})
    with torch.no_grad():
        for inputs in batches:
            reader.run(*inputs)
    for name, (_, raw, _) in reader.sums.items():
        if not bool(torch.isfinite(raw).all()):
            raise TaskError(
                f"what {name!r} reads must be finite on calibration data; it is not. "
                "Check the weights and the data for NaN and infinity."
            )
    return {name: Moments(mean=total / count, raw=raw / count) for name, (total, raw, count) in reader.sums.items()}


class _MomentReader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, consumers: Mapping[str, Consumer]) -> None:
        super().__init__(module)
        self._consumers = consumers
        self._generator = torch.Generator().manual_seed(0)
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._consumers:
            args, _ = self.fetch_args_kwargs_from_env(n)
            name = self._consumers[n.name].weight
            windows = _rows(args[0]) if n.target is aten.linear.default else _windows(args)
            columns = self._some(windows).double()
            raw, total, count = columns.T @ columns, columns.sum(0), len(columns)
            if name in self.sums:
                before = self.sums[name]
                total, raw, count = total + before[0], raw + before[1], count + before[2]
            self.sums[name] = (total, raw, count)
        return super().run_node(n)

    def _some(self, windows: Tensor) -> Tensor:
        """Random positions of windows `[N, H, W, ...]`, other ones for each example: `[rows, D]`."""
        examples, height, width = windows.shape[:3]
        count = int(np.clip(_ENTRIES // windows[0, 0, 0].numel(), *_POSITIONS))
        places = torch.rand((examples, height * width), generator=self._generator).argsort(1)[:, :count]
        chosen = windows[torch.arange(examples)[:, None], places // width, places % width]
        return chosen.reshape(examples * places.shape[1], -1)


def _rows(x: Tensor) -> Tensor:
    """Inputs of a linear layer as windows `[N, rows, 1, D]`."""
    return x.reshape(len(x), -1, 1, x.shape[-1])


def _windows(args: tuple[Any, ...]) -> Tensor:
    """All input windows of a convolution `[N, H, W, C, kernel height, kernel width]`: a view of the padded input."""
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel, padding = given[0], tuple(given[1].shape[2:]), given[4]
    stride, dilation = _spread(given[3], len(kernel)), _spread(given[5], len(kernel))
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if isinstance(padding, str):
        total = reach if padding == "same" else [0] * len(kernel)
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _spread(padding, len(kernel))]
    x = F.pad(x, [side for pair in reversed(sides) for side in pair])
    for axis in range(len(kernel)):
        x = x.unfold(2 + axis, reach[axis] + 1, stride[axis])[..., :: dilation[axis]]
    if len(kernel) == 1:
        x = x.unsqueeze(2).unsqueeze(4)
    return x.permute(0, 2, 3, 1, 4, 5)


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else (tuple(value) * rank)[:rank]
