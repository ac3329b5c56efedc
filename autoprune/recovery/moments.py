"""Second moments of what every consumer of prunable channels reads, on calibration data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional as F

from autoprune.structure import Structure

aten = torch.ops.aten

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv1d.padding, aten.conv2d.padding}
_MOST_COLUMNS = 6_000
"""A consumer with more input columns than this is left as it is: its moments alone would take 300 MB."""

_POSITIONS = 64
"""Positions of one example that are looked at; neighbours on a map say much the same."""


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
    refused: set[str] = set()
    for node in structure.captures[False].graph.nodes:
        is_linear = node.target is aten.linear.default
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            if source.op != "get_attr":
                continue
            name = structure.canonical.get(str(source.target), "")
            channels = structure.channels.get(("parameter", name, 1))
            if channels is None or not channels.of_unit:
                continue
            plain = node.args[1] is source and (is_linear or _is_plain_convolution(node))
            if plain and structure.tensors[name][0].numel() <= _MOST_COLUMNS:
                found.setdefault(name, []).append(node)
            else:
                refused.add(name)
    return tuple(_consumer(structure, name, nodes) for name, nodes in found.items() if name not in refused)


def _is_plain_convolution(node: fx.Node) -> bool:
    return node.target in _CONVOLUTIONS and bool(len(node.args) < 7 or node.args[6] == 1)


def _consumer(structure: Structure, name: str, nodes: list[fx.Node]) -> Consumer:
    biases = {n.args[2].target if len(n.args) > 2 and isinstance(n.args[2], fx.Node) else None for n in nodes}
    bias = structure.canonical[str(biases.pop())] if biases != {None} and len(biases) == 1 else None
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
    """Moments of every consumer over batches of inputs, by the name of its weight."""
    consumers = find_consumers(structure)
    module = fx.GraphModule(
        structure.shrink(structure.dense_policy(), prove=False), structure.captures[False].graph
    ).eval()
    reader = _MomentReader(module, {node: c for c in consumers for node in c.nodes})
    with torch.no_grad():
        for inputs in batches:
            reader.run(*inputs)
    return {name: Moments(mean=total / count, raw=raw / count) for name, (total, raw, count) in reader.sums.items()}


class _MomentReader(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, consumers: Mapping[str, Consumer]) -> None:
        super().__init__(module)
        self._consumers = consumers
        self.sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._consumers:
            args, _ = self.fetch_args_kwargs_from_env(n)
            name = self._consumers[n.name].weight
            rows = (_linear_rows(args[0]) if n.target is aten.linear.default else _patches(args)).double()
            raw, total, count = rows.T @ rows, rows.sum(0), len(rows)
            if name in self.sums:
                before = self.sums[name]
                total, raw, count = total + before[0], raw + before[1], count + before[2]
            self.sums[name] = (total, raw, count)
        return super().run_node(n)


def _linear_rows(x: Tensor) -> Tensor:
    """Inputs of a linear layer `[rows, D]`."""
    rows = x.reshape(len(x), -1, x.shape[-1])
    step = max(1, rows.shape[1] // _POSITIONS)
    return rows[:, ::step].reshape(-1, x.shape[-1])


def _patches(args: tuple[Any, ...]) -> Tensor:
    """Input patches of a convolution `[rows, C * kernel]`, at some positions of every example."""
    defaults: tuple[Any, ...] = (None, None, None, 1, 0, 1)
    given: tuple[Any, ...] = (*args, *defaults[len(args) :])
    x, kernel, padding = given[0], tuple(given[1].shape[2:]), given[4]
    stride, dilation = _spread(given[3], len(kernel)), _spread(given[5], len(kernel))
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        x = F.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)])
        padding = 0
    padding = _spread(padding, len(kernel))
    if len(kernel) == 1:
        x = x.unsqueeze(2)
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    patches = F.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    step = max(1, patches.shape[2] // _POSITIONS)
    return patches[:, :, ::step].transpose(1, 2).reshape(-1, patches.shape[1])


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else (tuple(value) * rank)[:rank]
