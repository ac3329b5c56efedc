"""Layers as two factors: the best ones for the inputs that a layer sees, layer after layer.

X `[rows, D]` are the input windows of a layer in the model whose earlier layers have factors already, Y `[rows, O]` the
outputs of the same layer in the whole model at the same positions. Wanted are factors A `[O, R]` and B `[R, D]` that
minimise the mean of |Y - A B X|^2:

1. W is the ridge regression of Y on X, which pulls towards the layer's own weight: it makes up for the errors of the
   layers before it.
2. With the second moments S = E[x x^T] = L L^T, the error of a product is |(W - A B) L|^2 plus what no weight mends, so
   that the best product is W L cut to its R largest singular values, times L^-1.

A is then the least-squares solution for B, and the bias takes up the means where the layer has one. The ridge also
makes S invertible: directions that the data does not show keep a small weight.

Where S would not fit in memory (`memory_limits.RECONSTRUCTION_COLUMNS`), W is the layer's own weight: with U the R main
directions of its outputs W X, B is U^T W, and A the least-squares solution for it.

Source: reduced-rank regression, Izenman 1975, https://doi.org/10.1016/0047-259X(75)90042-1; the best approximation of a
matrix, Eckart and Young 1936, https://doi.org/10.1007/BF02288367; layers of networks whitened so, Chen et al. 2021
(https://proceedings.neurips.cc/paper/2021/hash/f56de5ef149cf0aedcc8f4797031e229-Abstract.html) and SVD-LLM, Wang et al.
2024 (https://arxiv.org/abs/2403.07378).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from autoprune import memory_limits
from autoprune.errors import TrialError
from autoprune.recovery.layer_fitting import LayerFitter, OutputRecorder, fitted_layers
from autoprune.recovery.regression import regression
from autoprune.recovery.windows import input_windows
from autoprune.structure import GraphModel
from autoprune.structure.low_rank import Factors, with_factors

_RIDGE = 0.03
"""Added to the diagonal of the second moments, as a share of its mean; with few examples less of it fits noise.

An `mlp` on MNIST with ranks 96 and 24 and 256 examples: divergence 0.011 at 1e-4, 0.0052 here, 0.0049 at 0.1.
"""


def factorized(model: GraphModel, ranks: Mapping[str, int], inputs: Sequence[Tensor]) -> GraphModel:
    """Return a model in which two factors replace the weights of some layers.

    Batch norms behind them take the statistics of the inputs.

    Args:
        model: trained or repaired, in evaluation mode; it is not changed.
        ranks: by the names of layers, below the sizes of their weights.
        inputs: of the model, tensors `[N, ...]` of some N = 256 training examples.

    Raises:
        TrialError: activations are not finite.
    """
    if not ranks:
        return model
    changed = copy.deepcopy(model)
    with torch.no_grad():
        layers = fitted_layers(model.evaluation_graph().graph, ranks)
        whole = OutputRecorder(model.evaluation_graph(), layers, len(inputs[0]))
        whole.run(*inputs)
        fitter = _Fitter(changed, ranks, whole)
        fitter.run(*inputs)
    return with_factors(changed, fitter.factors).train(model.training)


def best_factors(
    weight: Tensor, rows: Tensor, target: Tensor, rank: int, *, centred: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return factors `[R, D]` and `[O, R]`, and the intercept `[O]`, that predict targets from rows.

    Args:
        weight: `[O, D]`, towards which the ridge pulls.
        rows: inputs `[rows, D]`.
        target: outputs `[rows, O]`.
        rank: R.
        centred: whether the layer has an intercept; it is 0 otherwise.

    Raises:
        TrialError: rows or targets are not finite.
    """
    if not bool(torch.isfinite(rows).all() and torch.isfinite(target).all()):
        raise TrialError("activations must be finite; those of a layer that becomes two factors are not")
    x, y, own = rows.double(), target.double(), weight.double()
    x_mean, y_mean = (x.mean(0), y.mean(0)) if centred else (x.new_zeros(x.shape[1]), y.new_zeros(y.shape[1]))
    x, y = x - x_mean, y - y_mean
    wide = x.shape[1] > memory_limits.RECONSTRUCTION_COLUMNS
    first, second = (_main_outputs if wide else _reduced_rank)(own, x, y, rank)
    return first.to(weight.dtype), second.to(weight.dtype), (y_mean - second @ (first @ x_mean)).to(weight.dtype)


def _reduced_rank(own: Tensor, x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors of the best product for inputs and outputs without means."""
    second = x.mT @ x / len(x)
    ridge = max(_RIDGE * float(second.diagonal().mean()), 1e-12) * torch.eye(len(second), dtype=second.dtype)
    root = torch.linalg.cholesky(second + ridge)
    # W (S + ridge) = E[y x^T] + own ridge, so that W L = (that) L^-T.
    whitened = torch.linalg.solve_triangular(root, (y.mT @ x / len(x) + own @ ridge).mT, upper=False).mT
    left, values, right = torch.linalg.svd(whitened, full_matrices=False)
    scale = values[:rank].sqrt()
    first = torch.linalg.solve_triangular(root.mT, (scale[:, None] * right[:rank]).mT, upper=True).mT
    return first, left[:, :rank] * scale


def _main_outputs(own: Tensor, x: Tensor, y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the main directions of the outputs of a weight, times the weight, and what is fitted to these."""
    outputs = x @ own.mT
    main = torch.linalg.eigh(outputs.mT @ outputs)[1][:, -rank:]
    first = main.mT @ own
    change, _ = regression(x @ first.mT, y - x @ first.mT @ main.mT, centred=False)
    return first, main + change


class _Fitter(LayerFitter):
    """Gives every layer the product of its factors before it is used; `factors` are those of the layers, by name."""

    def __init__(self, model: GraphModel, ranks: Mapping[str, int], whole: OutputRecorder) -> None:
        super().__init__(model, ranks, whole)
        self._ranks = ranks
        self.factors: dict[str, Factors] = {}

    def fit(self, name: str, node: fx.Node, args: tuple[Any, ...]) -> None:
        """Give a layer the product of its factors."""
        rows, target, weight = self._whole.sample(input_windows(node, args), args[1]), self._whole.targets, args[1]
        bias = args[2] if self._biases[name] else None
        given = 0 if bias is not None or len(args) < 3 or args[2] is None else args[2]
        first, second, intercept = best_factors(
            weight.flatten(1), rows, target[node.name] - given, self._ranks[name], centred=bias is not None
        )
        self.factors[name] = Factors(
            first=first.reshape(-1, *weight.shape[1:]).contiguous(),
            second=second.reshape(*second.shape, *[1] * (weight.dim() - 2)).contiguous(),
            bias=None if bias is None else intercept,
        )
        weight.copy_(self.factors[name].product)
        if bias is not None:
            bias.copy_(intercept)
