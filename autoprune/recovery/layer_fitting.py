"""Fits layers one after the other: each to what it wrote in the whole model, for what it reads after those before it.

Batch norms behind a fitted layer take the statistics of the inputs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.recovery.windows import by_example, output_positions, sample_windows
from autoprune.structure import GraphModel
from autoprune.structure.low_rank import weight_name

_POSITIONS, _FEWEST_POSITIONS = 64, 4
"""Positions of one example that a layer is fitted at: fewer where their windows have more than `_NUMBERS` numbers."""

_NUMBERS = 1 << 24

FITTING_RUNS = 2
"""Times that the examples pass through a model: whole, and with layers that are fitted."""


class OutputRecorder(fx.Interpreter):
    """Runs the whole model and keeps outputs of linear layers and convolutions, `[rows, O]` by their nodes.

    `weights` are the names of the layers' weights.
    """

    def __init__(self, module: fx.GraphModule, weights: Collection[str], examples: int) -> None:
        super().__init__(module)
        self._weights, self._examples = weights, examples
        self.targets: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; keep the outputs of a layer."""
        output = super().run_node(n)
        if weight_name(n) in self._weights:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.targets[n.name] = self.sample(output_positions(n, output), args[1])
        return output

    def sample(self, windows: Tensor, weight: Tensor) -> Tensor:
        """Sample positions of a layer, the same ones of its inputs and of its outputs, `[rows, D]`."""
        affordable = _NUMBERS // (self._examples * weight[0].numel())
        count = min(_POSITIONS, max(_FEWEST_POSITIONS, affordable))
        return sample_windows(by_example(windows, self._examples), count, torch.Generator().manual_seed(0))


class LayerFitter(fx.Interpreter):
    """Runs a model and fits layers, in place, before they are used; subclasses say how in `fit`.

    `weights` are the names of the layers' weights, and `whole` has their outputs.
    """

    def __init__(self, model: GraphModel, weights: Collection[str], whole: OutputRecorder) -> None:
        super().__init__(model.evaluation_graph())
        self._weights, self._whole = weights, whole
        self._moved = set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        """Fit a layer, or take the statistics of a batch norm behind one, and run the node."""
        name, moved = weight_name(n), not self._moved.isdisjoint(n.all_input_nodes)
        if name in self._weights:
            self.fit(name, n, self.fetch_args_kwargs_from_env(n)[0])
        elif moved and n.target is torch.ops.aten.batch_norm.default:
            args, _ = self.fetch_args_kwargs_from_env(n)
            variance, mean = torch.var_mean(args[0], [0, *range(2, args[0].dim())])
            args[3].copy_(mean)
            args[4].copy_(variance)
        if moved or name in self._weights:
            self._moved.add(n)
        return super().run_node(n)

    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Change the weight of a layer, in place.

        Args:
            name: of the weight.
            node: of the layer.
            args: arguments of the node: input, weight, bias and so on.
        """
        raise NotImplementedError
