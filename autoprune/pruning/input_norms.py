"""Euclidean norms of what weights multiply, on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from autoprune.pruning.calibration import Calibration
from autoprune.structure import EvaluationGraph, analyze

aten = torch.ops.aten

_PRODUCTS: dict[Any, tuple[int, int, int]] = {
    aten.linear.default: (0, 1, -1),
    aten.matmul.default: (0, 1, -1),
    aten.mm.default: (0, 1, -1),
    aten.addmm.default: (1, 2, -1),
}
"""Positions of the input and of the weight among the arguments of a product, and the input's dimension of features."""

_RECURRENT = (aten.lstm.input, aten.gru.input)
_TRANSPOSED_WEIGHT = (aten.matmul.default, aten.mm.default, aten.addmm.default)


def input_norms(model: nn.Module, weights: Mapping[str, Tensor], calibration: Calibration) -> dict[str, Tensor]:
    """Return the norms of the inputs of each weight over the calibration data, in shapes that multiply the weights.

    Filters of a convolution get the norm of each input channel, over examples and positions. The weights of a
    recurrent layer get those of its inputs, or of its outputs where they read the state. A weight that no layer reads
    in a known way gets ones.

    Raises:
        UsageError: there is no data.
        StructureError: the model cannot be traced.
    """
    calibration.require("wanda")
    structure = analyze(model, tuple(x[:2] for x in calibration.batches[0][0]))
    recorder = _Norms(structure.evaluation_graph(), structure.canonical, weights)
    with torch.no_grad():
        for inputs, _ in calibration.batches:
            recorder.run(*inputs)
    squares = recorder.squares
    return {n: squares[n].sqrt().to(w) if n in squares else torch.ones_like(w) for n, w in weights.items()}


class _Norms(fx.Interpreter):
    """An interpreter that sums squares of the inputs of weights."""

    def __init__(self, module: EvaluationGraph, canonical: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self._canonical, self._weights = canonical, weights
        self.squares: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "call_function":
            self._record(n, out)
        return out

    def _record(self, node: fx.Node, out: Any) -> None:
        args: Any = node.args
        kind: Any = node.target
        if kind in _PRODUCTS:
            x, weight, dim = _PRODUCTS[kind]
            self._add(args[weight], self._value(args[x]), dim, kind in _TRANSPOSED_WEIGHT)
        elif "conv" in str(kind) and len(args) > 1:
            self._add(args[1], self._value(args[0]), 1, "transpose" in str(kind))
        elif kind in _RECURRENT and isinstance(args[2], Sequence):
            self._recurrent(args[2], self._value(args[0]), out[0])

    def _value(self, arg: Any) -> Any:
        return self.env[arg] if isinstance(arg, fx.Node) else arg

    def _recurrent(self, weights: Sequence[Any], x: Tensor, out: Tensor) -> None:
        """Take the input of the layer for weights of its width, and the outputs for those that read a state."""
        for node in weights:
            name = self._name(node)
            if name in self._weights and self._weights[name].dim() == 2:
                width = self._weights[name].shape[1]
                reads_input = name.rpartition(".")[2].startswith("weight_ih") and width == x.shape[-1]
                source = x if reads_input else out[..., :width]
                if source.shape[-1] == width:
                    self._add(node, source, -1, False)

    def _name(self, node: Any) -> str:
        is_parameter = isinstance(node, fx.Node) and node.op == "get_attr"
        return self._canonical.get(str(node.target), str(node.target)) if is_parameter else ""

    def _add(self, node: Any, x: Any, dim: int, reads_first: bool) -> None:
        """Add the squares of an input along `dim` to those of a weight that reads it in dimension 0 or 1."""
        name = self._name(node)
        if name not in self._weights or not isinstance(x, Tensor) or not x.is_floating_point():
            return
        weight = self._weights[name]
        squares = x.movedim(dim, 0).reshape(x.shape[dim], -1).square().sum(1)
        reading = 0 if reads_first else 1
        width = weight.shape[reading]
        if len(squares) % width:
            return
        if reading == 1 and len(squares) > width:  # of each group
            by_group = squares.view(-1, width).repeat_interleave(weight.shape[0] // (len(squares) // width), 0)
            shaped = by_group.view(weight.shape[0], width, *[1] * (weight.dim() - 2))
        else:
            shape = [1] * weight.dim()
            shape[reading] = width
            shaped = squares.view(-1, width).mean(0).view(shape)
        self.squares[name] = self.squares.get(name, torch.zeros_like(weight)) + shaped
