"""Scores: how much each channel of a unit matters; higher is more important.

A score is a function `(scorer, unit) -> [width]` in `SCORES`. Its values are finite and not negative. It sums over all
parameters that the unit cuts, so that coupled channels are judged together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from autoprune.errors import TaskError, UsageError, unknown_name
from autoprune.structure import Structure
from autoprune.structure.module import evaluating

aten = torch.ops.aten
Array = np.ndarray
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor | None]
"""Inputs, and target (`None`: no labels), of one batch."""


@dataclass(frozen=True)
class Calibration:
    """Data for the scores that need it: a few hundred training examples.

    - `batches`: inputs and target of each batch; `taylor` and `activation` need them.
    - `loss`: from outputs and target to the mean loss of a batch, a scalar; `taylor` needs it.
    - `seed`: of the score `random`.
    """

    batches: Sequence[Batch] = ()
    loss: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None
    seed: int = 0

    @property
    def examples(self) -> int:
        """Number of calibration examples."""
        return sum(len(inputs[0]) for inputs, _ in self.batches)

    def require(self, score: str) -> None:
        """Raise `UsageError` when the data that a score needs is missing."""
        if not self.batches or (score == "taylor" and self.loss is None):
            needs = "batches and a loss" if score == "taylor" else "batches"
            raise UsageError(f"the score {score!r} looks at data: give it a Calibration with {needs}")


_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
_FILTERS: dict[Any, tuple[int, int]] = {
    aten.embedding.default: (0, 1),
    aten.matmul.default: (1, 1),
    aten.mm.default: (1, 1),
    aten.addmm.default: (2, 1),
} | dict.fromkeys(_TRANSPOSED, (1, 1))
"""Operators whose weight does not have its filters along dimension 0: the weight's position, and the dimension."""


class Scorer:
    """Everything that scores read of one structure; gradients and activations are computed once for all units."""

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
    def gradients(self) -> dict[str, torch.Tensor]:
        """Gradient of the summed calibration loss by parameter name; the model and its own gradients stay as they are.

        Raises:
            UsageError: data or loss is missing, or every parameter is frozen.
        """
        self.calibration.require("taylor")
        model, loss = self.structure.model, self.calibration.loss
        assert loss is not None
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not parameters:
            raise UsageError(
                "the score 'taylor' takes gradients of parameters, and all of this model's are frozen: call "
                "requires_grad_(True) on some, or take a score without gradients, such as 'l2'"
            )
        totals = {n: torch.zeros_like(p) for n, p in parameters.items()}
        with evaluating(model):
            for inputs, target in self.calibration.batches:
                value = loss(model(*inputs), target)
                grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
                for name, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        totals[name] += grad * len(inputs[0])
        return totals

    @cached_property
    def activations(self) -> dict[tuple[str, int], Array]:
        """Mean absolute activation along every labelled dimension of the evaluation graph, by node and dimension."""
        self.calibration.require("activation")
        dims = [(node, dim) for kind, node, dim in self.structure.channels if kind == "eval" and dim > 0]
        recorder = _Recorder(self.structure.evaluation_graph(), dims)
        with torch.no_grad():
            for inputs, _ in self.calibration.batches:
                recorder.run(*inputs)
        return {key: total / self.calibration.examples for key, total in recorder.totals.items()}


class _Recorder(fx.Interpreter):
    """An interpreter that sums mean absolute activations over examples, along the given dimensions of nodes."""

    def __init__(self, module: fx.GraphModule, dims: Sequence[tuple[str, int]]) -> None:
        super().__init__(module)
        self._dims = dims
        self.totals: dict[tuple[str, int], Array] = {}

    def run_node(self, n: fx.Node) -> object:
        out = super().run_node(n)
        for node, dim in self._dims:
            if node == n.name and isinstance(out, torch.Tensor) and out.is_floating_point():
                mean = out.abs().movedim(dim, 0).reshape(out.shape[dim], -1).mean(1) * len(out)
                self.totals[node, dim] = self.totals.get((node, dim), 0) + mean.double().numpy()
        return out


def _sum_by_channel(values: torch.Tensor, dim: int, channel: Array, width: int) -> Array:
    """Sum a tensor in the shape of a parameter over everything but the channels of `dim`; return `[width]`."""
    per_index = values.detach().double().transpose(0, dim).reshape(values.shape[dim], -1).sum(1).numpy()
    inside = channel >= 0
    return np.bincount(channel[inside], weights=per_index[inside], minlength=width)


def _norm(scorer: Scorer, unit: int, power: int) -> Array:
    """Return the norm of the weights (not of vectors such as biases) of every channel."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for name, dim, channel in scorer.members(unit):
        if scorer.tensors[name].dim() > 1:
            total += _sum_by_channel(scorer.tensors[name].abs() ** power, dim, channel, width)
    return total ** (1 / power)


def l1(scorer: Scorer, unit: int) -> Array:
    """Sum of absolute weights, over layers that write the channel and layers that read it.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", which sums over the writing layer alone.
    """
    return _norm(scorer, unit, 1)


def l2(scorer: Scorer, unit: int) -> Array:
    """Euclidean norm of the weights, over layers that write the channel and layers that read it."""
    return _norm(scorer, unit, 2)


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
    return total / max(scorer.calibration.examples, 1)


def activation(scorer: Scorer, unit: int) -> Array:
    """Mean absolute activation of the channel on calibration data, summed over all nodes that carry it."""
    width = scorer.structure.units[unit].width
    total = np.zeros(width)
    for (kind, node, dim), channels in scorer.structure.channels.items():
        if kind == "eval" and unit in channels.of_unit and (node, dim) in scorer.activations:
            channel = channels.of_unit[unit]
            inside = channel >= 0
            total += np.bincount(channel[inside], weights=scorer.activations[node, dim][inside], minlength=width)
    return total


SCORES: dict[str, Callable[[Scorer, int], Array]] = {
    "l1": l1,
    "l2": l2,
    "random": random,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "taylor": taylor,
    "activation": activation,
}
"""Scores by name; each takes a `Scorer` and the index of a unit, and returns `[width]`."""


def score_units(structure: Structure, score: str, calibration: Calibration | None = None) -> dict[str, Array]:
    """Score the channels of all units.

    Args:
        structure: of the model whose channels are scored.
        score: a key of `SCORES`.
        calibration: data for `taylor` and `activation`, seed for `random`.

    Returns:
        Scores `[width]` by unit name; higher is more important.

    Raises:
        UsageError: the score is unknown, or its data is missing.
        TaskError: a score is not finite.

    Example:
        >>> from autoprune.structure import analyze
        >>> model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> _ = nn.init.constant_(model[0].weight, 2), nn.init.constant_(model[1].weight, 1)
        >>> score_units(analyze(model, torch.randn(2, 2)), "l1")
        {'0': array([5., 5., 5.])}
    """
    if score not in SCORES:
        raise unknown_name("score", score, SCORES)
    scorer = Scorer(structure, calibration or Calibration())
    scores = {unit.name: SCORES[score](scorer, number) for number, unit in enumerate(structure.units)}
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise TaskError(
                f"the score {score!r} of unit {name!r} is not finite: check the weights and the data for NaN"
            )
    return scores
