"""Parameters of a model by unit, derivatives of the loss, and activations, for scores of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from autoprune.pruning.calibration import (
    Calibration,
    curvature_along_weights,
    mean_gradients,
    squared_gradients,
)
from autoprune.structure import EvaluationGraph, Structure

aten = torch.ops.aten
Array = np.ndarray

_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_FILTERS: dict[Any, tuple[int, int]] = {
    aten.embedding.default: (0, 1),
    aten.matmul.default: (1, 1),
    aten.mm.default: (1, 1),
    aten.addmm.default: (2, 1),
} | dict.fromkeys(_TRANSPOSED, (1, 1))
"""Operators whose weight does not have its filters along dimension 0: the weight's position, and the dimension."""

_EACH_WEIGHT_BY_ITSELF = (aten.embedding.default,)


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Means `[size]` along a dimension of a node, over examples and all other dimensions: |x|, x and x squared."""

    absolute: Array
    mean: Array
    square: Array

    @property
    def variance(self) -> Array:
        """Variance of x, `[size]`."""
        return np.maximum(self.square - self.mean**2, 0)


class Scorer:
    """Everything that scores read of one structure; derivatives and activations are computed once for all units."""

    def __init__(self, structure: Structure, calibration: Calibration) -> None:
        self.structure = structure
        self.calibration = calibration
        self.tensors = structure.tensors

    def members(self, unit: int) -> list[tuple[str, int, Array]]:
        """Return the parameter dimensions that a unit cuts: name, dimension, and channel of every index (-1: none)."""
        return [
            (name, dim, channels.of_unit[unit])
            for (kind, name, dim), channels in self.structure.channels.items()
            if kind == "parameter" and unit in channels.of_unit and isinstance(self.tensors[name], nn.Parameter)
        ]

    def writers(self, unit: int) -> list[tuple[str, int, Array]]:
        """Return the members that write a unit's channels: filters, biases, and scales and shifts of norms."""
        return [member for member in self.members(unit) if member[1] == self.filter_dims.get(member[0], 0)]

    def readers(self, unit: int) -> list[tuple[str, int, Array]]:
        """Return the members that read a unit's channels."""
        return [member for member in self.members(unit) if member[1] != self.filter_dims.get(member[0], 0)]

    @cached_property
    def filter_dims(self) -> dict[str, int]:
        """Dimension along which a weight has one filter for each output channel, by name; 0 for absent names."""
        dims: dict[str, int] = {}
        for node in self.structure.captures[False].graph.nodes:
            position, dim = _FILTERS.get(node.target, (0, 0))
            source = node.args[position] if dim else None
            if isinstance(source, fx.Node) and source.op == "get_attr":
                name = self.structure.canonical.get(str(source.target), "")
                depthwise = node.target in _TRANSPOSED and node.args[6:7] > (1,) and self.tensors[name].shape[1] == 1
                dims[name] = 0 if depthwise else dim
        return dims

    @cached_property
    def inputs(self) -> dict[str, list[str]]:
        """Names of the nodes whose values each weight multiplies, by the name of the weight."""
        nodes: dict[str, list[str]] = {}
        for node in self.structure.captures[False].graph.nodes:
            if node.op != "call_function" or node.target in _EACH_WEIGHT_BY_ITSELF:
                continue
            sources = [arg for arg in node.args if isinstance(arg, fx.Node)]
            for name in self._weights(node.args):
                nodes.setdefault(name, []).extend(s.name for s in sources[:2] if s.op != "get_attr")
        return nodes

    def _weights(self, args: Sequence[Any]) -> Iterator[str]:
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
        for arg in flat:
            if isinstance(arg, fx.Node) and arg.op == "get_attr":
                name = self.structure.canonical.get(str(arg.target), "")
                if name in self.tensors and self.tensors[name].dim() > 1:
                    yield name

    @cached_property
    def gradients(self) -> dict[str, Tensor]:
        """Gradient of the mean loss by parameter name; see `mean_gradients`."""
        return mean_gradients(self.structure.model, self.calibration)

    @cached_property
    def squared_gradients(self) -> dict[str, Tensor]:
        """Mean squared gradient of single examples by parameter name."""
        return squared_gradients(self.structure.model, self.calibration)

    @cached_property
    def curvature(self) -> dict[str, Tensor]:
        """Hessian times the weights by parameter name."""
        return curvature_along_weights(self.structure.model, self.calibration)

    @cached_property
    def activations(self) -> dict[tuple[str, int], Activations]:
        """Means along every labelled dimension of the evaluation graph, by node and dimension."""
        self.calibration.require("activation")
        dims = [(node, dim) for kind, node, dim in self.structure.channels if kind == "eval" and dim > 0]
        recorder = _Recorder(self.structure.evaluation_graph(), dims)
        with torch.no_grad():
            for inputs, _ in self.calibration.batches:
                recorder.run(*inputs)
        count = self.calibration.examples
        return {
            key: Activations(absolute=absolute / count, mean=mean / count, square=square / count)
            for key, (absolute, mean, square) in recorder.totals.items()
        }


class _Recorder(fx.Interpreter):
    """An interpreter that sums means of activations over examples, along the given dimensions of nodes."""

    def __init__(self, module: EvaluationGraph, dims: Sequence[tuple[str, int]]) -> None:
        super().__init__(module)
        self._dims: dict[str, list[int]] = {}
        for node, dim in dims:
            self._dims.setdefault(node, []).append(dim)
        self.totals: dict[tuple[str, int], Array] = {}

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        if isinstance(out, Tensor) and out.is_floating_point():
            for dim in self._dims.get(n.name, ()):
                rows = out.movedim(dim, 0).reshape(out.shape[dim], -1).double()
                means = torch.stack([rows.abs().mean(1), rows.mean(1), rows.square().mean(1)]) * len(out)
                self.totals[n.name, dim] = self.totals.get((n.name, dim), 0) + means.numpy()
        return out
