"""Scores: how much each channel of a unit matters; higher is more important.

A score is a function `(scorer, unit) -> [width]` in `SCORES`. Its values are finite and not negative. It sums over all
parameters that the unit cuts, so that coupled channels are judged together. Several scores are joined by an expression
(see `expressions`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from autoprune.errors import TaskError
from autoprune.pruning.calibration import Calibration
from autoprune.pruning.expressions import joined_ranks, parse_scores
from autoprune.pruning.scorer import Activations, Scorer
from autoprune.structure import Structure

Array = np.ndarray


def _sum_by_channel(values: torch.Tensor, dim: int, channel: Array, width: int) -> Array:
    """Sum a tensor in the shape of a parameter over everything but the channels of `dim`; return `[width]`."""
    per_index = values.detach().double().transpose(0, dim).reshape(values.shape[dim], -1).sum(1).numpy()
    inside = channel >= 0
    return np.bincount(channel[inside], weights=per_index[inside], minlength=width)


def _sum_over(scorer: Scorer, unit: int, values: dict[str, torch.Tensor]) -> Array:
    """Sum values of parameters over everything that the unit cuts; return `[width]`."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        if name in values:
            total += _sum_by_channel(values[name], dim, channel, width)
    return total


def _norm(scorer: Scorer, members: list[tuple[str, int, Array]], width: int, power: int) -> Array:
    """Return the norm of the weights (not of vectors such as biases) of every channel."""
    total = np.zeros(width)
    for name, dim, channel in members:
        if scorer.tensors[name].dim() > 1:
            total += _sum_by_channel(scorer.tensors[name].abs() ** power, dim, channel, width)
    return total ** (1 / power)


def l1(scorer: Scorer, unit: int) -> Array:
    """Sum of absolute weights, over layers that write the channel and layers that read it.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", which sums over the writing layer alone.
    """
    return _norm(scorer, scorer.members(unit), scorer.structure.units[unit].width, 1)


def l2(scorer: Scorer, unit: int) -> Array:
    """Euclidean norm of the weights, over layers that write the channel and layers that read it."""
    return _norm(scorer, scorer.members(unit), scorer.structure.units[unit].width, 2)


def in_norm(scorer: Scorer, unit: int) -> Array:
    """Euclidean norm of the weights that write the channel: what comes into a neuron."""
    return _norm(scorer, scorer.writers(unit), scorer.structure.units[unit].width, 2)


def out_norm(scorer: Scorer, unit: int) -> Array:
    """Euclidean norm of the weights that read the channel: what goes out of a neuron.

    Source: He et al. 2014, "Reshaping deep neural network for fast decoding by node-pruning" (onorm).
    """
    return _norm(scorer, scorer.readers(unit), scorer.structure.units[unit].width, 2)


def random(scorer: Scorer, unit: int) -> Array:
    """Uniform random numbers from the calibration's seed and the unit's position."""
    width = scorer.structure.units[unit].width
    return np.random.default_rng([scorer.calibration.seed, unit]).random(width)


def fpgm(scorer: Scorer, unit: int) -> Array:
    """Summed distance of a filter to all other filters of its layer: a filter in the middle can be replaced.

    Source: He et al. 2019, "Filter Pruning via Geometric Median".
    """
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        weight = scorer.tensors[name]
        if weight.dim() > 1 and dim == scorer.filter_dims.get(name, 0):
            filters = weight.detach().double().transpose(0, dim).flatten(1)
            distance = torch.cdist(filters, filters).sum(1)
            total += np.bincount(channel[channel >= 0], weights=distance.numpy()[channel >= 0], minlength=width)
    return total


def bn_scale(scorer: Scorer, unit: int) -> Array:
    """Absolute scale of the batch norms on the channels; `l2` where there is no batch norm.

    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    width = scorer.structure.units[unit].width
    total, normed = np.zeros(width), False
    for name, dim, channel in scorer.members(unit):
        if f"{name.rpartition('.')[0]}.running_var" in scorer.tensors and name.endswith("weight"):
            total += _sum_by_channel(scorer.tensors[name].abs(), dim, channel, width)
            normed = True
    return total if normed else l2(scorer, unit)


def taylor(scorer: Scorer, unit: int) -> Array:
    """First-order change of the mean loss when the channel goes: |sum of weight times gradient| for each parameter.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", which squares that sum.
    """
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        if name in scorer.gradients:
            product = scorer.tensors[name].detach() * scorer.gradients[name]
            total += np.abs(_sum_by_channel(product, dim, channel, width))
    return total


def gradient(scorer: Scorer, unit: int) -> Array:
    """Gradient signal: the sum of |gradient of the mean loss| over the channel's weights, its sensitivity.

    Source: Mozer and Smolensky 1989, "Skeletonization", who remove what the error does not depend on.
    """
    return _sum_over(scorer, unit, {name: g.abs() for name, g in scorer.gradients.items()})


def fisher(scorer: Scorer, unit: int) -> Array:
    """Change of the loss by the diagonal of the Fisher information: half the sum of w^2 E[gradient^2].

    The mean E runs over the gradients of at most 128 single examples.

    Source: Theis et al. 2018, https://arxiv.org/abs/1801.05787.
    """
    squares = scorer.squared_gradients
    return _sum_over(scorer, unit, {name: 0.5 * scorer.tensors[name] ** 2 * s for name, s in squares.items()})


def hvp(scorer: Scorer, unit: int) -> Array:
    """Second-order change of the mean loss by one Hessian-vector product: |sum of -w g + w (H w) / 2|.

    Source: LeCun et al. 1990, "Optimal Brain Damage", with H w of Pearlmutter 1994 in place of the diagonal.
    """
    gradients, along = scorer.gradients, scorer.curvature
    changes = {n: scorer.tensors[n].detach() * (along[n] / 2 - gradients[n]) for n in along}
    return np.abs(_sum_over(scorer, unit, changes))


def _of_activations(scorer: Scorer, unit: int, read: Callable[[Activations], Array], nodes: set[str] | None) -> Array:
    """Sum what is read of the activations of all nodes that carry the unit, or of the `nodes` among them."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for (kind, node, dim), channels in scorer.structure.channels.items():
        wanted = kind == "eval" and (nodes is None or node in nodes)
        if wanted and unit in channels.of_unit and (node, dim) in scorer.activations:
            channel = channels.of_unit[unit]
            inside, values = channel >= 0, read(scorer.activations[node, dim])
            total += np.bincount(channel[inside], weights=values[inside], minlength=width)
    return total


def activation(scorer: Scorer, unit: int) -> Array:
    """Mean absolute activation of the channel on calibration data, summed over all nodes that carry it."""
    return _of_activations(scorer, unit, lambda means: means.absolute, None)


def activation_mean(scorer: Scorer, unit: int) -> Array:
    """Absolute mean activation of the channel, summed over all nodes that carry it.

    Source: Molchanov et al. 2017, https://arxiv.org/abs/1611.06440 (mean activation).
    """
    return _of_activations(scorer, unit, lambda means: np.abs(means.mean), None)


def activation_variance(scorer: Scorer, unit: int) -> Array:
    """Variance of the channel's activation over examples and positions: a constant can become a bias.

    Source: Polyak and Wolf 2015, "Channel-level acceleration of deep face representations" (inbound variance).
    """
    return _of_activations(scorer, unit, lambda means: means.variance, None)


def wanda(scorer: Scorer, unit: int) -> Array:
    """Sum of |w| over the weights that read the channel, times the root mean square of what they read.

    Source: Sun et al. 2023, https://arxiv.org/abs/2306.11695, for single weights; here summed over a channel.
    """
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.readers(unit):
        if scorer.tensors[name].dim() > 1:
            sizes = _of_activations(scorer, unit, lambda means: means.square, set(scorer.inputs.get(name, ())))
            sizes = sizes if sizes.any() else _of_activations(scorer, unit, lambda means: means.square, None)
            total += np.sqrt(sizes) * _sum_by_channel(scorer.tensors[name].abs(), dim, channel, width)
    return total


SCORES: dict[str, Callable[[Scorer, int], Array]] = {
    "l1": l1,
    "l2": l2,
    "in_norm": in_norm,
    "out_norm": out_norm,
    "random": random,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "gradient": gradient,
    "fisher": fisher,
    "hvp": hvp,
    "activation": activation,
    "activation_mean": activation_mean,
    "activation_variance": activation_variance,
    "wanda": wanda,
}
"""Scores by name; each takes a `Scorer` and the index of a unit, and returns `[width]`."""


def score_units(structure: Structure, score: str, calibration: Calibration | None = None) -> dict[str, Array]:
    """Score the channels of all units.

    Args:
        structure: of the model whose channels are scored.
        score: a key of `SCORES`, or an expression of several, such as `0.5*l2+0.5*taylor`: the weighted mean of the
            ranks that they give to the channels of a unit.
        calibration: data for the scores that need it, and the seed of `random`.

    Returns:
        Scores `[width]` by unit name; higher is more important.

    Raises:
        UsageError: a score is unknown, or its data is missing.
        TaskError: a score is not finite.

    Example:
        >>> from torch import nn
        >>> from autoprune.structure import analyze
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 2), nn.init.constant_(model[1].weight, 1)
        >>> score_units(analyze(model, torch.randn(2, 2)), "l1")
        {'0': array([5., 5., 5.])}
    """
    weights = parse_scores(score, SCORES)
    scorer = Scorer(structure, calibration or Calibration())
    scores = {name: _score_all(scorer, name) for name in weights}
    if len(scores) == 1:
        return scores.popitem()[1]
    units = [unit.name for unit in structure.units]
    return {unit: joined_ranks([(weights[n], of_units[unit]) for n, of_units in scores.items()]) for unit in units}


def _score_all(scorer: Scorer, score: str) -> dict[str, Array]:
    scores = {unit.name: SCORES[score](scorer, number) for number, unit in enumerate(scorer.structure.units)}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise TaskError(
                f"the score {score!r} of unit {name!r} is not finite: check the weights and the data for NaN"
            )
    return scores
