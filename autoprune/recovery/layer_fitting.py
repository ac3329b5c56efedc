"""Fits layers one after the other: each to what it wrote in the whole model, for what it reads after those before it.

X `[rows, D]` are the input windows of a layer, Y `[rows, O]` the outputs of the same layer in the whole model at the
same positions, S = E[x x^T] and C = E[x y^T]. Of D inputs and N rows, S and C count for N / (N + D) only: for
the rest inputs are taken to be independent, and each weight to be right. A linear layer that reads each example once
would else be fitted to the examples at hand.

A layer that keeps all its weights is fitted, too, where a layer before it changed. Batch norms behind a fitted layer
take the statistics of the inputs.

Source: moments of few rows, shrunk towards their diagonal, Ledoit and Wolf 2004
(https://doi.org/10.1016/S0047-259X(03)00096-4).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx

from autoprune.errors import TrialError
from autoprune.recovery.batchnorm import take_statistics
from autoprune.recovery.consumers import groups_of
from autoprune.recovery.windows import by_example, input_windows, output_positions, sample_windows
from autoprune.structure import EvaluationGraph, GraphModel
from autoprune.structure.low_rank import bias_names, weight_name

Fit = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The signature of `whole_weight`."""

_POSITIONS, _FEWEST_POSITIONS = 64, 4
"""Positions of one example that a layer is fitted at; fewer where its windows or outputs have more than `_NUMBERS`."""

_NUMBERS = 1 << 24
"""Numbers of the windows, and of the outputs, of all examples."""

MOST_COLUMNS = 2304
"""A layer with more columns is not fitted: its inverse would take longer than a fine-tuning."""

_RIDGE = 0.03
"""Added to the diagonal of second moments, as a share of its mean."""

FITTING_RUNS = 2
"""Times that the examples pass through a model: whole, and with layers that are fitted."""


class OutputRecorder(fx.Interpreter):
    """Runs the whole model and keeps outputs of linear layers and convolutions, `[rows, O]` by their nodes.

    `weights` are the names of the layers' weights.
    """

    def __init__(self, module: EvaluationGraph, weights: Collection[str], examples: int) -> None:
        super().__init__(module)
        self.weights, self._examples = weights, examples
        self.targets: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; keep the outputs of a layer."""
        output = super().run_node(n)
        if weight_name(n) in self.weights:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self.targets[n.name] = self.sample(output_positions(n, output), args[1])
        return output

    def sample(self, windows: Tensor, weight: Tensor) -> Tensor:
        """Sample positions of a layer, the same ones of its inputs and of its outputs, `[rows, D]`."""
        affordable = _NUMBERS // (self._examples * max(weight[0].numel(), len(weight)))
        count = min(_POSITIONS, max(_FEWEST_POSITIONS, affordable))
        return sample_windows(by_example(windows, self._examples), count, torch.Generator().manual_seed(0))


def fitting_moments(weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return second moments `[G, D, D]` of the inputs of a layer and cross moments `[G, O / G, D]` with its outputs.

    Args:
        weight: `[O, I, ...]`, towards which they pull.
        x: inputs `[G, rows, D]` of G groups.
        y: wanted outputs `[rows, O]`.
    """
    groups, count, columns = x.shape
    own = weight.double().reshape(groups, -1, columns)
    seen, unseen = count / (count + columns), columns / (count + columns)
    moments = x.mT @ x / count
    wanted = y.reshape(count, groups, -1).permute(1, 2, 0) @ x / count
    alone = torch.diag_embed(moments.diagonal(dim1=1, dim2=2))
    ridge = (_RIDGE * moments.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-12)[:, None, None]
    alone, second = unseen * alone + ridge * torch.eye(columns, dtype=alone.dtype), seen * moments
    return second + alone, seen * wanted + own @ alone


def whole_weight(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the weight without zeros that writes what is wanted; arguments: see `fitting_moments`."""
    second, cross = fitting_moments(weight, x, y)
    return torch.cholesky_solve(cross.mT, torch.linalg.cholesky(second)).mT.reshape(weight.shape).to(weight.dtype)


def fit_in_place(
    weight: Tensor, rows: Tensor, target: Tensor, fit: Fit = whole_weight, groups: int = 1, *, centred: bool
) -> Tensor:
    """Fit a weight to the outputs that are wanted, in place.

    Args:
        weight: `[O, I, ...]`.
        rows: inputs `[rows, D]` of all groups.
        target: wanted outputs `[rows, O]`.
        fit: returns the new weight.
        groups: of a convolution.
        centred: whether a bias or a batch norm takes up the means of the outputs.

    Returns:
        The bias `[O]` that takes up the means; it counts where `centred`.

    Raises:
        TrialError: rows or targets are not finite.
    """
    if not bool(torch.isfinite(rows).all() and torch.isfinite(target).all()):
        raise TrialError("activations must be finite; those of a layer that is fitted are not")
    x, y = rows.double(), target.double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    if centred:
        x, y = x - x_mean, y - y_mean
    x = x.unflatten(1, (groups, -1)).transpose(0, 1)  # [G, rows, D]
    weight.copy_(fit(weight, x, y))
    by_group = weight.double().reshape(groups, -1, x.shape[2]) @ x_mean.reshape(groups, -1, 1)
    return (y_mean - by_group.flatten()).to(weight.dtype)


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

    @abstractmethod
    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Change the weight of a layer, in place.

        Args:
            name: of the weight.
            node: of the layer.
            args: arguments of the node: input, weight, bias and so on.
        """
