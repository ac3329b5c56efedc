"""Scores of single weights: how much each matters; higher is more important.

A score is a function of a `WeightScorer` in `WEIGHT_SCORES`; it returns values in the shapes of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor, nn

from autoprune.errors import TaskError
from autoprune.pruning.calibration import (
    Calibration,
    curvature_along_weights,
    mean_gradients,
    squared_gradients,
)
from autoprune.pruning.expressions import parse_scores
from autoprune.pruning.input_norms import input_norms

Tensors = dict[str, Tensor]


class WeightScorer:
    """Everything that scores read of a model; derivatives and inputs are computed once for all weights.

    Args:
        model: whose weights are scored.
        weights: parameters of the model by name.
        calibration: data for the scores that need it, and the seed of `random`.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], calibration: Calibration) -> None:
        self.model = model
        self.weights = {name: weight.detach() for name, weight in weights.items()}
        self.calibration = calibration

    def of_weights(self, values: Mapping[str, Tensor]) -> Tensors:
        """Return values by the name of a weight; zeros where there are none, as for frozen weights."""
        return {name: values.get(name, torch.zeros_like(weight)) for name, weight in self.weights.items()}

    @cached_property
    def gradients(self) -> Tensors:
        """Gradient of the mean loss."""
        return self.of_weights(mean_gradients(self.model, self.calibration))

    @cached_property
    def squared_gradients(self) -> Tensors:
        """Mean squared gradient of single examples."""
        return self.of_weights(squared_gradients(self.model, self.calibration))

    @cached_property
    def curvature(self) -> Tensors:
        """Hessian times the weights."""
        return self.of_weights(curvature_along_weights(self.model, self.calibration))

    @cached_property
    def input_norms(self) -> Tensors:
        """Euclidean norms of what each weight multiplies, in shapes that multiply the weights."""
        return input_norms(self.model, self.weights, self.calibration)


def magnitude(scorer: WeightScorer) -> Tensors:
    """|w|. Source: Han et al. 2015, https://arxiv.org/abs/1506.02626."""
    return {name: weight.abs() for name, weight in scorer.weights.items()}


def random(scorer: WeightScorer) -> Tensors:
    """Uniform random numbers from the calibration's seed: a control."""
    generator = torch.Generator().manual_seed(scorer.calibration.seed)
    drawn = {name: torch.rand(weight.shape, generator=generator) for name, weight in scorer.weights.items()}
    return {name: values.to(scorer.weights[name].device) for name, values in drawn.items()}


def gradient(scorer: WeightScorer) -> Tensors:
    """|g|, the sensitivity of the mean loss. Source: Mozer and Smolensky 1989, "Skeletonization"."""
    return {name: g.abs() for name, g in scorer.gradients.items()}


def taylor(scorer: WeightScorer) -> Tensors:
    """|w g|, the first-order change of the loss.

    Source: Molchanov et al. 2019; at initialization SNIP, Lee et al. 2019, https://arxiv.org/abs/1810.02340.
    """
    return {name: (scorer.weights[name] * g).abs() for name, g in scorer.gradients.items()}


def fisher(scorer: WeightScorer) -> Tensors:
    """w^2 E[g^2] / 2 over single examples. Source: Theis et al. 2018, https://arxiv.org/abs/1801.05787."""
    return {name: scorer.weights[name] ** 2 * s / 2 for name, s in scorer.squared_gradients.items()}


def hvp(scorer: WeightScorer) -> Tensors:
    """|-w g + w (H w) / 2| by one Hessian-vector product. Source: LeCun et al. 1990; Pearlmutter 1994."""
    g = scorer.gradients
    return {name: (scorer.weights[name] * (along / 2 - g[name])).abs() for name, along in scorer.curvature.items()}


def wanda(scorer: WeightScorer) -> Tensors:
    """|w| times the norm of its input. Source: Sun et al. 2023, https://arxiv.org/abs/2306.11695."""
    return {name: scorer.weights[name].abs() * norms for name, norms in scorer.input_norms.items()}


WEIGHT_SCORES: Mapping[str, Callable[[WeightScorer], Tensors]] = MappingProxyType(
    {
        "magnitude": magnitude,
        "l1": magnitude,  # of a single number all norms are the same
        "l2": magnitude,
        "random": random,
        "gradient": gradient,
        "taylor": taylor,
        "fisher": fisher,
        "hvp": hvp,
        "wanda": wanda,
    }
)
"""Scores of single weights by name."""


def score_weights(
    model: nn.Module, weights: Mapping[str, Tensor], score: str = "magnitude", calibration: Calibration | None = None
) -> Tensors:
    """Score single weights.

    Args:
        model: whose weights are scored; it is not changed.
        weights: parameters of the model by name, such as `prunable_weights(model)`.
        score: a key of `WEIGHT_SCORES`, or an expression of several, such as `0.5*magnitude+0.5*taylor`: the weighted
            mean of the ranks that they give to the numbers of a weight.
        calibration: data for the scores that need it, and the seed of `random`.

    Returns:
        Scores in the shapes of the weights, by name; higher is more important.

    Raises:
        UsageError: a score is unknown, or its data is missing.
        TaskError: a score is not finite.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> score_weights(model, {"weight": model.weight})
        {'weight': tensor([[3., 1.]])}
    """
    shares = parse_scores(score, WEIGHT_SCORES)
    scorer = WeightScorer(model, weights, calibration or Calibration())
    scores = {name: WEIGHT_SCORES[name](scorer) for name in shares}
    for name, values in scores.items():
        wrong = [weight for weight, each in values.items() if not bool(each.isfinite().all())]
        if wrong:
            raise TaskError(f"the score {name!r} of {wrong[0]!r} is not finite: check the weights and the data for NaN")
    if len(scores) == 1:
        return scores.popitem()[1]
    return {
        weight: torch.stack([share * _ranks(scores[name][weight]) for name, share in shares.items()]).sum(0)
        for weight in scorer.weights
    }


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value from 0 (the lowest) to 1, in the shape of the values; equal values share theirs."""
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    return ((counts.cumsum(0) - (counts + 1) / 2) / max(values.numel() - 1, 1))[places]
