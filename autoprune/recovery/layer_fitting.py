"""Fits layers one after the other: each to what it wrote in the whole model, for what it reads after those before it.

A layer that keeps all its weights is fitted, too, where a layer before it changed; so are recurrent layers. Batch norms
behind a fitted layer take the statistics of the inputs. `weight_fitting` has the equations.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.recovery.batchnorm import take_statistics
from autoprune.recovery.consumers import groups_of
from autoprune.recovery.recurrent import Direction, directions_in, hidden_state, weights_of
from autoprune.recovery.recurrent_fit import fit_direction
from autoprune.recovery.weight_fitting import MOST_COLUMNS, Fit, Zeros, fit_in_place, whole_weight
from autoprune.recovery.windows import by_example, input_windows, output_positions, sample_windows
from autoprune.structure import EvaluationGraph, GraphModel
from autoprune.structure.low_rank import bias_names, weight_name

_POSITIONS, _FEWEST_POSITIONS = 64, 4
"""Positions of one example that a layer is fitted at; fewer where its windows or outputs have more than `_NUMBERS`."""

_NUMBERS = 1 << 24
"""Numbers of the windows, and of the outputs, of all examples."""

FITTING_RUNS = 2
"""Times that the examples pass through a model: whole, and with layers that are fitted."""


class OutputRecorder(fx.Interpreter):
    """Runs the whole model and keeps outputs of linear layers and convolutions, `[rows, O]` by their nodes.

    `weights` are the names of the layers' weights. Of the directions of recurrent layers it keeps what they read at
    some steps, `[rows, C + H]`, and the sums of the gates.
    """

    def __init__(self, module: EvaluationGraph, weights: Collection[str], examples: int) -> None:
        super().__init__(module)
        self.weights, self._examples = weights, examples
        self.targets: dict[str, Tensor] = {}
        self.directions = directions_in(module.graph)
        self.steps: dict[str, list[tuple[Tensor, list[Tensor]]]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; keep the outputs of a layer."""
        output = super().run_node(n)
        if weight_name(n) in self.weights:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.targets[n.name] = self.sample(output_positions(n, output), args[1])
        elif n.name in self.directions:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.steps[n.name] = [self._step(direction, args, output[0]) for direction in self.directions[n.name]]
        return output

    def _step(self, direction: Direction, args: tuple[Any, ...], outputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        tensors = weights_of(direction, args)
        windows = direction.columns(args[0], hidden_state(args), outputs)
        columns = self.sample(windows, direction.matrix(tensors))
        return columns, [direction.sums(part, columns, tensors) for part in direction.parts]

    def sample(self, windows: Tensor, weight: Tensor) -> Tensor:
        """Sample positions of a layer, the same ones of its inputs and of its outputs, `[rows, D]`."""
        affordable = _NUMBERS // (self._examples * max(weight[0].numel(), len(weight)))
        count = min(_POSITIONS, max(_FEWEST_POSITIONS, affordable))
        return sample_windows(by_example(windows, self._examples), count, torch.Generator().manual_seed(0))


def fitted_layers(graph: fx.Graph, changed: Collection[str]) -> set[str]:
    """Return the weights of the layers that change, and of those that may make up for it: used once, by one layer."""
    uses = Counter(str(node.target) for node in graph.nodes if node.op == "get_attr" for _ in node.users)
    return {name for node in graph.nodes if (name := weight_name(node)) and (name in changed or uses[name] == 1)}


class LayerFitter(fx.Interpreter, ABC):
    """Runs a model and fits layers, in place, before they are used; subclasses say how in `fit`.

    `weights` are the names of the weights that change, some of them maybe before the run, and `whole` has the outputs
    of `fitted_layers`.
    """

    def __init__(self, model: GraphModel, weights: Collection[str], whole: OutputRecorder) -> None:
        super().__init__(model.evaluation_graph())
        self._weights, self._whole = weights, whole
        self._biases = bias_names(model, whole.weights)
        self._moved = set[fx.Node]()

    def run_node(self, n: fx.Node) -> Any:
        """Fit a layer, or take the statistics of a batch norm behind one, and run the node."""
        name, moved = weight_name(n), not self._moved.isdisjoint(n.all_input_nodes)
        if name in self._weights:
            self.fit(name, n, self.fetch_args_kwargs_from_env(n)[0])
        elif moved and name in self._whole.weights:
            self.fit_outputs(name, n, self.fetch_args_kwargs_from_env(n)[0])
        elif moved and n.name in self._whole.directions:
            self._fit_recurrent(n, self.fetch_args_kwargs_from_env(n)[0])
        elif moved and n.target is torch.ops.aten.batch_norm.default:
            args, _ = self.fetch_args_kwargs_from_env(n)
            take_statistics(args[0], args[3], args[4])
        if moved or name in self._weights or (n.op == "get_attr" and n.target in self._weights):
            self._moved.add(n)
        return super().run_node(n)

    def fit_outputs(self, name: str, node: fx.Node, args: tuple[Any, ...], fit: Fit = whole_weight) -> None:
        """Fit a layer to what it wrote in the whole model, in place, with its bias; arguments: see `fit`."""
        weight = args[1]
        if fit is whole_weight and weight[0].numel() > MOST_COLUMNS:
            return
        rows, target = self._whole.sample(input_windows(node, args), weight), self._whole.targets
        own, added = self._biases[name], args[2] if len(args) > 2 else None
        given = 0 if own or added is None else added
        normed = any(user.target is torch.ops.aten.batch_norm.default for user in node.users)
        bias = fit_in_place(
            weight, rows, target[node.name] - given, fit, groups_of(node, args), centred=bool(own) or normed
        )
        if own and added is not None:
            added.copy_(bias)

    def _fit_recurrent(self, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Fit a recurrent layer to the sums of its gates in the whole model, in place."""
        for direction, (whole, sums) in zip(
            self._whole.directions[node.name], self._whole.steps[node.name], strict=True
        ):
            tensors = weights_of(direction, args)
            inputs = self._whole.sample(direction.inputs(args[0])[:, :, None], direction.matrix(tensors))
            columns = torch.cat([inputs, whole[:, tensors[0].shape[1] :]], dim=1)
            zeros = self.zeros_of(direction.weights[0]), self.zeros_of(direction.weights[1])
            fit_direction(direction, tensors, columns, sums, zeros)

    def zeros_of(self, name: str) -> Zeros | None:
        """Return the zeros of a recurrent weight; `None` where it has none."""
        del name
        return None

    @abstractmethod
    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Change the weight of a layer, in place.

        Args:
            name: of the weight.
            node: of the layer.
            args: arguments of the node: input, weight, bias and so on.
        """
